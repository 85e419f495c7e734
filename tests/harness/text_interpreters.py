"""What readers of printed text make of it: a terminal emulator, and bash."""

from __future__ import annotations

import subprocess
from functools import cache
from typing import Any

import pyte


class _Orders:
    """A screen that notes what it is ordered to do, besides drawing text."""

    def __init__(self) -> None:
        self.drawn = ""
        self.others: list[str] = []

    def draw(self, text: str) -> None:
        self.drawn += text

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self.others.append(name)


def drawn(line: str) -> tuple[str, list[str]]:
    """Return what a terminal shows of a line, and what else it does because of it."""
    orders = _Orders()
    pyte.Stream(orders, strict=False).feed(line)
    return orders.drawn, orders.others


@cache
def _bash() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["bash", "--norc", "--noprofile"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )


def bash_words(line: str) -> list[str]:
    """Return the words that bash makes of a line; it is one process for all lines."""
    shell = _bash()
    # A command that the line itself holds, or a quotation that does not end, shows in what is answered.
    shell.stdin.write(f"printf '%s\\0' {line} $'\\x04'\n".encode())
    found = b""
    while not found.endswith(b"\x04\0"):
        piece = shell.stdout.read(65_536)
        assert piece, "bash ended"
        found += piece
    return found.decode().split("\0")[:-2]
