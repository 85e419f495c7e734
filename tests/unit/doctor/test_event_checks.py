"""Findings on what was received while listening; the rest needs brokers, see integration/test_doctor.py."""

from __future__ import annotations

import shlex

import pytest
from harness.configs import monitor_config

from celery_exporter.broker.inspect import Configuration
from celery_exporter.doctor.event_checks import run_event_checks
from celery_exporter.doctor.listener import ListenResult
from celery_exporter.status.facts import DISCOVERY_SECONDS
from celery_exporter.status.finding import Finding
from celery_exporter.status.recent import Recent
from unit.core.cluster_driver import ClusterDriver, heartbeat, received

CONFIG = monitor_config("redis://127.0.0.1:6379/0")


def findings(*events: dict, replies: dict[str, Configuration] | None = None, **values) -> dict[str, Finding]:
    """Return the findings, by check, on these events and on the configurations that workers replied."""
    driver = ClusterDriver()
    driver.apply(*events)
    snapshot = driver.shown(listening=DISCOVERY_SECONDS)
    values = {"content_types": {"application/json": 3}, "first_event_seconds": 0.5, **values}
    growth, configurations = Recent().growth(snapshot, 0.0), list((replies or {}).items())
    result = ListenResult(snapshot, growth, configurations=configurations, **values)
    return {finding.check: finding for finding in run_event_checks(result, CONFIG)}


def test_workers_of_different_versions():
    events = [
        heartbeat(f"{name}@h", sw_ident="py-celery", sw_ver=ver)
        for name, ver in (("a", "5.10.1"), ("b", "5.9.2"))
    ]
    finding = findings(*events)["worker-versions"]
    assert finding.message == "versions differ: py-celery 5.10.1: a@h; py-celery 5.9.2: b@h"
    assert (finding.severity, finding.remedy.endswith(" celery==5.10.1")) == ("warning", True)
    assert findings(events[0])["worker-versions"].severity == "ok"


def test_a_version_from_the_wire_cannot_add_a_command():
    hostile = "99.1'; touch /tmp/it; '"
    events = [heartbeat(f"{ver[0]}@h", sw_ident="py-celery", sw_ver=ver) for ver in (hostile, "5.9.2")]
    remedy = findings(*events)["worker-versions"].remedy
    assert f"celery=={hostile}" in shlex.split(remedy)
    exchange = "x; touch /tmp/it"
    by_check = findings(
        heartbeat(), first_event_seconds=None, replies={"w@h": Configuration(event_exchange=exchange)}
    )
    assert shlex.split(by_check["first-event"].remedy)[-1] == exchange


@pytest.mark.parametrize(
    ("configuration", "known"), [({}, False), ({"worker_send_task_events": True}, True), (None, False)]
)
def test_the_configuration_of_an_idle_worker_may_tell_that_it_sends_task_events(configuration, known):
    """Otherwise it is unknown, which is ok for a cluster without tasks."""
    replies = None if configuration is None else {"w@h": Configuration(**configuration)}
    finding = findings(heartbeat(), replies=replies)["task-events"]
    assert finding.severity == "ok"
    assert ("to be sure: celery -A yourapp control enable_events" in finding.message) is not known


@pytest.mark.parametrize(
    ("configuration", "severity"), [({}, "warning"), ({"worker_send_task_events": True}, "ok")]
)
def test_a_worker_that_processed_tasks_without_an_event_so_far_is_a_warning(configuration, severity):
    """The exporter waits some seconds for the events of the last tasks."""
    replies = {"w@h": Configuration(**configuration)}
    finding = findings(heartbeat(), replies=replies, busy=frozenset({"w@h"}))["task-events"]
    assert finding.severity == severity
    if severity == "warning":
        assert finding.message == "tasks ran on w@h, and no event of them has arrived so far"


def test_the_configuration_of_workers_may_tell_whether_task_sent_events_are_on():
    off, on = Configuration(), Configuration(task_send_sent_event=True)
    finding = findings(heartbeat(), replies={"w@h": off})["task-sent-events"]
    assert finding.severity == "warning"
    message = "no task-received event arrived in 6 s, so it is unknown whether clients publish task-sent"
    assert finding.message.startswith(message)
    finding = findings(heartbeat(), replies={"w@h": on})["task-sent-events"]
    assert (finding.severity, "it is unknown whether clients" in finding.message) == ("ok", True)
    assert findings(heartbeat(), received(), replies={"w@h": on})["task-sent-events"].severity == "warning"
    assert "task-sent-events" not in findings(heartbeat())


def test_the_first_event_and_why_none_may_come():
    silent = {"first_event_seconds": None, "content_types": {}}
    assert findings(heartbeat())["first-event"].message == "the first event came after 0.5 s"
    elsewhere = {"w@h": Configuration(event_exchange="mine")}
    assert findings(replies=elsewhere, **silent)["first-event"].remedy == "--event-exchange mine"
    mute = findings(replies={"w@h": Configuration()}, **silent)["first-event"]
    assert (mute.severity, "--without-heartbeat" in mute.remedy, "--seconds" in mute.remedy) == (
        "warning",
        True,
        True,
    )
    assert "first-event" not in findings(**silent)
    assert findings(**silent)["workers"].severity == "critical"


def test_a_run_that_was_stopped_early_is_a_warning():
    finding = findings(heartbeat(), stopped_early=True)["listening"]
    assert (
        finding.severity,
        finding.message.startswith(f"stopped early, after {DISCOVERY_SECONDS:.0f} s"),
    ) == (
        "warning",
        True,
    )
    assert "listening" not in findings(heartbeat())


def test_a_broker_that_goes_away_meanwhile_has_a_remedy_of_its_own():
    driver = ClusterDriver()
    shown = driver.shown(broker_up=False, listening=1.0)
    result = ListenResult(shown, Recent().growth(shown, 0.0), {}, None, [])
    (finding,) = run_event_checks(result, CONFIG)
    assert (finding.check, finding.severity) == ("subscription", "critical")
    assert finding.remedy.startswith("redis-cli -h 127.0.0.1 -p 6379 INFO")


def test_pickle_is_recommended_with_a_warning():
    finding = findings(content_types={"application/x-python-serialize": 1, "text/odd\n": 1})["serializer"]
    assert (finding.severity, "text/odd?" in finding.message) == ("critical", True)
    assert "--accept-content json,pickle here (pickle runs code of the sender)" in finding.remedy
