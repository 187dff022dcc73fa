"""`python -m densekd` is `densekd`."""

import sys

from densekd.cli.main import main

sys.exit(main())
