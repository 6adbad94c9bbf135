"""python -m minifuse: the command line without its script."""

import sys

from minifuse.cli import main

sys.exit(main())
