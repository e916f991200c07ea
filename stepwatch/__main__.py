"""``python -m stepwatch`` is ``stepwatch``."""

from stepwatch.cli import main

main()
