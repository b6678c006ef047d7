"""``python -m pushforward.cli``, the same as ``pushforward``."""

from . import main

main()
