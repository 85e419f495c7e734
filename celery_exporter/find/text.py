"""Single tasks as text for a terminal. Pure. Texts of events are made printable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from celery_exporter.core.task_info import OPEN_STATE_NAMES, AttemptInfo, TaskInfo
from celery_exporter.quoting import printable, shell_word
from celery_exporter.status.columns import UNKNOWN, seconds
from celery_exporter.status.explanation import Explanation
from celery_exporter.status.workflow import in_tree_order, levels
from celery_exporter.web.task_answers import Problem, TaskAnswer, TaskList

#: Titles of the columns of a list.
_TITLES = ("State", "Since (UTC)", "Task", "Queue", "Worker", "Run time", "Exception", "Id")

_UNSEEN = "It was open when the exporter stopped, and nothing was seen of it since the exporter started."


def task_text(answer: TaskAnswer, now: float) -> str:
    """Return a task, its attempts and its workflow; `now` is epoch seconds."""
    task = answer.task
    facts = [
        ("task", task.task_name),
        ("state", f"{task.state}, {_ago(task.since, now)}" + (f" ({task.reason})" if task.reason else "")),
        ("queue", task.queue_name),
        ("worker", task.worker),
        ("sent by", task.client),
        ("first sent", None if task.first_sent is None else _at(task.first_sent)),
        ("exception", task.exception),
        ("args", task.args),
        ("kwargs", task.kwargs),
        ("result", task.result),
    ]
    lines = [printable(task.uuid), *(f"  {name:11}{printable(text)}" for name, text in facts if text)]
    if task.unseen_since is not None:
        since = f"{_at(task.unseen_since)} UTC, {_ago(task.unseen_since, now)}"
        lines += ["", f"{_UNSEEN} It may be over. The exporter started at {since}."]
    if task.attempts:
        lines += ["", *_aligned([_ATTEMPT_TITLES, *map(_attempt_row, task.attempts)])]
    if len(answer.workflow) > 1:
        lines += ["", "Workflow", *_tree(answer)]
    if answer.problem:
        lines += ["", printable(answer.problem)]
    if task.state in OPEN_STATE_NAMES:
        lines += ["", f"Why is it there: celery-exporter find --why {shell_word(task.uuid)}"]
    return "\n".join(lines)


def task_list_text(answer: TaskList, query: Mapping[str, str], now: float, url: str | None = None) -> str:
    """Return a table of tasks, and the command that prints the next ones; `url` is that of --url."""
    if not answer.tasks:
        none = "No task that is kept is like this. --history-file keeps more."
        return "\n".join([none, *([printable(answer.problem)] if answer.problem else [])])
    rows = [_TITLES, *(_list_row(task, now) for task in answer.tasks)]
    lines = _aligned(rows)
    if answer.next is not None:
        options = {**query, **({"url": url} if url else {}), "cursor": answer.next}
        words = [f"--{name.replace('_', '-')} {shell_word(text)}" for name, text in options.items()]
        lines += ["", f"More: celery-exporter find {' '.join(words)}"]
    if any(task.unseen_since is not None for task in answer.tasks):
        lines += ["", f"unseen: {_UNSEEN}"]
    if answer.problem:
        lines.append(printable(answer.problem))
    if not answer.is_complete:
        lines.append("There are more tasks than were searched; give --name, --queue or --state.")
    return "\n".join(lines)


def explanation_text(explanation: Explanation) -> str:
    """Return why a task is where it is, with the evidence and what cannot be known."""
    lines = [printable(explanation.sentence)]
    for title, texts in (("Evidence", explanation.evidence), ("Unknown", explanation.unknown)):
        lines += [f"{title}:", *(f"  - {printable(text)}" for text in texts)] if texts else []
    return "\n".join(lines)


def problem_text(problem: Problem) -> str:
    """Return what an exporter answered instead of a task."""
    lines = [printable(problem.error), *(f"  {printable(uuid)}" for uuid in problem.tasks)]
    if problem.hints:
        lines += ["That can mean:", *(f"  - {printable(hint)}" for hint in problem.hints)]
    return "\n".join(lines)


def _list_row(task: TaskInfo, now: float) -> tuple[str, ...]:
    return (
        _state(task),
        f"{_at(task.since)[:19]} ({_ago(task.since, now)})",
        task.task_name or UNKNOWN,
        task.queue_name or UNKNOWN,
        task.worker or UNKNOWN,
        _duration(task.runtime_seconds),
        task.exception or UNKNOWN,
        task.uuid,
    )


def _state(task: TaskInfo) -> str:
    return task.state if task.unseen_since is None else f"{task.state} (unseen)"


_ATTEMPT_TITLES = ("Attempt", "State", "Queue", "Worker", "Sent (UTC)", "Due", "Received", "Started", "Ended",
                   "Wait", "Run time", "Exception")  # fmt: skip


def _attempt_row(attempt: AttemptInfo) -> tuple[str, ...]:
    first = next((at for at in (attempt.sent, attempt.received, attempt.started, attempt.ended) if at), None)
    times = (attempt.eta, attempt.received, attempt.started, attempt.ended)
    return (
        UNKNOWN if attempt.retries is None else str(attempt.retries),
        attempt.state + (f" ({attempt.reason})" if attempt.reason else ""),
        attempt.queue_name or UNKNOWN,
        attempt.worker or UNKNOWN,
        UNKNOWN if attempt.sent is None else _at(attempt.sent),
        *(UNKNOWN if at is None or first is None else _offset(at - first) for at in times),
        _duration(attempt.queue_wait_seconds),
        _duration(attempt.runtime_seconds),
        attempt.exception or UNKNOWN,
    )


def _tree(answer: TaskAnswer) -> Iterator[str]:
    """Yield a line for each task of a workflow, below the one that sent it, the oldest first."""
    ordered = in_tree_order(answer.workflow)
    for task, depth in zip(ordered, levels(ordered), strict=True):
        mark = " <-" if task.uuid == answer.task.uuid else ""
        name, indent = printable(task.task_name or UNKNOWN), "  " * (depth + 1)
        yield f"{indent}{printable(task.uuid)}  {name}  {_state(task)}{mark}"
    if not answer.is_complete:
        yield f"  The workflow has more tasks; these are the newest {len(ordered)}."


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _at(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _ago(at: float, now: float) -> str:
    return f"in {seconds(at - now)}" if at > now else f"{seconds(now - at)} ago"


def _offset(duration: float) -> str:
    return f"{'-' if duration < 0 else '+'}{seconds(abs(duration))}"


def _duration(value: float | None) -> str:
    return UNKNOWN if value is None else seconds(value)
