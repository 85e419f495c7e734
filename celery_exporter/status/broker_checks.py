"""Checks of the broker, the event subscription and the exporter's own state. Pure."""

from __future__ import annotations

import re

from celery_exporter.core.snapshot import OutageView, Snapshot
from celery_exporter.status.facts import DISCOVERY_SECONDS, NO_ANSWER, job, short, workers_up
from celery_exporter.status.finding import Finding, duration
from celery_exporter.status.problems import (
    CORRECT_ADDRESS,
    CORRECT_HOST,
    EVENTS_REJECTED,
    NO_EVENTS,
    NOT_SUBSCRIBED,
    NOT_SUBSCRIBED_YET,
    PUBLISHERS_BLOCKED,
    SILENCE,
    STATE_NOT_SAVED,
)
from celery_exporter.status.recent import Growth
from celery_exporter.status.thresholds import BY_ALERT

#: Seconds for which a rejected event counts as current. Heartbeats arrive every 2 s.
REJECTED_RECENTLY_SECONDS = 60.0

#: What drivers answer if no server is reached (regular expression) → what helps.
ADDRESS_REMEDIES = {
    "refused|unreachable|No route to host": CORRECT_ADDRESS,
    "not known|name resolution|No address associated": CORRECT_HOST,
}

#: A word of RabbitMQ's reason (rabbit_reader.erl: "low on memory", "low on disk") → how to end that alarm.
ALARM_REMEDIES = {
    "memory": (
        "rabbitmq-diagnostics memory_breakdown shows what uses the memory: consume or purge long queues, or "
        "raise vm_memory_high_watermark"
    ),
    "disk": "df -h shows the disk: free space on it, or lower disk_free_limit",
}


def transport(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Report a transport on which no event can arrive."""
    reason = snapshot.exporter.no_events
    return NO_EVENTS.finding(no_fanout=reason) if reason else None


def publishers(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Report an alarm by which RabbitMQ blocks all publishers."""
    reason = snapshot.exporter.blocked
    if reason is None:
        return None
    if not reason:
        return PUBLISHERS_BLOCKED.ok("RabbitMQ accepts messages from publishers")
    remedies = [remedy for word, remedy in ALARM_REMEDIES.items() if word in reason]
    alarm_remedies = "; ".join(remedies or ALARM_REMEDIES.values())
    return PUBLISHERS_BLOCKED.finding(reason=short(reason), alarm_remedies=alarm_remedies)


def subscription(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that the event subscription is open."""
    exporter = snapshot.exporter
    if exporter.broker_up:
        standby = ", and another exporter receives the events" if exporter.active is False else ""
        return NOT_SUBSCRIBED.ok(f"the event subscription is open{standby}")
    outage = exporter.outage or OutageView(exporter.started, "")
    error = short(outage.error) or NO_ANSWER
    remedy = _address_remedy(error)
    if exporter.at - exporter.started < DISCOVERY_SECONDS:
        return NOT_SUBSCRIBED_YET.finding(error=error, address_remedy=remedy)
    return NOT_SUBSCRIBED.finding(
        duration=duration(exporter.at - outage.since), error=error, address_remedy=remedy
    )


def _address_remedy(error: str) -> str:
    """Return what helps if no server is reached, to be followed by another remedy; empty if one is."""
    remedies = (remedy for pattern, remedy in ADDRESS_REMEDIES.items() if re.search(pattern, error))
    remedy = next(remedies, "")
    return f"{remedy}; if that does not help, " if remedy else ""


def event_stream(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Report that no event arrives, not even a heartbeat, though workers are up."""
    exporter, limit_seconds = snapshot.exporter, BY_ALERT[SILENCE.alert].limit
    if not workers_up(snapshot) or exporter.listening < limit_seconds or exporter.last_event is None:
        return None
    silence_seconds = exporter.at - exporter.last_event
    if silence_seconds < limit_seconds:
        return SILENCE.ok("events arrive")
    return SILENCE.finding(silence=duration(silence_seconds))


def serializer(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Report events in a serializer that is not accepted."""
    exporter = snapshot.exporter
    if exporter.last_refused is not None and exporter.at - exporter.last_refused < REJECTED_RECENTLY_SECONDS:
        return EVENTS_REJECTED.finding()
    if exporter.last_event is None:
        return None
    return EVENTS_REJECTED.ok("events arrive in a serializer that is accepted")


def state(snapshot: Snapshot, _: Growth) -> Finding | None:
    """Check that the state file can be written."""
    saving = job(snapshot, "state")
    if saving is None or saving.success is None:
        return None
    return STATE_NOT_SAVED.ok("the state is saved") if saving.success else STATE_NOT_SAVED.finding()
