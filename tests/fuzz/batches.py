"""Batches as JSON texts made by hand, so that they may hold what no serialiser writes."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hypothesis import strategies as st
from unit.core.cluster_driver import T0

from celery_exporter.core.events import WORKER_TYPES
from celery_exporter.core.transitions import EFFECTS
from celery_exporter.core.types import State

# -- texts and values, as they stand in the body ---------------------------------------------------------

#: What breaks labels, lines, logs, Go's lexers and badly written escapes.
AWKWARD = (
    "\\\"'\n\r\t{}[]=,:;# %$\x00\x01\x0b\x1c\x1f\x7f\x85\u2028\u2029\u00a0\ufeff\ufffd\uffff\U0001f600aA0."
)
characters = st.sampled_from(AWKWARD) | st.characters(exclude_categories=["Cs"])
labels = (
    st.text(characters, min_size=1, max_size=12)
    | st.sampled_from(["add", "unknown", "other", "{0}", "le", "+Inf", "NaN", "\\n", "\\", '"', "n" * 255])
    | st.just("\U0001f600" * 255)
)

#: Ways to write the same text.
SPELLINGS = (
    lambda text: json.dumps(text).encode(),
    lambda text: json.dumps(text, ensure_ascii=False).encode(),
    lambda text: b'"' + b"".join(b"\\u%04x" % unit for unit in _units(text)) + b'"',
)
spaces = st.sampled_from([b"", b"", b"", b" ", b"\n", b"\t \r\n"])


def _units(text: str) -> list[int]:
    raw = text.encode("utf-16-be")
    return [int.from_bytes(raw[index : index + 2], "big") for index in range(0, len(raw), 2)]


#: Values of fields that nobody reads: they cost nothing, whatever they are.
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
#: Texts that are no value, between brackets that balance.
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
#: JSON, and no object with a type that is a text.
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
#: What makes a bad event of a good one, by field.
BAD = {
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
#: What it is bad to leave out.
NEEDED = ("type", "timestamp", "hostname", "uuid")


# -- events ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What a good event has to become."""

    state: State | None  # None: it is not of a task
    name: str
    queue: str
    worker: str | None  # whom we hear of by it; clients are none


Field = tuple[str, bytes]
#: The text of an item, and what it says; None for one malformed.
Item = tuple[bytes, Told | None]

#: Fields that an event may have, null among their values.
MAY_HAVE = {
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


_KINDS = st.sampled_from(sorted(EFFECTS)) | st.sampled_from([*WORKER_TYPES, "shop-order-placed", ""])


@st.composite
def fields(draw: st.DrawFn, number: int, kinds: st.SearchStrategy[str]) -> tuple[list[Field], Told]:
    """A good event, of a task of its own if it is of one."""
    kind = draw(kinds)
    name, queue = draw(st.none() | labels), draw(st.none() | labels)
    host = draw(labels | labels.map(lambda text: f"w@{text}"[:255]))
    spell = draw(st.sampled_from(SPELLINGS))
    made = [
        ("type", spell(kind)),
        ("timestamp", f"{T0 + draw(st.integers(0, 100))}".encode()),
        ("hostname", spell(host)),
        ("uuid", spell(f"{number} {draw(labels)}".encode()[:255].decode(errors="ignore"))),
        ("name", b"null" if name is None else spell(name)),
        ("queue", b"null" if queue is None else spell(queue)),
    ]
    made += [
        (field, draw(st.sampled_from(MAY_HAVE[field])).encode())
        for field in draw(st.lists(st.sampled_from(sorted(MAY_HAVE)), unique=True, max_size=4))
    ]
    of_worker = kind in WORKER_TYPES or (kind in EFFECTS and kind != "task-sent")
    told = Told(
        EFFECTS[kind].counts if kind in EFFECTS else None,
        name or "unknown",
        queue or "unknown",
        host if of_worker else None,
    )
    return draw(st.permutations(made)), told


@st.composite
def good(draw: st.DrawFn, number: int) -> Item:
    """The same with fields that do not matter, and values that the last of their name overrules."""
    made, told = draw(fields(number, _KINDS))
    ignored = draw(
        st.lists(st.tuples(st.sampled_from(["args", "x", "", "Type"]), st.sampled_from(IGNORED)), max_size=2)
    )
    overruled = draw(
        st.lists(st.sampled_from([(key, value) for key, bad in BAD.items() for value in bad]), max_size=1)
    )
    overruled = [(key, value) for key, value in overruled if key in dict(made)]
    return draw(objects([*overruled, *draw(st.permutations(ignored)), *made])), told


@st.composite
def bad(draw: st.DrawFn, number: int) -> Item:
    """One field of a good event of a task made bad, or left out."""
    made, _ = draw(fields(number, st.sampled_from(sorted(EFFECTS))))
    key = draw(st.sampled_from(sorted(BAD)))
    rest = [pair for pair in made if pair[0] != key]
    if key not in NEEDED or draw(st.booleans()):
        rest.insert(draw(st.integers(0, len(rest))), (key, draw(st.sampled_from(BAD[key]))))
    return draw(objects(rest)), None


@st.composite
def objects(draw: st.DrawFn, pairs: list[Field]) -> bytes:
    space = draw(spaces)
    spell = draw(st.sampled_from(SPELLINGS))
    texts = [spell(key) + space + b":" + value for key, value in pairs]
    return b"{" + space + (space + b"," + space).join(texts) + space + b"}"


nonsense = st.sampled_from(NO_JSON + NO_EVENT).map(lambda text: (text, None))

#: What follows the last item: the end, or none, which is one malformed.
endings = st.sampled_from(
    [(b"]", 0)] * 6 + [(b"", 1), (b',{"type":', 1), (b',"', 1), (b"]x", 1), (b",[[]", 1), (b"]]", 1)]
)


@dataclass(frozen=True)
class Batch:
    body: bytes
    told: list[Told]
    malformed: int


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    kinds = draw(st.lists(st.sampled_from([good, good, bad, None]), max_size=6))
    items = [draw(nonsense if kind is None else kind(number)) for number, kind in enumerate(kinds)]
    ending, broken = draw(endings)
    if not items and ending.startswith(b","):
        ending = b""
    if items and not ending:  # nobody knows whether the last one was all
        items[-1], broken = (items[-1][0], None), 0
    space = draw(spaces)
    start = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b" "]))
    body = start + b"[" + (space + b"," + space).join(text for text, _ in items) + space + ending
    told = [said for _, said in items if said is not None]
    return Batch(body, told, len(items) - len(told) + broken)
