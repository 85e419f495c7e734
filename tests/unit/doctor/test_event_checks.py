"""What `doctor` makes of what it heard and was answered; the rest needs brokers, see live/test_doctor.py."""

from __future__ import annotations

import re
import shlex

import msgspec
import pytest
from harness.configs import monitor_config

from celery_exporter.broker.inspect import Configuration
from celery_exporter.cli.main import _command
from celery_exporter.doctor.event_checks import run_event_checks
from celery_exporter.doctor.listener import ListenResult
from celery_exporter.doctor.problems import EVICTS_QUEUES, EVICTS_RESULTS, EVICTS_WHEN_LIMITED
from celery_exporter.doctor.queue_names import is_task_queue, is_temporary
from celery_exporter.doctor.redis_checks import eviction_problem, max_lag, pubsub_limits
from celery_exporter.doctor.report import as_json, printed
from celery_exporter.doctor.runner import Report
from celery_exporter.status.facts import DISCOVERY_SECONDS
from celery_exporter.status.finding import Finding
from celery_exporter.status.recent import Recent
from unit.core.cluster_driver import ClusterDriver, heartbeat, received

CONFIG = monitor_config("redis://127.0.0.1:6379/0")
UUID = "9e0a9f8e-1d5a-4b7e-8a5c-0a4c4e4b9d11"


def judged(*events: dict, said: dict[str, Configuration] | None = None, **heard) -> dict[str, Finding]:
    """Return what is said of these events, and of what workers said of their configuration, by check."""
    driver = ClusterDriver()
    driver.apply(*events)
    told = {"content_types": {"application/json": 3}, "first_event_seconds": 0.5, **heard}
    shown, answers = driver.shown(listening=DISCOVERY_SECONDS), list((said or {}).items())
    found = ListenResult(shown, Recent().growth(shown, 0.0), configurations=answers, **told)
    return {finding.check: finding for finding in run_event_checks(found, CONFIG)}


def test_workers_of_different_versions():
    driver = [
        heartbeat(f"{name}@h", sw_ident="py-celery", sw_ver=ver)
        for name, ver in (("a", "5.10.1"), ("b", "5.9.2"))
    ]
    found = judged(*driver)["worker-versions"]
    assert found.message == "versions differ: py-celery 5.10.1: a@h; py-celery 5.9.2: b@h"
    assert (found.severity, found.remedy.endswith(" celery==5.10.1")) == ("warning", True)
    assert judged(driver[0])["worker-versions"].severity == "ok"


def test_what_workers_say_cannot_be_a_command_of_its_own():
    hostile = "99.1'; touch /tmp/it; '"
    driver = [heartbeat(f"{ver[0]}@h", sw_ident="py-celery", sw_ver=ver) for ver in (hostile, "5.9.2")]
    remedy = judged(*driver)["worker-versions"].remedy
    assert f"celery=={hostile}" in shlex.split(remedy)
    exchange = "x; touch /tmp/it"
    said = judged(heartbeat(), first_event_seconds=None, said={"w@h": Configuration(event_exchange=exchange)})
    assert shlex.split(said["first-event"].remedy)[-1] == exchange


@pytest.mark.parametrize(
    ("said", "known"), [({}, False), ({"worker_send_task_events": True}, True), (None, False)]
)
def test_an_idle_worker_may_tell_by_its_configuration_that_it_sends_task_events(said, known):
    """Otherwise it is not known, which is no fault of a cluster that has nothing to do."""
    answers = None if said is None else {"w@h": Configuration(**said)}
    found = judged(heartbeat(), said=answers)["task-events"]
    assert found.severity == "ok"
    assert ("to be sure: celery -A yourapp control enable_events" in found.message) is not known


def test_whether_clients_say_what_they_send_may_be_told_by_the_configuration_of_workers():
    off, on = Configuration(), Configuration(task_send_sent_event=True)
    assert judged(heartbeat(), said={"w@h": off})["task-sent-events"].severity == "warning"
    assert judged(heartbeat(), said={"w@h": on})["task-sent-events"].severity == "ok"
    assert judged(heartbeat(), received(), said={"w@h": on})["task-sent-events"].severity == "warning"
    assert "task-sent-events" not in judged(heartbeat())


