"""Measures memory and time of the worst known bodies: python -m fuzz.worst CASE

Each case needs its own process. The result is printed as JSON, for test_bounds.py.
"""

from __future__ import annotations

import bz2
import json
import lzma
import struct
import sys
import time
import zlib
from collections.abc import Callable
from itertools import pairwise

import msgspec
from unit.core.cluster_driver import heartbeat, sent

from celery_exporter.broker.codecs import CONTENT_TYPES, MAX_BODY, MAX_LOADED, MAX_YAML
from celery_exporter.broker.message import Message, events_of
from celery_exporter.core.events import Event

from . import memory

JSON, YAML, MSGPACK = (CONTENT_TYPES[name] for name in ("json", "yaml", "msgpack"))
EVENT = b'{"type":"task-sent","timestamp":1.5,"hostname":"h","uuid":"%d"}'
#: With this character, all characters of a string take four bytes in memory.
FACE = "\U0001f600".encode()
WIDE = EVENT[:-1] % 1 + b',"name":"' + FACE + b"n" * 254 + b'","queue":"' + FACE + b"q" * 254 + b'"},'
#: The shortest event that the fast decoder accepts.
SHORTEST = b'{"type":"x","timestamp":1,"hostname":"h"},'

Case = Callable[[], Message]


def filled(piece: bytes, size: int = MAX_BODY, head: bytes = b"[", tail: bytes = b"0]") -> Message:
    """Return a body that repeats a piece up to a size."""
    return Message(head + piece * ((size - len(head) - len(tail)) // len(piece)) + tail)


def batch(number: int, event: dict, *more: object) -> Message:
    return Message(json.dumps([event] * number + list(more)).encode())


def one_with(field: bytes) -> Message:
    return Message(EVENT[:-1] % 1 + b"," + field + b"}")


def yaml(text: bytes) -> Message:
    return Message(text, YAML)


def laughs(merge: bytes = b"") -> bytes:
    """Return ten lines of YAML that expand to a billion items, with aliases or with merged keys."""
    names = [b"%c" % letter for letter in b"abcdefghij"]
    lines = [b"a: &a " + (b"{x: 1}" if merge else b"[x, x, x, x, x, x, x, x, x]")]
    for before, name in pairwise(names):
        aliases = b"[" + b",".join([b"*" + before] * 9) + b"]"
        lines.append(name + b": &" + name + b" " + (b"{" + merge + aliases + b"}" if merge else aliases))
    return b"\n".join(lines)


def packed(piece: bytes, size: int = MAX_LOADED) -> Message:
    number = (size - 5) // len(piece)
    return Message(b"\xdd" + struct.pack(">I", number) + piece * number, MSGPACK)


def compressed(how: str, compress: Callable[[bytes], bytes], body: bytes) -> Message:
    return Message(compress(body), JSON, "utf-8", how)


FULL = b"[" + b",".join(EVENT % number for number in range(200_000)) + b"]"

#: Name → the message, and the numbers of valid and malformed events; None: any number.
CASES: dict[str, tuple[Case, int | None, int | None]] = {
    "10 MB of arguments": (lambda: batch(1, sent(args="x" * 10_000_000)), 1, 0),
    "100,000 events": (lambda: batch(100_000, {**sent(), "args": "x" * 60}), 100_000, 0),
    "100,000 events and an invalid one": (
        lambda: batch(100_000, {**sent(), "args": "x" * 60}, 5),
        100_000,
        1,
    ),
    "100,000 heartbeats": (lambda: batch(100_000, heartbeat()), 100_000, 0),
    "200,000 events, inflated": (lambda: compressed("gzip", zlib.compress, FULL), 200_000, 0),
    "more events than MAX_ITEMS": (
        lambda: filled(SHORTEST),
        200_000,
        1,
    ),
    "events without fields": (lambda: filled(b'{"type":""},'), 200_000, 1),
    "numbers": (lambda: filled(b"0,"), 0, 200_001),
    "lists": (lambda: filled(b"[],"), 0, 200_001),
    "an object full of objects": (lambda: filled(b'{"":0},', head=b'[{"x":[', tail=b"NaN]}]"), 0, 1),
    "objects of almost a megabyte": (
        lambda: filled(b'{"x":[' + b'{"":0},' * 145_000 + b"NaN]},"),
        0,
        None,
    ),
    "strings that are wide in memory": (lambda: filled(WIDE), None, 1),
    "one string that is wide in memory": (
        lambda: one_with(b'"exception":"' + FACE + b"x" * (MAX_BODY - 100) + b'"'),
        1,
        0,
    ),
    "brackets": (lambda: filled(b"[", tail=b""), 0, 1),
    "brackets that are closed": (lambda: filled(b"{}[]", head=b"[[", tail=b"]]"), 0, 1),
    "quotes": (lambda: filled(b'"\\",', head=b"[[", tail=b"]]"), 0, 1),
    "escapes": (lambda: filled(b'\\"x', head=b'["', tail=b'"]'), 0, 1),
    "spaces": (lambda: filled(b" ", tail=b""), 0, 1),
    "commas": (lambda: filled(b",", tail=b""), 0, 200_001),
    "digits": (lambda: one_with(b'"pid":' + b"9" * 20_000_000), 0, 1),
    "one byte too many": (lambda: Message(b" " * (MAX_BODY + 1)), 0, 1),
    "a gzip bomb": (lambda: compressed("gzip", zlib.compress, b" " * (4 * MAX_BODY)), 0, 1),
    "a bzip2 bomb": (lambda: compressed("bzip2", bz2.compress, b" " * (4 * MAX_BODY)), 0, 1),
    "an xz bomb": (lambda: compressed("xz", lzma.compress, b" " * (4 * MAX_BODY)), 0, 1),
    "an xz window of a gigabyte": (
        lambda: Message(b"\x5d" + struct.pack("<IQ", 2**30, 5) + bytes(50), JSON, "utf-8", "xz"),
        0,
        1,
    ),
    "YAML, a billion laughs": (lambda: yaml(laughs()), 0, 1),
    "YAML, a billion merged keys": (lambda: yaml(laughs(b"<<: ")), 0, 1),
    "YAML, an event a million times": (lambda: yaml(b"- &a {type: x}\n" + b"- *a\n" * 50_000), 0, 1),
    "YAML, full": (lambda: yaml((b"- a: [[], {}]\n" * MAX_YAML)[: MAX_YAML // 14 * 14]), 0, None),
    "YAML, deep": (lambda: yaml(b"[" * MAX_YAML), 0, 1),
    "YAML, numbers in base 60": (lambda: yaml(b"1" + b":59" * 80_000), 0, 1),
    "YAML, too long": (lambda: yaml(b"#" * MAX_YAML + b"\n"), 0, 1),
    "msgpack, lists": (lambda: packed(b"\x90"), 0, None),
    "msgpack, objects": (lambda: packed(b"\x81\xa0\x00"), 0, None),
    "msgpack, events": (
        lambda: packed(msgspec.msgpack.encode({"type": "x"})),
        None,
        0,
    ),
    "msgpack, a list with a huge declared size": (lambda: Message(b"\xdd\xff\xff\xff\xff", MSGPACK), 0, 1),
}

#: The cases of a short run: the worst of each kind.
SHORT_RUN = (
    "10 MB of arguments",
    "100,000 events and an invalid one",
    "200,000 events, inflated",
    "events without fields",
    "numbers",
    "an object full of objects",
    "strings that are wide in memory",
    "an xz bomb",
    "YAML, a billion laughs",
    "YAML, a billion merged keys",
    "msgpack, lists",
)


def measure(name: str) -> dict[str, float]:
    """Decode the message of a case, and return memory, time and numbers of events."""
    message = CASES[name][0]()
    watch, begin = memory.Watch(), time.process_time()
    decoded = events_of(message, {JSON, YAML, MSGPACK})
    valid = sum(isinstance(event, Event) for event in decoded)
    return {
        "growth": watch.growth(),
        "seconds": time.process_time() - begin,
        "valid": valid,
        "malformed": len(decoded) - valid,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
