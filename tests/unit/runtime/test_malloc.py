"""Unused memory is returned to the operating system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: The first block raises glibc's threshold. Then a large block is freed that is not the last one of the heap.
BLOCKS = """
import sys, psutil
from celery_exporter.runtime import malloc
if sys.argv[1] == "return_large":
    malloc.return_large()
bytearray(24 << 20)
before = psutil.Process().memory_info().rss
table, last = b"x" * (20 << 20), b"x" * 100_000
del table
print(psutil.Process().memory_info().rss - before)
"""


def kept_bytes(how: str) -> int:
    """Return how many bytes the process keeps after it has freed 20 MiB."""
    command = [sys.executable, "-c", BLOCKS, how]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries keep no blocks, or have no mallopt"
)
def test_large_block_is_returned():
    assert kept_bytes("default") > 15 << 20, "otherwise return_large is not needed"
    assert kept_bytes("return_large") < 5 << 20
