"""Checks of queues: whether they are measured, and whether they have consumers. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from celery_exporter.core.queues import MAX_QUEUES
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.quoting import printable, shell_word
from celery_exporter.status.facts import has_discovered, job, short
from celery_exporter.status.finding import Finding, count, first_of, names
from celery_exporter.status.problems import (
    IDLE_QUEUES,
    LENGTHS_FAILED,
    LENGTHS_UNKNOWN,
    TOO_MANY_QUEUES,
    UNCONSUMED,
)
from celery_exporter.status.recent import Growth

#: Queues in one command.
MAX_QUEUES_IN_COMMAND = 20


def queue_lengths(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that the lengths of all queues can be read."""
    measuring = job(snapshot, "queues")
    if measuring is None or measuring.success is None:
        return None
    if not measuring.success:
        return LENGTHS_FAILED.finding(error=short(measuring.error))
    if snapshot.exporter.unmeasured:
        return LENGTHS_UNKNOWN.finding(queues=names(snapshot.exporter.unmeasured))
    return LENGTHS_UNKNOWN.ok(f"{count(len(snapshot.exporter.queue_stats), 'queue')} measured")


def queue_names(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that there are no more queues than are measured."""
    number = snapshot.queue_names
    if snapshot.queue_table_full:
        return TOO_MANY_QUEUES.finding(number=number, limit=MAX_QUEUES)
    return TOO_MANY_QUEUES.ok(f"{count(number, 'queue name')} known, all measured")


def queues_without_consumers(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Look for empty queues without consumers."""
    if all(queue.consumers is None for queue in snapshot.queues) or not has_discovered(snapshot):
        return None
    idle = idle_queues(snapshot)
    if not idle:
        return IDLE_QUEUES.ok("each empty queue has a consumer")
    return IDLE_QUEUES.finding(
        queues=first_of(list(map(printable, idle))), start_worker=start_worker_command(idle)
    )


def unconsumed_messages(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Look for messages in queues without consumers.

    The alert ends for a queue that has held the same messages for a day, which the exporter does not know.
    """
    checked = sum(queue.consumers is not None for queue in snapshot.queues)
    if not checked or not has_discovered(snapshot):
        return None
    lengths = {name: length for name, length in snapshot.unconsumed.items() if length}
    if not lengths:
        unmeasured = [name for name, length in snapshot.unconsumed.items() if length is None]
        but = f"; the length of {names(unmeasured)} is unknown" if unmeasured else ""
        return UNCONSUMED.ok(
            f"no messages in queues without consumers ({count(checked, 'queue')} checked){but}"
        )
    longest = sorted(lengths, key=lambda name: (-lengths[name], name))
    finding = UNCONSUMED.finding(
        queues=first_of([f"{printable(name)} ({lengths[name]:,})" for name in longest]),
        start_worker=start_worker_command(longest),
    )
    # Redis knows no consumers: they are the workers that replied, which a busy solo pool does not.
    stats = snapshot.exporter.queue_stats
    is_certain = any(name in stats and stats[name].consumers is not None for name in longest)
    return replace(finding, severity="critical" if is_certain else "warning")


def idle_queues(snapshot: Snapshot) -> list[str]:
    """Return the names of the empty queues without consumers.

    Not those of --queues, which may have no consumer until there is work (scaling from zero).
    """
    idle = {name for name, length in snapshot.unconsumed.items() if length == 0}
    return sorted(idle.difference(snapshot.requested))


def start_worker_command(queues: list[str]) -> str:
    """Return the command that starts a worker for queues; -Q splits at commas (celery/bin/base.py)."""
    for_option = [name for name in queues if "," not in name]
    others = [name for name in queues if "," in name]
    by_settings = f"a worker whose task_queues have {names(others)}, which -Q cannot name"
    if not for_option:
        return by_settings
    first = for_option[:MAX_QUEUES_IN_COMMAND]
    command = f"celery -A yourapp worker -E -Q {shell_word(','.join(first))}"
    if len(first) < len(for_option):
        command = f"for {len(first)} of {len(for_option)}: {command}"
    return f"{by_settings}, and for the others: {command}" if others else command
