"""How a terminal emulator and bash interpret text."""

from __future__ import annotations

import subprocess
from functools import cache
from typing import Any

import pyte


class _Screen:
    """A pyte screen that records the text that is drawn, and the names of all other operations."""

    def __init__(self) -> None:
        self.text = ""
        self.operations: list[str] = []

    def draw(self, text: str) -> None:
        self.text += text

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self.operations.append(name)


def terminal_output(line: str) -> tuple[str, list[str]]:
    """Return the text that a terminal shows for a line, and the operations that control codes trigger."""
    screen = _Screen()
    pyte.Stream(screen, strict=False).feed(line)
    return screen.text, screen.operations


@cache
def _bash() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["bash", "--norc", "--noprofile"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )


def bash_words(line: str) -> list[str]:
    """Return the words into which bash splits a line. One process reads all lines."""
    shell = _bash()
    # A command inside the line, or an open quotation, shows in the output.
    shell.stdin.write(f"printf '%s\\0' {line} $'\\x04'\n".encode())
    output = b""
    while not output.endswith(b"\x04\0"):
        chunk = shell.stdout.read(65_536)
        assert chunk, "bash ended"
        output += chunk
    return output.decode().split("\0")[:-2]
