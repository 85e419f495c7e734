"""Queue lengths when the broker is gone, and how often workers that do not reply are inspected."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.configs import monitor_config
from harness.workers import client

from celery_exporter.broker.connection import BrokerError
from celery_exporter.broker.source import ConfigSource
from celery_exporter.core.snapshot import QueueStats
from celery_exporter.monitor.cluster_state import ClusterState, new_cluster
from celery_exporter.monitor.pollers import (
    MAX_INSPECTION_WAIT_SECONDS,
    MAX_WITHOUT_REPLY,
    QueuePoller,
    inspection_wait,
)


def queue_poller(url: str) -> QueuePoller:
    config = monitor_config(url, queues=("mail",))
    return QueuePoller(config, ConfigSource(config.broker), ClusterState(new_cluster(config), config))


def test_lengths_are_missing_when_the_broker_is_gone(tmp_path: Path):
    database = tmp_path / "broker.db"
    url = f"sqla+sqlite:///{database}"
    with client(url) as app:
        app.send_task("tasks.succeed", queue="mail")
    poller = queue_poller(url)
    poller.poll()
    assert poller.queue_stats() == {"mail": QueueStats(1)}
    database.write_bytes(b"no database any more" * 100)
    with pytest.raises(BrokerError):
        poller.poll()
    assert poller.queue_stats() == {}
    poller.close()


def test_workers_that_do_not_reply_are_inspected_less_often():
    waits = [inspection_wait(rounds, 15.0) for rounds in range(1_000)]
    assert waits[: MAX_WITHOUT_REPLY + 1] == [0.0] * (MAX_WITHOUT_REPLY + 1)
    assert waits[MAX_WITHOUT_REPLY + 1] == 30.0
    assert waits == sorted(waits)
    assert waits[-1] == MAX_INSPECTION_WAIT_SECONDS
