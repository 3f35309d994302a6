"""Memory that a process frees and soon needs again."""

from __future__ import annotations

import ctypes

#: From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Buffers up to this size come from the heap; so much of it stays here when it is free.
LARGEST_BUFFER, KEPT = 32 * 2**20, 128 * 2**20


def keep_freed_memory() -> None:
    """Reuse the memory of tensors and pieces, where the C library is glibc.

    Otherwise the kernel gives and takes each buffer of some MB anew, and clears every page of it:
    to read 100M values of bfloat16 then takes twice the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGEST_BUFFER)
        mallopt(_M_TRIM_THRESHOLD, KEPT)
