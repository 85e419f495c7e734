"""Texts from elsewhere in commands that are printed to be pasted into a shell: names, paths, URLs."""

from __future__ import annotations

import shlex


def shell_word(text: str) -> str:
    """Return a text as one word of bash, in characters that a terminal shows.

    Others are bytes of UTF-8 in an ANSI-C quotation (bash(1), QUOTING). No word can have a NUL; there is a
    question mark instead.
    """
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text.replace("\0", "?"))) + "'"


def _escaped(letter: str) -> str:
    if letter in "\\'":
        return "\\" + letter
    if letter.isprintable():
        return letter
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "replace"))
