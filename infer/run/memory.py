"""Memory that is no longer used goes back to the system."""

import sys


def give_back() -> None:
    """Return what the C allocator holds and does not use: after compiling, a hundred megabytes of the compiler's.

    Without it a long run's summary, whose arrays are too large for the holes, comes on top of that. glibc only: other
    allocators return memory by themselves.
    """
    if sys.platform != "linux":
        return
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
