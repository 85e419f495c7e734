"""What the C library is asked for: to give memory back that is not used any more. Only glibc has to be asked.

mallopt(3), malloc_trim(3). A sandbox may have no ctypes, and another C library neither of the two.
"""

from __future__ import annotations

from contextlib import suppress

#: glibc/malloc/malloc.h
_M_MMAP_THRESHOLD = -3
#: Bytes; what is at least as large goes back to the system when it is freed.
_LARGE = 2**20

_ABSENT = (ImportError, OSError, AttributeError, MemoryError)


def return_large() -> None:
    """Give large blocks back at once: a table of tasks that has emptied, a page that was sent.

    By itself glibc comes to keep them: it takes what was freed once for what is needed again soon.
    """
    with suppress(*_ABSENT):
        import ctypes  # noqa: PLC0415

        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def trim() -> None:
    """Give back what is free now.

    After starting that is 10 MB where Python had to compile what it imported, as in an image that is not
    written to.
    """
    with suppress(*_ABSENT):
        import ctypes  # noqa: PLC0415

        ctypes.CDLL(None).malloc_trim(0)
