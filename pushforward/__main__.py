"""``python -m pushforward``, the same as ``pushforward``."""

from .cli import main

main()
