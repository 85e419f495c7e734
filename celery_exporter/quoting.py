"""Escapes and shortens texts from external sources, for terminals, logs and shell commands.

A terminal executes control sequences in a text: ESC and the C1 controls begin commands, and a carriage return
or a bidirectional override makes a line look like another one. None of these is printable (str.isprintable).
"""

from __future__ import annotations

import shlex
import unicodedata


def printable(text: str) -> str:
    """Return one line in which a question mark replaces each character that is not printable."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def visible(text: str) -> str:
    """Return a text in which U+FFFD replaces what is invisible or combines with other characters, too.

    So each character takes a known number of terminal cells.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() and unicodedata.category(character) not in {"Mn", "Me"}
        else "\N{REPLACEMENT CHARACTER}"
        for character in unicodedata.normalize("NFC", text)
    )


def terminal_cells(text: str) -> int:
    """Return the number of terminal cells that a visible text takes."""
    return len(text) + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def shorten(text: str, cells: int) -> str:
    """Return a visible text in at most so many cells, 1 or more. A longer text has … in its middle."""
    shown, kept = text, min(len(text), cells)
    while terminal_cells(shown) > cells:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return shown


def encodable(text: str, encoding: str | None) -> str:
    """Return a text in which a question mark replaces what an encoding, or ASCII, does not have."""
    chosen = encoding or "ascii"
    return text.encode(chosen, "replace").decode(chosen)


def printable_json(document: str) -> str:
    """Return a JSON document with the same value, whose characters that are not printable are escaped.

    Line breaks stay.
    """
    if document.isprintable():
        return document
    return "".join(
        character if character.isprintable() or character == "\n" else _json_escaped(character)
        for character in document
    )


def _json_escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def shell_word(text: str) -> str:
    """Return a text quoted as one word of bash, in printable characters.

    Other characters become escaped bytes of UTF-8 in ANSI-C quotes (bash(1), QUOTING). A question mark
    replaces NUL, which no word can contain.
    """
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_ansi_c_escaped, text.replace("\0", "?"))) + "'"


def _ansi_c_escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "replace"))
