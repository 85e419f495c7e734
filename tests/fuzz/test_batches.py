"""The invariant for batches with known results. See `fuzz`."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import example, given

from celery_exporter.core.task_names import clipped
from celery_exporter.core.transitions import EFFECTS
from celery_exporter.core.types import State

from . import budget
from .batches import AWKWARD, IGNORED, INVALID, NO_EVENT, NO_JSON, REQUIRED, Batch, Expected, batches
from .pipeline import Pipeline

LABELS = [(), ("queue_name",), ("queue_name", "worker")]


def check(batch: Batch, labels: tuple[str, ...]) -> None:
    """Assert that a batch has its expected events and malformed events."""
    budget.count()
    pipeline = Pipeline(labels=labels)
    decoded = pipeline.feed(batch.body)
    assert pipeline.malformed.total() == batch.malformed, pipeline.malformed
    assert len(decoded) == len(batch.events) + batch.malformed
    pipeline.wait(pipeline.cluster.limits.reorder_window + 1)
    for page in pipeline.pages():
        counted = page.by("celery_tasks_total", "state", "task_name", "queue_name", "worker")
        assert {key: value for key, value in counted.items() if value} == transitions(batch.events, labels)
        assert page.total("celery_exporter_events_total") == len(batch.events)
        workers = {event.worker for event in batch.events if event.worker and is_short(event.worker)}
        assert page.label_values("worker", "celery_worker_up") == workers
        hosts = {worker.partition("@")[2] for worker in workers}
        assert page.label_values("hostname", "celery_worker_up") == hosts


def transitions(events: list[Expected], labels: tuple[str, ...]) -> Counter[tuple[str, ...]]:
    """Return the expected transitions by state and label values."""
    return Counter(
        (
            event.state.name,
            clipped(event.name),
            clipped(event.queue) if "queue_name" in labels else "",
            worker_label(event.worker) if "worker" in labels else "",
        )
        for event in events
        if event.state is not None
    )


def worker_label(worker: str | None) -> str:
    """Return the label value of a worker; a name that is too long is `other`."""
    return (worker or "") if is_short(worker or "") else "other"


def is_short(name: str) -> bool:
    """Return whether a name is short enough for a label."""
    return clipped(name) == name


GOOD = Expected(State.PENDING, "good", "good", None)
FIELDS = {
    "type": b'"task-sent"',
    "timestamp": b"1.5",
    "hostname": b'"h"',
    "uuid": b'"u"',
    "name": b'"good"',
    "queue": b'"good"',
}


def event(**changed: bytes | None) -> bytes:
    """Return a valid event with some fields changed; None removes a field."""
    fields = {**FIELDS, **changed}
    return b"{" + b",".join(b'"%s":%s' % (key.encode(), text) for key, text in fields.items() if text) + b"}"


MALFORMED = {
    **{
        f"{key} is {value[:20]!r}": event(**{key: value})
        for key, values in INVALID.items()
        for value in values
    },
    **{f"{key} is missing": event(**{key: None}) for key in REQUIRED},
    **{f"{text[:20]!r}": text for text in (*NO_JSON, *NO_EVENT, b"")},
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_event_between_two_valid_ones(text):
    others = (event(uuid=b'"a"'), event(uuid=b'"b"'))
    check(
        Batch(b"[" + text.join((others[0] + b",", b"," + others[1])) + b"]", [GOOD] * 2, 1), ("queue_name",)
    )


NULL = {
    f"{key} is null": event(**{key: b"null"}) for key in INVALID if key not in (*REQUIRED, "name", "queue")
}
VALID = {**NULL, **{f"{text[:20]!r} is ignored": event(args=text) for text in IGNORED}}


@pytest.mark.parametrize("text", VALID.values(), ids=VALID)
def test_a_valid_event_between_a_malformed_and_a_valid_one(text):
    check(Batch(b"[5," + text + b"," + event(uuid=b'"b"') + b"]", [GOOD] * 2, 1), ("queue_name",))


def test_every_awkward_character_is_exposed_unchanged():
    texts = [*AWKWARD, *(f"a{character}b" for character in AWKWARD), AWKWARD, *("n" * 255, "\\" * 255)]
    expected = [Expected(State.STARTED, text, text, text) for text in texts]
    encoded = [json.dumps(text).encode() for text in texts]
    events = [
        event(type=b'"task-started"', uuid=b'"%d"' % index, name=text, queue=text, hostname=text)
        for index, text in enumerate(encoded)
    ]
    check(Batch(b"[" + b",".join(events) + b"]", expected, 0), ("queue_name", "worker"))


@pytest.mark.parametrize("kind", ["task-sent", *EFFECTS])
def test_a_deferred_event_of_any_type_has_no_long_texts(kind):
    long = json.dumps("x" * 5_000).encode()
    body = event(type=json.dumps(kind).encode(), queue=None, exception=long, traceback=long)
    pipeline = Pipeline()
    assert len(pipeline.feed(body)) == 1  # `feed` checks deferred events


@pytest.mark.parametrize("labels", LABELS, ids=str)
@budget.examples(100)
@given(batch=batches())
@example(batch=Batch(b"", [], 1))
@example(batch=Batch(b"[]", [], 0))
@example(batch=Batch(b"[", [], 1))
def test_valid_events_of_a_batch_are_counted_and_each_invalid_one_is_malformed(batch, labels):
    check(batch, labels)
