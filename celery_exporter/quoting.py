"""Texts from elsewhere on their way to a person: in terminals and logs, in commands for a shell.

A terminal obeys what is in them: ESC and the C1 controls begin commands, a carriage return or a bidirectional
override shows a line as another one. Python calls all of these not printable (str.isprintable).
"""

from __future__ import annotations

import shlex


def printable(text: str) -> str:
    """Return one line without what a terminal would obey; a question mark is in its place."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def printable_json(document: str) -> str:
    """Return a JSON document of the same value, with escapes for what a terminal would obey; lines stay."""
    if document.isprintable():
        return document
    return "".join(
        letter if letter.isprintable() or letter == "\n" else _json_escaped(letter) for letter in document
    )


def _json_escaped(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


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
