"""``python -m fastclf``: the same as the command ``fastclf``."""

from fastclf.cli import main

main()
