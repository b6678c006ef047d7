"""JAX's persistent compilation cache: on for the command line, off where the directory cannot be written."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/pushforward/jax``, by default under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "pushforward" / "jax"


def use_cache(wanted: bool = True) -> bool:
    """Have JAX, not yet imported, keep what it compiles; return whether it will.

    Settings that the user made in JAX's own environment variables stay. Programs are kept however short they took to
    compile: a fit compiles dozens of small ones besides its loop, which together take as long.
    """
    if not wanted:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return False
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return True
    path = cache_directory()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    if not os.access(path, os.W_OK | os.X_OK):
        return False
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(path)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    return True
