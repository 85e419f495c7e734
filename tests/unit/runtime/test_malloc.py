"""Memory that is not used any more goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: The first block teaches glibc to keep what is as large; of the others one is freed that is not the last.
BLOCKS = """
import sys, psutil
from celery_exporter.runtime import malloc
if sys.argv[1] == "return_large":
    malloc.return_large()
bytearray(24 << 20)
before = psutil.Process().memory_info().rss
table, stays = b"x" * (20 << 20), b"x" * 100_000
del table
print(psutil.Process().memory_info().rss - before)
"""


def kept(how: str) -> int:
    command = [sys.executable, "-c", BLOCKS, how]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries keep nothing, or cannot be asked"
)
def test_what_a_large_table_took_is_given_back():
    assert kept("as it is") > 15 << 20, "then nobody has to ask for it"
    assert kept("return_large") < 5 << 20
