"""python -m disk_kd: the command line. torchrun starts it this way."""

import sys

from disk_kd.cli import main

sys.exit(main())
