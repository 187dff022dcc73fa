"""Trains a config: `python tools/train.py CONFIG`, the same as `densekd train CONFIG`.

The arguments are the toolboxes' own: --work-dir, --resume, --amp, --auto-scale-lr, --cfg-options,
--launcher. `python tools/train.py --help` lists them.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from densekd.cli.main import main

if __name__ == '__main__':
    sys.exit(main(['train', *sys.argv[1:]]))
