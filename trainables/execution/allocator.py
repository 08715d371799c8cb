"""How this process gets memory from the system."""

import ctypes
import sys

# Names of glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Have the allocator keep what is freed for the next to ask. For processes that train on a CPU.

    By default glibc returns large blocks to the system at once. A training step frees and asks for the same blocks
    again (the gradient of the embeddings above all), and the system hands every page out anew, filled with zeros.
    Other systems' allocators are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**26)
