"""A snapshot → what is wrong with the cluster as seen from here, and what mends it.

One table of checks, for the status page, the log of a running exporter and `doctor` alike. Pure: data and
time come in. Invariant: what is not known is no finding. A check is silent until what it waits for had time
to come; those on workers and tasks are silent while no event can arrive, for nothing is known of them then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence, Sized

from msgspec.structs import replace

from celery_exporter.core.queues import MAX_QUEUES
from celery_exporter.core.snapshot import JobView, Snapshot, WorkerView
from celery_exporter.quoting import printable, shell_word
from celery_exporter.status.finding import Finding, Severity, count, lasting, names, some
from celery_exporter.status.recent import Growth
from celery_exporter.status.threshold_checks import exceeded
from celery_exporter.status.thresholds import BY_CHECK

#: Seconds of listening after which a worker that lives was heard: three heartbeats.
PATIENCE = 6.0
#: Seconds after which one was heard that has a --heartbeat-interval, as far as people take one.
LONGEST_INTERVAL = 60
#: Seconds by which a worker's clock may differ. Waiting times between two hosts are wrong by as much.
MOST_SKEW = 5.0
#: Seconds after which an event that was refused is history. Heartbeats come every 2 s.
RECENT = 60.0
#: Seconds in which a queue has to grow for its alert, as the rule has it.
GROWING_SECONDS = 600.0
#: Queues in one command.
MOST_IN_COMMAND = 20
#: Workers of one name that went down, so that restarts seem to make new names.
CHURN = 3

#: Characters of what a broker said.
LONGEST_ERROR = 200

#: What the question to workers fails with that nobody answers.
NOBODY_ANSWERED = "no worker answered"

NO_EVENTS_REMEDY = (
    "use Redis or RabbitMQ as the broker to see workers and tasks; on this one, -Q NAMES shows the lengths "
    "of queues"
)
#: A word of RabbitMQ's reason (rabbit_reader.erl: "low on memory", "low on disk") → how that alarm is ended.
ALARM_REMEDIES = {
    "memory": (
        "rabbitmq-diagnostics memory_breakdown shows what takes the memory: consume or purge long queues, or "
        "raise vm_memory_high_watermark"
    ),
    "disk": "df -h shows the disk: free space on it, or lower disk_free_limit",
}

ENABLE_EVENTS = "celery -A yourapp control enable_events"
#: Where what mends it hangs on the broker, which is not known here.
ASK_DOCTOR = "celery-exporter doctor, with the same options, says what mends it"


def run_checks(snapshot: Snapshot, growth: Growth) -> list[Finding]:
    """Return what each check found that can be decided by now, in the order of the tables.

    `growth` is what was counted up to the snapshot in the last minutes.
    """
    checks = _applicable(snapshot)
    found = [finding for check in checks if (finding := check(snapshot))]
    found += exceeded(snapshot, growth, events=checks is CHECKS)
    return [_without_alert(finding, snapshot, growth) for finding in found]


def _without_alert(finding: Finding, snapshot: Snapshot, growth: Growth) -> Finding:
    """Take the alert off a finding about queues that do not grow: some are kept full on purpose."""
    if finding.check == "unconsumed-messages" and finding.alert and not _grew(snapshot, growth):
        return replace(finding, alert="")
    return finding


def _grew(snapshot: Snapshot, growth: Growth) -> bool:
    """Tell whether a queue without consumers is longer than it was ten minutes ago, as far as is known."""
    since = snapshot.exporter.at - GROWING_SECONDS
    moments = [lengths for at, lengths in growth.lengths if at >= since]
    for queue in snapshot.queues:
        if queue.consumers == 0 and queue.length:
            before = next((it[queue.name] for it in moments if it.get(queue.name) is not None), None)
            if before is not None and queue.length > before:
                return True
    return False


def is_decided(snapshot: Snapshot) -> bool:
    """Tell whether each check that applies has found something by now, so that more time brings no more."""
    optional = {_state, _events} | ({_blocked} if snapshot.exporter.blocked is None else set())
    decided = {check for check in _applicable(snapshot) if check(snapshot) is not None}
    return decided >= set(_applicable(snapshot)) - optional


def can_hear(snapshot: Snapshot) -> bool:
    """Tell whether events can arrive: what is silent meanwhile is not known to be down."""
    exporter = snapshot.exporter
    return exporter.broker_up and not exporter.blocked and not exporter.no_events


def _applicable(snapshot: Snapshot) -> Sequence[Callable[[Snapshot], Finding | None]]:
    exporter = snapshot.exporter
    if exporter.no_events:
        return (_transport, _queue_lengths, _state)
    if not exporter.broker_up:
        return (_subscription, _state)
    return (_subscription, _blocked, _queue_lengths, _state) if exporter.blocked else CHECKS


# -- the checks ------------------------------------------------------------------------------------------


def _transport(snapshot: Snapshot) -> Finding | None:
    """Report a transport on which no event can arrive; any other needs no word."""
    if not snapshot.exporter.no_events:
        return None
    return Finding("transport", "critical", snapshot.exporter.no_events, NO_EVENTS_REMEDY)


def _blocked(snapshot: Snapshot) -> Finding | None:
    reason = snapshot.exporter.blocked
    if reason is None:
        return None
    if not reason:
        return Finding("publishers", "ok", "RabbitMQ accepts what publishers send")
    return Finding(
        "publishers",
        "critical",
        f"RabbitMQ blocks all publishers ({_short(reason)}): no task, event or heartbeat can be sent, and no "
        "worker is taken to be down meanwhile",
        blocked_remedy(reason),
        "CeleryBrokerBlocked",
    )


def blocked_remedy(reason: str) -> str:
    """Return the commands that show and end an alarm; `reason` is RabbitMQ's own text."""
    steps = [step for word, step in ALARM_REMEDIES.items() if word in reason] or [*ALARM_REMEDIES.values()]
    return f"on the broker's host: rabbitmq-diagnostics alarms; {'; '.join(steps)}"


