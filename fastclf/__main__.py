"""``python -m fastclf``: the same as the command ``fastclf``."""

import sys

from fastclf.cli import main

sys.exit(main())
