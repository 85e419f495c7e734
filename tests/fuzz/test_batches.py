"""The invariant, for batches of which it is known what is good in them. See `fuzz`."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import example, given

from celery_exporter.core.task_names import clipped
from celery_exporter.core.transitions import EFFECTS
from celery_exporter.core.types import State

from . import budget
from .batches import AWKWARD, BAD, IGNORED, NEEDED, NO_EVENT, NO_JSON, Batch, Told, batches
from .pipeline import Pipeline

LABELS = [(), ("queue_name",), ("queue_name", "worker")]


def judge(batch: Batch, labels: tuple[str, ...]) -> None:
    budget.count()
    pipeline = Pipeline(labels=labels)
    found = pipeline.feed(batch.body)
    assert pipeline.malformed.total() == batch.malformed, pipeline.malformed
    assert len(found) == len(batch.told) + batch.malformed
    pipeline.wait(pipeline.cluster.limits.reorder_window + 1)
    for page in pipeline.pages():
        counted = page.by("celery_tasks_total", "state", "task_name", "queue_name", "worker")
        assert {key: value for key, value in counted.items() if value} == expected(batch.told, labels)
        assert page.total("celery_exporter_events_total") == len(batch.told)
        workers = {told.worker for told in batch.told if told.worker and is_short(told.worker)}
        assert page.label_values("worker", "celery_worker_up") == workers
        hosts = {worker.partition("@")[2] for worker in workers}
        assert page.label_values("hostname", "celery_worker_up") == hosts


def expected(told: list[Told], labels: tuple[str, ...]) -> Counter[tuple[str, ...]]:
    return Counter(
        (
            each.state.name,
            clipped(each.name),
            clipped(each.queue) if "queue_name" in labels else "",
            worker_label(each.worker) if "worker" in labels else "",
        )
        for each in told
        if each.state is not None
    )


def worker_label(worker: str | None) -> str:
    """Return what a worker is called; one with a name that is too long is refused."""
    return (worker or "") if is_short(worker or "") else "other"


def is_short(name: str) -> bool:
    return clipped(name) == name


GOOD = Told(State.PENDING, "good", "good", None)
FIELDS = {
    "type": b'"task-sent"',
    "timestamp": b"1.5",
    "hostname": b'"h"',
    "uuid": b'"u"',
    "name": b'"good"',
    "queue": b'"good"',
}


def event(**changed: bytes | None) -> bytes:
    fields = {**FIELDS, **changed}
    return b"{" + b",".join(b'"%s":%s' % (key.encode(), text) for key, text in fields.items() if text) + b"}"


ODD = {
    **{f"{key} is {value[:20]!r}": event(**{key: value}) for key, values in BAD.items() for value in values},
    **{f"{key} is missing": event(**{key: None}) for key in NEEDED},
    **{f"{text[:20]!r}": text for text in (*NO_JSON, *NO_EVENT, b"")},
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_one_malformed_between_two_good_events(text):
    others = (event(uuid=b'"a"'), event(uuid=b'"b"'))
    judge(
        Batch(b"[" + text.join((others[0] + b",", b"," + others[1])) + b"]", [GOOD] * 2, 1), ("queue_name",)
    )


NULL = {f"{key} is null": event(**{key: b"null"}) for key in BAD if key not in (*NEEDED, "name", "queue")}
FINE = {**NULL, **{f"{text[:20]!r} is ignored": event(args=text) for text in IGNORED}}


@pytest.mark.parametrize("text", FINE.values(), ids=FINE)
def test_a_good_event_between_a_malformed_one_and_a_good_one(text):
    judge(Batch(b"[5," + text + b"," + event(uuid=b'"b"') + b"]", [GOOD] * 2, 1), ("queue_name",))


def test_each_awkward_character_is_shown_as_it_was_sent():
    texts = [*AWKWARD, *(f"a{character}b" for character in AWKWARD), AWKWARD, *("n" * 255, "\\" * 255)]
    told = [Told(State.STARTED, text, text, text) for text in texts]
    spelt = [json.dumps(text).encode() for text in texts]
    events = [
        event(type=b'"task-started"', uuid=b'"%d"' % index, name=text, queue=text, hostname=text)
        for index, text in enumerate(spelt)
    ]
    judge(Batch(b"[" + b",".join(events) + b"]", told, 0), ("queue_name", "worker"))


@pytest.mark.parametrize("kind", ["task-sent", *EFFECTS])
def test_an_event_of_any_type_waits_without_its_long_texts(kind):
    long = json.dumps("x" * 5_000).encode()
    body = event(type=json.dumps(kind).encode(), queue=None, exception=long, traceback=long)
    pipeline = Pipeline()
    assert len(pipeline.feed(body)) == 1  # which looks at what waits


@pytest.mark.parametrize("labels", LABELS, ids=str)
@budget.tries(100)
@given(batch=batches())
@example(batch=Batch(b"", [], 1))
@example(batch=Batch(b"[]", [], 0))
@example(batch=Batch(b"[", [], 1))
def test_the_good_events_of_a_batch_count_and_each_bad_one_is_one_malformed(batch, labels):
    judge(batch, labels)