def _subscription(snapshot: Snapshot) -> Finding | None:
    exporter = snapshot.exporter
    if exporter.broker_up:
        return Finding("subscription", "ok", "the event subscription is open")
    if exporter.at - exporter.started < PATIENCE:
        return None
    return Finding(
        "subscription",
        "critical",
        "the event subscription on the broker is not open",
        ASK_DOCTOR,
        "CeleryExporterBlind",
    )


def _events(snapshot: Snapshot) -> Finding | None:
    """Report that nothing comes, not even heartbeats, though workers are up."""
    exporter, limit = snapshot.exporter, BY_CHECK["event-stream"].limit
    if not _up(snapshot) or exporter.listening < limit or exporter.last_event is None:
        return None
    silent = exporter.at - exporter.last_event
    if silent < limit:
        return Finding("event-stream", "ok", "events come")
    message = f"no event has come for {lasting(silent)}, though workers are up"
    return Finding("event-stream", "critical", message, ASK_DOCTOR, "CeleryExporterBlind")


def _workers(snapshot: Snapshot) -> Finding | None:
    up, down = _up(snapshot), [worker for worker in snapshot.workers if not worker.up]
    if up:
        also = f", {len(down)} went down" if down else ""
        return Finding("workers", "ok", f"{count(len(up), 'worker')} heard: {names(up)}{also}")
    if down:
        message, remedy = f"all workers are down: {names(down)}", "start them: celery -A yourapp worker -E"
        severity: Severity = "critical" if _may_work_wait(snapshot) else "warning"
        return Finding("workers", severity, message, remedy, _no_worker(snapshot))
    if not _listened(snapshot):
        return None
    return Finding(
        "workers",
        "critical" if _may_work_wait(snapshot) else "warning",
        f"no worker was heard in {snapshot.exporter.listening:.0f} s",
        "start one: celery -A yourapp worker -E; if some run, give this the broker_url (host, virtual host "
        "or database), broker_transport_options and event_exchange that they have",
        _no_worker(snapshot),
    )


def _no_worker(snapshot: Snapshot) -> str:
    """Return the alert, which does not fire while nothing waits for a worker."""
    return "CeleryNoWorkersOnline" if _may_work_wait(snapshot) else ""


def _may_work_wait(snapshot: Snapshot) -> bool:
    """Tell whether work waits, in a queue or unacknowledged, or may, since no queue is measured."""
    lengths = [queue.length for queue in snapshot.queues if queue.length is not None]
    return not lengths or any(lengths) or bool(snapshot.exporter.unacked)


