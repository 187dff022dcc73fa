"""Scores a checkpoint: `python tools/test.py CONFIG CHECKPOINT`, the same as `densekd test`.

The arguments are the toolboxes' own: --work-dir, --out, --eval, --cfg-options, --launcher.
`python tools/test.py --help` lists them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from densekd.cli.main import main  # noqa: E402  found in this checkout, installed or not

if __name__ == '__main__':
    sys.exit(main(['test', *sys.argv[1:]]))
