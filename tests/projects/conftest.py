"""The benchmark's scripts import each other as neighbours."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / 'projects' / 'digits_benchmark'))
