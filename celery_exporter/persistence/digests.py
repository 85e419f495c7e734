"""The digests of messages in a state file, of which each record has what changed since the one before.

All 20,000 of a shard behind a relay would be most of what it writes. New digests come at the end of the list,
and old ones leave it at the beginning.
"""

from __future__ import annotations

import struct

from msgspec import Struct

#: Size of a digest. msgpack would need a byte more for the number.
DIGEST_BYTES = 8


class DigestChanges(Struct):
    """How many digests are gone, from the beginning of the list, and those that were added at its end."""

    gone: int = 0
    added: bytes = b""


class DigestRecorder:
    """Records how a list of digests changes."""

    def __init__(self) -> None:
        self._recorded: list[int] = []

    def changes(self, digests: list[int], *, everything: bool) -> DigestChanges:
        """Return what changed since the last call; `everything` if it is a new file."""
        before: list[int] = [] if everything else self._recorded
        self._recorded = digests
        kept = before[before.index(digests[0]) :] if digests and digests[0] in before else []
        if digests[: len(kept)] != kept:  # the order changed: the whole list is written
            kept = []
        added = digests[len(kept) :]
        return DigestChanges(len(before) - len(kept), struct.pack(f">{len(added)}Q", *added))


class SavedDigests:
    """The list of digests that follows from all changes since the beginning."""

    def __init__(self) -> None:
        self._packed = bytearray()  # which removes its beginning without a copy of the rest

    def apply(self, changes: DigestChanges) -> None:
        """Apply the next changes."""
        del self._packed[: changes.gone * DIGEST_BYTES]
        self._packed += changes.added

    def digests(self) -> list[int]:
        """Return the list; raise ValueError if it is damaged."""
        if len(self._packed) % DIGEST_BYTES:
            raise ValueError("the digests of messages are incomplete")
        return [digest for (digest,) in struct.iter_unpack(">Q", self._packed)]
