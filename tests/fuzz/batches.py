"""Batches as JSON texts, which may contain values that no serializer writes."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hypothesis import strategies as st
from unit.core.cluster_driver import T0

from celery_exporter.core.events import MEASURED, WORKER_TYPES
from celery_exporter.core.transitions import EFFECTS
from celery_exporter.core.types import State

# -- texts and values in a body ---------------------------------------------------------------------------

#: Characters that break labels, lines, logs, Go's lexers and wrong escaping.
AWKWARD = (
    "\\\"'\n\r\t{}[]=,:;# %$\x00\x01\x0b\x1c\x1f\x7f\x85\u2028\u2029\u00a0\ufeff\ufffd\uffff\U0001f600aA0."
)
characters = st.sampled_from(AWKWARD) | st.characters(exclude_categories=["Cs"])
labels = (
    st.text(characters, min_size=1, max_size=12)
    | st.sampled_from(["add", "unknown", "other", "{0}", "le", "+Inf", "NaN", "\\n", "\\", '"', "n" * 255])
    | st.just("\U0001f600" * 255)
)

#: JSON encodings of the same string.
SPELLINGS = (
    lambda text: json.dumps(text).encode(),
    lambda text: json.dumps(text, ensure_ascii=False).encode(),
    lambda text: b'"' + b"".join(b"\\u%04x" % unit for unit in _units(text)) + b'"',
)
spaces = st.sampled_from([b"", b"", b"", b" ", b"\n", b"\t \r\n"])


def _units(text: str) -> list[int]:
    raw = text.encode("utf-16-be")
    return [int.from_bytes(raw[index : index + 2], "big") for index in range(0, len(raw), 2)]


#: Values of fields that the decoder ignores.
IGNORED = (
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e308",
    b"9" * 5_000,
    b"[" * 100 + b"]" * 100,
    b'{"a":1,"a":{"uuid":[]}}',
    rb'"\ud800"',
    rb'"\"}],[{\\"',
    b'"' + b"]}" * 500 + b'"',
)
#: Invalid JSON with balanced brackets.
NO_JSON = (
    b"nul",
    b"01",
    b"+1",
    b"0x10",
    b"1.",
    b"'a'",
    b'"\x01"',
    rb'"\x"',
    b"\xff",
    b"[1,]",
    b"{,}",
    b"{1:2}",
    b"{[}]",
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
)
#: Valid JSON that is no object with a string as type.
NO_EVENT = (
    b"5",
    b"null",
    b"true",
    b"NaN",
    b"1e999",
    b"9" * 5_000,
    b'"task-sent"',
    b"[]",
    b'[{"type":"task-sent"}]',
    b"{}",
    b'{"type":null}',
    b'{"type":7}',
    b'{"type":{}}',
)
_NO_TEXT = (b"5", b"true", b"[]", b"{}", b'""', b'"' + b"n" * 10_000 + b'"', rb'"\ud800"', rb'"\udc00x"')
_NO_COUNT = (b"-1", b"1.5", b'"1"', b"true", b"[]", b"9" * 400, b"9" * 5_000, b"NaN", b"9007199254740992")
_NO_SPAN = (b"-1", b"1e308", b"1e999", b"NaN", b"Infinity", b'"1"', b"true", b"[]", b"9" * 5_000)
#: Values that make an event invalid, by field.
INVALID = {
    "timestamp": (*_NO_SPAN, b"null", b"0", b"1e11", b"-0.0", b'"2026-01-01"'),
    "hostname": (*_NO_TEXT, b"null"),
    "uuid": (*_NO_TEXT, b"null"),
    "type": (b"null", b"5", b"[]", b"{}", b"NaN"),
    "name": _NO_TEXT,
    "queue": _NO_TEXT,
    "sw_ident": _NO_TEXT,
    "retries": _NO_COUNT,
    "pid": _NO_COUNT,
    "active": _NO_COUNT,
    "processed": _NO_COUNT,
    "runtime": _NO_SPAN,
    "freq": _NO_SPAN,
    "eta": (b"5", b"[]", rb'"\ud800"', b'"' + b"Z" * 10_000 + b'"'),
    "exception": (b"5", b"[]", b"{}", b"true"),
    "traceback": (b"5", b"[]", b"{}", b"true"),
    "requeue": (b"1", b'"true"', b"[]", b"NaN"),
    "loadavg": (b"1", b"[]", b"[1,2]", b"[1,2,NaN]", b"[1,2,3,4]", b"[1,2,1e308]", b'[1,2,"3"]', b"{}"),
}
REQUIRED = ("type", "timestamp", "hostname", "uuid")


# -- events ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """The expected result of a valid event."""

    state: State | None  # None: no task event
    name: str
    queue: str
    worker: str | None  # None for events of clients


Field = tuple[str, bytes]
#: The text of an item, and its expected result; None for a malformed one.
Item = tuple[bytes, Expected | None]

#: Optional fields with valid values.
OPTIONAL = {
    "pid": ("null", "1", "4194304"),
    "retries": ("null", "0", "3", "2147483647"),
    "runtime": ("null", "0", "0.25", "99999999999", "1e-320"),
    "eta": (
        "null",
        '"2026-01-01T00:00:00"',
        '"tomorrow"',
        '"9999-12-31T23:59:59-23:59"',
        '"0001-01-01T00:00"',
    ),
    "exception": (
        "null",
        '"ValueError(1)"',
        '"ExceptionWithTraceback()"',
        r'"\ud800Error()"',
        '"<' + "a." * 5_000 + '"',
        '"NotRegistered(' + " " * 5_000 + '"',
    ),
    "traceback": (
        "null",
        '"' + "x" * 5_000 + '"',
        '"Traceback (most recent call last):' + r"\n x" * 500 + '"',
    ),
    "requeue": ("null", "true", "false"),
    "loadavg": ("null", "[0, 1, 2.5]"),
    "freq": ("null", "2.0"),
    "processed": ("null", "7"),
}


_KINDS = st.sampled_from(sorted(EFFECTS)) | st.sampled_from(
    [*WORKER_TYPES, MEASURED, "shop-order-placed", ""]
)


@st.composite
def fields(draw: st.DrawFn, number: int, kinds: st.SearchStrategy[str]) -> tuple[list[Field], Expected]:
    """Return the fields of a valid event; each number has its own task."""
    kind = draw(kinds)
    name, queue = draw(st.none() | labels), draw(st.none() | labels)
    host = draw(labels | labels.map(lambda text: f"w@{text}"[:255]))
    spell = draw(st.sampled_from(SPELLINGS))
    pairs = [
        ("type", spell(kind)),
        ("timestamp", f"{T0 + draw(st.integers(0, 100))}".encode()),
        ("hostname", spell(host)),
        ("uuid", spell(f"{number} {draw(labels)}".encode()[:255].decode(errors="ignore"))),
        ("name", b"null" if name is None else spell(name)),
        ("queue", b"null" if queue is None else spell(queue)),
    ]
    pairs += [
        (field, draw(st.sampled_from(OPTIONAL[field])).encode())
        for field in draw(st.lists(st.sampled_from(sorted(OPTIONAL)), unique=True, max_size=4))
    ]
    of_worker = kind in WORKER_TYPES or (kind in EFFECTS and kind != "task-sent")
    expected = Expected(
        EFFECTS[kind].counts if kind in EFFECTS else None,
        name or "unknown",
        queue or "unknown",
        host if of_worker else None,
    )
    return draw(st.permutations(pairs)), expected


@st.composite
def valid(draw: st.DrawFn, number: int) -> Item:
    """Return a valid event with ignored fields and overridden values of the same name."""
    pairs, expected = draw(fields(number, _KINDS))
    names = ["args", "x", "", "Type"]
    if json.loads(dict(pairs)["type"]) != MEASURED:
        names += ["tags", "fields"]
    ignored = draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(IGNORED)), max_size=2))
    overridden = draw(
        st.lists(
            st.sampled_from([(key, value) for key, values in INVALID.items() for value in values]), max_size=1
        )
    )
    overridden = [(key, value) for key, value in overridden if key in dict(pairs)]
    return draw(objects([*overridden, *draw(st.permutations(ignored)), *pairs])), expected


@st.composite
def invalid(draw: st.DrawFn, number: int) -> Item:
    """Return a task event with one field that is invalid or missing."""
    pairs, _ = draw(fields(number, st.sampled_from(sorted(EFFECTS))))
    key = draw(st.sampled_from(sorted(INVALID)))
    rest = [pair for pair in pairs if pair[0] != key]
    if key not in REQUIRED or draw(st.booleans()):
        rest.insert(draw(st.integers(0, len(rest))), (key, draw(st.sampled_from(INVALID[key]))))
    return draw(objects(rest)), None


@st.composite
def objects(draw: st.DrawFn, pairs: list[Field]) -> bytes:
    """Return a JSON object with these fields, which may repeat names."""
    space = draw(spaces)
    spell = draw(st.sampled_from(SPELLINGS))
    texts = [spell(key) + space + b":" + value for key, value in pairs]
    return b"{" + space + (space + b"," + space).join(texts) + space + b"}"


nonsense = st.sampled_from(NO_JSON + NO_EVENT).map(lambda text: (text, None))

#: Text after the last item, and the number of malformed events in it.
endings = st.sampled_from(
    [(b"]", 0)] * 6 + [(b"", 1), (b',{"type":', 1), (b',"', 1), (b"]x", 1), (b",[[]", 1), (b"]]", 1)]
)


@dataclass(frozen=True)
class Batch:
    """A body, and its expected events and number of malformed events."""

    body: bytes
    events: list[Expected]
    malformed: int


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Return a batch of valid and invalid items."""
    kinds = draw(st.lists(st.sampled_from([valid, valid, invalid, None]), max_size=6))
    items = [draw(nonsense if kind is None else kind(number)) for number, kind in enumerate(kinds)]
    ending, malformed = draw(endings)
    if not items and ending.startswith(b","):
        ending = b""
    if items and not ending:  # the last item may be incomplete
        items[-1], malformed = (items[-1][0], None), 0
    space = draw(spaces)
    start = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b" "]))
    body = start + b"[" + (space + b"," + space).join(text for text, _ in items) + space + ending
    events = [expected for _, expected in items if expected is not None]
    return Batch(body, events, len(items) - len(events) + malformed)
