"""``python -m scanc`` is the command ``scanc``."""

from scanc.cli import main

main()
