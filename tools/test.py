"""Scores a checkpoint: `python tools/test.py CONFIG CHECKPOINT`, the same as `densekd test`.

The arguments are the toolboxes' own: --work-dir, --out, --eval, --cfg-options, --launcher.
`python tools/test.py --help` lists them.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from densekd.cli.main import main

if __name__ == '__main__':
    sys.exit(main(['test', *sys.argv[1:]]))
