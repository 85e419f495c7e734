"""What became of each task from two sources: the recorded outcomes, and the history of the exporter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from harness.event_times import MadeEvent
from harness.exporter import Exporter
from harness.outcomes import Attempt, Entry

from celery_exporter.core.task_info import TaskInfo
from celery_exporter.web.task_answers import TaskAnswer, TaskList

#: Accepted error of a time, in seconds.
TOLERANCE_SECONDS = 0.005
#: The state that ends an attempt → the event about it.
ENDS = {
    "SUCCESS": "task-succeeded",
    "FAILURE": "task-failed",
    "RETRY": "task-retried",
    "REVOKED": "task-revoked",
    "REJECTED": "task-rejected",
}
#: The ends that are recorded before their event is made.
RECORDED_BEFORE = {"SUCCESS", "RETRY"}
#: The time of an attempt → the event that it is of, besides the end.
TIMES = {"sent": "task-sent", "received": "task-received", "started": "task-started"}
#: Tasks on a page: so few that there are several.
PAGE_TASKS = 20


class RecordedAttempt(NamedTuple):
    """What was recorded of one attempt; of its last delivery if there were several."""

    retries: int
    state: str
    queue: str
    worker: str
    exception: str | None
    eta: float | None
    recorded_end: float  # epoch seconds
    times: dict[str, MadeEvent | None]  # sent, received, started, ended


class RecordedTask(NamedTuple):
    """What was recorded of one task. It is over."""

    uuid: str
    name: str
    client: str | None
    attempts: list[RecordedAttempt]


def recorded_tasks(entries: Iterable[Entry], events: Iterable[MadeEvent]) -> dict[str, RecordedTask]:
    """Return what was recorded of each task, by uuid."""
    entries_by_attempt: dict[Attempt, list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.at):
        entries_by_attempt[entry.attempt].append(entry)
    events_by_attempt: dict[Attempt, list[MadeEvent]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.begin):
        events_by_attempt[event.attempt].append(event)
    tasks: dict[str, RecordedTask] = {}
    for attempt in sorted(entries_by_attempt):
        parts = entries_by_attempt[attempt], {event.type: event for event in events_by_attempt[attempt]}
        uuid, name = attempt.uuid, parts[0][0].outcome.task
        sent = parts[1].get("task-sent")
        task = tasks.setdefault(uuid, RecordedTask(uuid, name, sent and sent.hostname, []))
        task.attempts.append(_recorded_attempt(attempt, *parts))
    return tasks


def _recorded_attempt(
    attempt: Attempt, entries: Sequence[Entry], events: Mapping[str, MadeEvent]
) -> RecordedAttempt:
    """Return an attempt from its entries, the oldest first, and the newest event of each type."""
    sent = next(entry for entry in entries if entry.outcome.state == "PENDING")
    *_, end = (entry for entry in entries if entry.outcome.state in ENDS)
    return RecordedAttempt(
        attempt.retries,
        end.outcome.state,
        sent.outcome.queue,
        end.outcome.worker,
        end.exception,
        datetime.fromisoformat(sent.eta).timestamp() if sent.eta else None,
        end.at,
        {
            **{name: events.get(kind) for name, kind in TIMES.items()},
            "ended": events.get(ENDS[end.outcome.state]),
        },
    )


def listed_tasks(exporter: Exporter) -> list[TaskInfo]:
    """Return the tasks of all pages of /api/v1/tasks; check their order."""
    tasks: list[TaskInfo] = []
    cursor: str | None = ""
    while cursor is not None:
        response = exporter.get(f"/api/v1/tasks?limit={PAGE_TASKS}&cursor={cursor}")
        assert response.status == 200, response.text
        page = msgspec.json.decode(response.body, type=TaskList)
        assert (page.is_complete, page.problem) == (True, "")
        tasks += page.tasks
        cursor = page.next
    places = [(task.since, task.uuid) for task in tasks]
    assert places == sorted(set(places), reverse=True)
    return tasks


def task_by_id(exporter: Exporter, uuid: str) -> TaskInfo:
    """Return what /api/v1/tasks/<uuid> says of a task."""
    response = exporter.get(f"/api/v1/tasks/{uuid}")
    assert response.status == 200, response.text
    answer = msgspec.json.decode(response.body, type=TaskAnswer)
    assert answer.problem == ""
    return answer.task


def differences(recorded: Mapping[str, RecordedTask], shown: Mapping[str, TaskInfo]) -> list[str]:
    """Return what the history shows otherwise than it was recorded, a line each."""
    lines = [f"{uuid} is only recorded" for uuid in recorded.keys() - shown.keys()]
    lines += [f"{uuid} is only shown" for uuid in shown.keys() - recorded.keys()]
    for uuid in recorded.keys() & shown.keys():
        task = recorded[uuid]
        lines += (f"{task.name} {uuid}: {line}" for line in _of_task(task, shown[uuid]))
    return sorted(lines)


def _of_task(task: RecordedTask, info: TaskInfo) -> Iterator[str]:
    newest = task.attempts[-1]
    yield from _unequal(
        "task",
        info,
        uuid=task.uuid,
        task_name=task.name,
        client=task.client,
        root_id=task.uuid,
        parent_id=None,
        state=newest.state,
        queue_name=newest.queue,
        worker=newest.worker,
        exception=newest.exception,
        reason=None,
    )
    yield from _late("task since", info.since, newest.times["ended"])
    yield from _late("task first_sent", info.first_sent, task.attempts[0].times["sent"])
    retries = [attempt.retries for attempt in info.attempts]
    if retries != [attempt.retries for attempt in task.attempts]:
        yield f"attempts {[(attempt.retries, attempt.state) for attempt in info.attempts]}"
        return
    for attempt, shown in zip(task.attempts, info.attempts, strict=True):
        name = f"attempt {attempt.retries}"
        yield from _unequal(
            name,
            shown,
            generation=0,
            state=attempt.state,
            queue_name=attempt.queue,
            worker=attempt.worker,
            exception=attempt.exception,
            eta=attempt.eta,
            reason=None,
        )
        for field, event in attempt.times.items():
            yield from _late(f"{name} {field}", getattr(shown, field), event)
        if attempt.state in RECORDED_BEFORE and (shown.ended or 0.0) < attempt.recorded_end:
            yield f"{name}: ended at {shown.ended}, before the task recorded it at {attempt.recorded_end}"


def _unequal(name: str, info: Any, **expected: Any) -> Iterator[str]:
    for field, value in expected.items():
        if getattr(info, field) != value:
            yield f"{name} {field}: shown {getattr(info, field)!r}, recorded {value!r}"


def _late(name: str, at: float | None, event: MadeEvent | None) -> Iterator[str]:
    """Yield a line if a time is not the one at which this event was made."""
    if event is None or at is None:
        if (event, at) != (None, None):
            yield f"{name}: shown {at}, made {event}"
    elif not event.begin - TOLERANCE_SECONDS <= at <= event.end + TOLERANCE_SECONDS:
        yield f"{name}: shown {at - event.begin:+.4f} s after it was made"