def _heartbeats(snapshot: Snapshot) -> Finding | None:
    up = _up(snapshot)
    if not up or not _listened(snapshot):
        return None
    silent = [worker for worker in up if worker.heartbeat is None]
    if not silent:
        return Finding("heartbeats", "ok", f"heartbeats come from {count(len(up), 'worker')}")
    return Finding(
        "heartbeats",
        "critical"
        if len(silent) == len(up) and snapshot.exporter.listening > LONGEST_INTERVAL
        else "warning",
        f"no heartbeat from {names(silent)}",
        "start workers with -E and without --without-heartbeat, and give this their event_exchange "
        f"(--event-exchange); with a --heartbeat-interval of theirs, wait for {LONGEST_INTERVAL} s",
    )


def _answers(snapshot: Snapshot) -> Finding | None:
    up, asked = _up(snapshot), _collector(snapshot, "workers")
    if not up or asked is None or asked.success is None or not _listened(snapshot):
        return None
    if asked.error not in ("", NOBODY_ANSWERED) and not snapshot.exporter.refused_answers:
        message = f"workers could not be asked: {_short(asked.error)}"
        return Finding("remote-control", "warning", message, ASK_DOCTOR)
    refused = sorted(snapshot.exporter.refused_answers)
    if refused:
        return Finding(
            "remote-control",
            "warning",
            f"workers answer in {names(refused)}, which is not accepted here, so their pools and queues are "
            "not known",
            "task_serializer = 'json' in the workers' configuration, or here that serialiser added to "
            "--accept-content (pickle only where all who can publish may run code)",
        )
    # Before Celery 5.3 they do not tell the kind of their pool.
    mute = [worker for worker in up if worker.pool is None and worker.pool_size is None]
    if not mute:
        return Finding("remote-control", "ok", f"{count(len(up), 'worker')} answered")
    return Finding(
        "remote-control",
        "warning",
        f"no answer from {names(mute)}, so its pool and queues are not known",
        "worker_enable_remote_control = True in the workers' configuration; if they have a control_exchange "
        "there, --control-exchange with its name here; if their accept_content lacks json, --accept-content "
        "here with what it has; one that is busy in the solo pool answers later",
    )


def _task_events(snapshot: Snapshot) -> Finding | None:
    up = _up(snapshot)
    silent = [worker for worker in up if worker.events is False]
    sending = [worker for worker in up if worker.events]
    if silent:
        return Finding(
            "task-events",
            "warning" if sending else "critical",
            f"no task events from {_workers_named(silent)}",
            f"start workers with -E, or now: {ENABLE_EVENTS}",
            "CeleryTaskEventsDisabled",
        )
    if sending:
        return Finding("task-events", "ok", f"task events come from {names(sending)}")
    if not up or not _listened(snapshot):
        return None
    return Finding(
        "task-events", "ok", "no task has run yet, so whether workers send task events is not known"
    )


def _task_sent(snapshot: Snapshot) -> Finding | None:
    sent, received = snapshot.events["task-sent"], snapshot.events["task-received"]
    if sent:
        return Finding("task-sent-events", "ok", "clients say what they send")
    if not received or not _listened(snapshot):
        return None
    return Finding(
        "task-sent-events",
        "warning",
        f"{count(received, 'task')} received, and since this listens no client said that it sent one: "
        "waiting times, and queues where a worker has several, are not known",
        "task_send_sent_event = True in the configuration of whoever sends tasks",
    )


def _clocks(snapshot: Snapshot) -> Finding | None:
    known = [(worker, worker.clock_skew) for worker in _up(snapshot) if worker.clock_skew is not None]
    if not known or not _listened(snapshot):
        return None
    off = {worker.name: skew for worker, skew in known if abs(skew) > MOST_SKEW}
    if not off:
        most = max((abs(skew) for _, skew in known), default=0.0)
        return Finding("clock-skew", "ok", f"clocks of workers are off by {most:.1f} s at most")
    alike = len(off) == len(known) > 1 and len({skew > 0 for skew in off.values()}) == 1
    whose = "this host, from which all differ" if alike else "their host"
    return Finding(
        "clock-skew",
        "warning",
        "clocks differ from the one here: "
        + some([f"{printable(name)} by {skew:+.0f} s" for name, skew in sorted(off.items())]),
        f"set the clock of {whose}: timedatectl set-ntp true",
    )