def test_the_first_event_and_what_may_keep_it_away():
    silent = {"first_event_seconds": None, "content_types": {}}
    assert judged(heartbeat())["first-event"].message == "the first event came after 0.5 s"
    elsewhere = {"w@h": Configuration(event_exchange="mine")}
    assert judged(said=elsewhere, **silent)["first-event"].remedy == "--event-exchange mine"
    mute = judged(said={"w@h": Configuration()}, **silent)["first-event"]
    assert (mute.severity, "--without-heartbeat" in mute.remedy, "--seconds" in mute.remedy) == (
        "warning",
        True,
        True,
    )
    assert "first-event" not in judged(**silent)
    assert judged(**silent)["workers"].severity == "critical"


def test_what_was_cut_short_is_not_well():
    found = judged(heartbeat(), stopped_early=True)["listening"]
    assert (found.severity, found.message.startswith(f"stopped early, after {DISCOVERY_SECONDS:.0f} s")) == (
        "warning",
        True,
    )
    assert "listening" not in judged(heartbeat())


def test_a_broker_that_goes_away_meanwhile_is_not_mended_by_another_look():
    driver = ClusterDriver()
    shown = driver.shown(broker_up=False, listening=1.0)
    found = ListenResult(shown, Recent().growth(shown, 0.0), {}, None, [])
    (only,) = run_event_checks(found, CONFIG)
    assert (only.check, only.severity) == ("subscription", "critical")
    assert only.remedy.startswith("redis-cli -h 127.0.0.1 -p 6379 INFO")


def test_pickle_is_not_recommended_without_a_word():
    found = judged(content_types={"application/x-python-serialize": 1, "text/odd\n": 1})["serializer"]
    assert (found.severity, "text/odd?" in found.message) == ("critical", True)
    assert "--accept-content json,pickle here (pickle runs code of the sender)" in found.remedy


@pytest.mark.parametrize(
    ("name", "tasks", "passing"),
    [
        ("celery", True, False),
        ("mail.high", True, False),
        (f"celeryev.{UUID}", False, True),
        ("celeryev.celery-exporter", False, True),
        ("w@box.celery.pidbox", False, False),
        (f"{UUID}.reply.celery.pidbox", False, True),
        (UUID, False, False),  # results that wait for whoever asked for them
        ("amq.gen-JzTY20BRgKO-HjmUJj0wLg", False, False),
    ],
)
def test_queues_are_told_apart_by_their_names(name, tasks, passing):
    assert (is_task_queue(name), is_temporary(name)) == (tasks, passing)


def test_limits_of_redis():
    assert pubsub_limits("normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60") == (
        2**25,
        2**23,
        60,
    )
    assert max_lag(2**25, 2**23, 60) is None
    assert max_lag(0, 0, 0) is None
    assert max_lag(2**20, 0, 0) == "1,048,576 bytes"
    assert max_lag(0, 2**20, 60) == "1,048,576 bytes for 60 s"
    assert max_lag(0, 2**24, 5) == "16,777,216 bytes for 5 s"
    assert eviction_problem("noeviction", 1) is None
    assert eviction_problem("allkeys-lru", 0) is EVICTS_WHEN_LIMITED
    assert eviction_problem("volatile-ttl", 1) is EVICTS_RESULTS
    assert eviction_problem("allkeys-lfu", 1) is EVICTS_QUEUES


def test_how_findings_are_written():
    mended = Finding("clock-skew", "critical", "found", "remedy")
    plain = re.sub(r"\x1b\[\d+m", "", printed(mended))
    assert plain.splitlines() == ["CRITICAL clock-skew                found", " " * 35 + "-> remedy"]
    report = Report(1, "redis://h", 1.5, 2, [mended])
    assert msgspec.json.decode(as_json(report), type=Report) == report


def test_the_help_says_what_exit_codes_mean():
    text = _command.commands["doctor"].help or ""
    assert "Exit code 0" in " ".join(text.split())
