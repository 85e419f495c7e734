"""The ids of traces and spans: pure functions of task ids.

So every exporter that sees a task computes the same ids, also after a restart. The ids have the lengths of
W3C Trace Context: 16 bytes for a trace, 8 for a span.
"""

from __future__ import annotations

from hashlib import blake2b

#: Characters of a UUID: with hyphens, as Celery writes it, and without.
_UUID_LENGTHS = (36, 32)
#: No trace may have this id.
_NIL = bytes(16)


def trace_id(root: str) -> bytes:
    """Return the id of the trace of a workflow, by the id of the task that began it.

    That is the task id itself if it is a UUID, and otherwise its hash.
    """
    if len(root) in _UUID_LENGTHS:
        try:
            trace = bytes.fromhex(root.replace("-", ""))
        except ValueError:
            trace = _NIL
        if len(trace) == len(_NIL) and trace != _NIL:
            return trace
    return blake2b(root.encode(), digest_size=16).digest()


def task_span_id(uuid: str) -> bytes:
    """Return the id of the span of a task."""
    return blake2b(uuid.encode(), digest_size=8).digest()


def attempt_span_id(uuid: str, generation: int, number: float) -> bytes:
    """Return the id of the span of an attempt.

    `number` is that of the attempt; if it is unknown, the epoch second at which the attempt ended.
    """
    return blake2b(f"{uuid}\0{generation}\0{number}".encode(), digest_size=8).digest()