def _queue_lengths(snapshot: Snapshot) -> Finding | None:
    measured = _collector(snapshot, "queues")
    if measured is None or measured.success is None:
        return None
    if not measured.success:
        found = f"queues could not be measured: {_short(measured.error)}"
        return Finding("queue-lengths", "warning", found, ASK_DOCTOR)
    if snapshot.exporter.unmeasured:
        found = (
            f"workers consume {names(snapshot.exporter.unmeasured)}, whose length the broker does not tell"
        )
        return Finding("queue-lengths", "warning", found, ASK_DOCTOR)
    return Finding("queue-lengths", "ok", f"{count(len(snapshot.exporter.queue_stats), 'queue')} measured")


def _queue_names(snapshot: Snapshot) -> Finding | None:
    if snapshot.queue_table_full:
        return too_many_queues(snapshot.queue_names)
    return Finding("queue-names", "ok", f"{count(snapshot.queue_names, 'queue name')} known, none left out")


def too_many_queues(number: int) -> Finding:
    """Return the finding that there are more queues than are measured."""
    return Finding(
        "queue-names",
        "warning",
        f"{number:,} queue names are known, and {MAX_QUEUES:,} are measured at a time: a new one takes the "
        "place of the one that was used longest ago",
        "--queue-exclude REGEX for queues that need no length, such as those made at run time; -Q NAMES for "
        "those that always need one",
    )


def _consumers(snapshot: Snapshot) -> Finding | None:
    if all(queue.consumers is None for queue in snapshot.queues) or not _listened(snapshot):
        return None
    idle = idle_queues(snapshot)
    if not idle:
        return Finding("queues-without-consumers", "ok", "no empty queue lacks a consumer")
    return Finding(
        "queues-without-consumers",
        "warning",
        f"nobody consumes {some(list(map(printable, idle)))} (empty by now)",
        f"if somebody should: {_consume(idle)}",
    )


def _backlogs(snapshot: Snapshot) -> Finding | None:
    known = [queue.name for queue in snapshot.queues if queue.consumers is not None]
    if not known or not _listened(snapshot):
        return None
    waiting = {name: length for name, length in snapshot.unconsumed.items() if length}
    if not waiting:
        dark = [name for name, length in snapshot.unconsumed.items() if length is None]
        but = f", but how many wait in {names(dark)} is not known" if dark else ""
        found = f"no message waits for nobody in {count(len(known), 'queue')} that {_is_or_are(known)} known"
        return Finding("unconsumed-messages", "ok", found + but)
    longest = sorted(waiting, key=lambda name: (-(waiting[name] or 0), name))
    # Redis knows no consumers: they are the workers that answered, which a busy solo pool cannot.
    queue_stats = snapshot.exporter.queue_stats
    told = any(name in queue_stats and queue_stats[name].consumers is not None for name in longest)
    return Finding(
        "unconsumed-messages",
        "critical" if told else "warning",
        "messages wait in queues that nobody consumes: "
        + some([f"{printable(name)} ({waiting[name]:,})" for name in longest]),
        _consume(longest),
        "CeleryQueueWithoutConsumers",
    )


def _worker_names(snapshot: Snapshot) -> Finding | None:
    """Look for one worker under two names, which alerts and dashboards take for two."""
    if not snapshot.workers:
        return None
    by_node: dict[str, list[WorkerView]] = {}
    for worker in snapshot.workers:
        by_node.setdefault(worker.name.partition("@")[0], []).append(worker)
    for group in by_node.values():
        twins = _twins(group)
        if twins:
            return Finding(
                "worker-names",
                "warning",
                f"names that differ only by how the host is written: {names(twins)}",
                "if it is one worker, let it always have one name: celery -A yourapp worker -E -n NAME@HOST",
            )
    for _, group in sorted(by_node.items()):
        down = sum(not worker.up for worker in group)
        if down >= max(CHURN, len(group) - down):
            return Finding(
                "worker-names",
                "warning",
                f"{len(group)} names that differ only by host, of which {down} are down: {names(group)}",
                "host names that outlast a restart (docker run --hostname, a StatefulSet), or here "
                "--purge-offline-worker-metrics 60",
            )
    return Finding("worker-names", "ok", f"{count(len(snapshot.workers), 'name')}, each of one worker")


def _same_names(snapshot: Snapshot) -> Finding | None:
    """Look for one name that several workers use, whose values are mixed up."""
    up = _up(snapshot)
    return same_names([worker.name for worker in up if worker.shared]) if up else None


