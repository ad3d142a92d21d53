"""python -m disk_kd: the command line, as torchrun starts it."""

import sys

from disk_kd.cli import main

sys.exit(main())
