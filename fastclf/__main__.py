"""``python -m fastclf``: the command line."""

import sys

from fastclf.cli import main

sys.exit(main())