def same_names(shared: Iterable[str]) -> Finding:
    """Return the finding about these node names, each of which several workers use."""
    shared = sorted(shared)
    if not shared:
        return Finding("duplicate-node-names", "ok", "no two workers use one node name")
    return Finding(
        "duplicate-node-names",
        "critical",
        f"several workers use the node name {names(shared)}, so their values are mixed up",
        "a node name for each: celery -A yourapp worker -E -n NAME@%h, and a hostname for each container",
    )


def _serializer(snapshot: Snapshot) -> Finding | None:
    exporter = snapshot.exporter
    if exporter.last_refused is not None and exporter.at - exporter.last_refused < RECENT:
        return Finding(
            "serializer",
            "critical",
            "events come in a serialiser that is not accepted here",
            "event_serializer = 'json' in the workers' configuration, or here --accept-content "
            "json,msgpack,yaml (pickle only where all who can publish may run code)",
        )
    if exporter.last_event is None:
        return None
    return Finding("serializer", "ok", "events come in a serialiser that is accepted")


def _state(snapshot: Snapshot) -> Finding | None:
    saving = _collector(snapshot, "state")
    if saving is None or saving.success is None:
        return None
    if saving.success:
        return Finding("state", "ok", "the state is saved")
    return Finding(
        "state",
        "warning",
        "the state cannot be saved: a restart loses what was counted since it was",
        "the exporter's log says why: no room, a folder that its user may not write into, or something else "
        "at the path of --state-file",
    )


#: In this order they are shown.
CHECKS: Sequence[Callable[[Snapshot], Finding | None]] = (
    _subscription,
    _events,
    _blocked,
    _workers,
    _heartbeats,
    _answers,
    _serializer,
    _task_events,
    _task_sent,
    _clocks,
    _worker_names,
    _same_names,
    _queue_lengths,
    _queue_names,
    _consumers,
    _backlogs,
    _state,
)


def idle_queues(snapshot: Snapshot) -> list[str]:
    """Return the names of the queues that are empty, and that nobody consumes.

    Without those that were asked for, which may have no consumer until there is work (scaling from zero).
    """
    idle = {name for name, length in snapshot.unconsumed.items() if length == 0}
    return sorted(idle.difference(snapshot.requested))


# -- what they have in common ----------------------------------------------------------------------------


def _listened(snapshot: Snapshot) -> bool:
    return snapshot.exporter.listening >= PATIENCE


def _up(snapshot: Snapshot) -> list[WorkerView]:
    return [worker for worker in snapshot.workers if worker.up]


def _collector(snapshot: Snapshot, name: str) -> JobView | None:
    return next((each for each in snapshot.exporter.jobs if each.name == name), None)


def _short(error: str) -> str:
    return printable(error)[:LONGEST_ERROR]


def _twins(workers: Iterable[WorkerView]) -> list[WorkerView]:
    """Return those of one node name whose host is that of another, written with its domain or in capitals."""
    hosts: dict[str, list[WorkerView]] = {}
    for worker in workers:
        hosts.setdefault(worker.name.partition("@")[2].lower(), []).append(worker)
    found = [each for alike in hosts.values() if len(alike) > 1 for each in alike]
    for host, alike in hosts.items():
        end = host.find(".")
        while end > 0 and not _is_address(host):
            if host[:end] in hosts:
                found += [*hosts[host[:end]], *alike]
            end = host.find(".", end + 1)
    return list({each.name: each for each in found}.values())


def _is_address(host: str) -> bool:
    return bool(re.fullmatch(r"[\d.]+", host))


def _consume(queues: list[str]) -> str:
    """Return the command that starts a worker for queues; -Q splits at commas (celery/bin/base.py)."""
    takes, others = [name for name in queues if "," not in name], [name for name in queues if "," in name]
    by_settings = f"a worker whose task_queues have {names(others)}, which -Q cannot name"
    if not takes:
        return by_settings
    first = takes[:MOST_IN_COMMAND]
    command = f"celery -A yourapp worker -E -Q {shell_word(','.join(first))}"
    if len(first) < len(takes):
        command = f"for {len(first)} of {len(takes)}: {command}"
    return f"{by_settings}, and for the others: {command}" if others else command


def _workers_named(workers: list[WorkerView]) -> str:
    return f"{'worker' if len(workers) == 1 else 'workers'} {names(workers)}"


def _is_or_are(some: Sized) -> str:
    return "is" if len(some) == 1 else "are"
