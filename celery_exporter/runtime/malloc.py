"""Makes glibc return unused memory to the operating system: mallopt(3), malloc_trim(3).

Other C libraries have neither function, and do not need them. A sandbox may have no ctypes.
"""

from __future__ import annotations

from contextlib import suppress

#: From glibc/malloc/malloc.h.
_M_MMAP_THRESHOLD = -3
#: The size from which a block is returned to the system when it is freed.
_LARGE_BYTES = 2**20

_NOT_AVAILABLE = (ImportError, OSError, AttributeError, MemoryError)


def return_large() -> None:
    """Return large blocks to the system when they are freed, such as those of a page that was sent.

    By default glibc increases its threshold after the first one and keeps blocks of that size.
    """
    with suppress(*_NOT_AVAILABLE):
        import ctypes  # noqa: PLC0415

        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def trim() -> None:
    """Return the memory that is free now to the system.

    After the start that is 10 MB if Python had to compile its imports, as in a read-only image.
    """
    with suppress(*_NOT_AVAILABLE):
        import ctypes  # noqa: PLC0415

        ctypes.CDLL(None).malloc_trim(0)
