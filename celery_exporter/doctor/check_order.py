"""The names of all checks that `doctor` runs, by subject, in the order in which it prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CHECKS_BY_SUBJECT: Mapping[str, Sequence[str]] = {
    "connection": [
        "url",
        "transport",
        "host",
        "port",
        "answer",
        "tls",
        "login",
        "database",
        "virtual-host",
        "subscription",
    ],
    "broker": [
        "broker-version",
        "eviction",
        "output-buffer",
        "transient-queues",
        "orphaned-queues",
        "event-queue",
        "publishers",
    ],
    "events": ["listening", "event-stream", "first-event", "serializer", "missed-events", "series"],
    "workers": [
        "workers",
        "worker-versions",
        "worker-names",
        "duplicate-node-names",
        "silent-workers",
        "heartbeats",
        "remote-control",
        "clock-skew",
        "task-events",
        "beat",
    ],
    "tasks": [
        "task-sent-events",
        "failures",
        "retries",
        "redeliveries",
        "slow-tasks",
        "stuck-tasks",
        "orphaned-tasks",
        "expected-tasks",
    ],
    "queues": [
        "queue-lengths",
        "queue-names",
        "queues-without-consumers",
        "unconsumed-messages",
        "queue-depth",
        "queue-waits",
        "oldest-messages",
    ],
    "records": ["sinks", "sink-records", "history", "state"],
    "Prometheus": ["prometheus", "prometheus-agrees", "prometheus-native"],
}
