"""Sinks that fail, records that are lost, and a history file that cannot be used."""

from __future__ import annotations

from msgspec.structs import replace

from celery_exporter.core.histogram import Histogram
from celery_exporter.core.snapshot import HistoryView, SinkView
from celery_exporter.status.recent import Recent
from celery_exporter.status.sink_checks import history, sink_records
from celery_exporter.status.thresholds import BY_ALERT
from unit.core.cluster_driver import T0, ClusterDriver
from unit.status.scenario import findings

NOW = T0 + ClusterDriver().now
LIMIT = BY_ALERT["CelerySinkFailing"].limit
HISTORY_LIMIT = BY_ALERT["CeleryHistoryFailing"].limit
INFLUX = SinkView("influxdb", "http://influx:8086", {"delivered": 5}, 0, 0, 100, NOW, Histogram([0]))
FAILING = replace(INFLUX, error="no answer\x1b[31m from http://influx:8086", failing_since=NOW - LIMIT)


def test_without_sinks_nothing_is_checked():
    assert not {"sinks", "sink-records"} & findings().keys()


def test_a_sink_that_works_is_ok():
    assert findings(sinks=[INFLUX])["sinks"].severity == "ok"


def test_a_sink_that_fails_for_long_is_reported_with_its_error_also_without_a_broker():
    for broker_up in (True, False):
        finding = findings(sinks=[INFLUX, FAILING], broker_up=broker_up)["sinks"]
        assert finding.severity == "warning"
        assert "influxdb (http://influx:8086: no answer" in finding.message
        assert "\x1b" not in finding.message
        assert finding.alert == "CelerySinkFailing"


def test_a_receiver_that_restarts_is_not_reported():
    recent = replace(FAILING, failing_since=NOW - LIMIT + 1)
    assert findings(sinks=[recent])["sinks"].severity == "ok"


def test_records_that_were_lost_in_the_window_are_reported():
    recent, driver = Recent(), ClusterDriver()
    before = driver.shown(sinks=[replace(INFLUX, lost=3)])
    recent.add(before, 0.0)
    assert sink_records(before, recent.growth(before, 60.0)).severity == "ok"
    after = driver.shown(sinks=[replace(INFLUX, lost=1_003)])
    finding = sink_records(after, recent.growth(after, 60.0))
    assert (finding.severity, "influxdb 1,000" in finding.message) == ("warning", True)


# -- the history file ----------------------------------------------------------------------------------------

HISTORY = HistoryView("/var/lib/history", 5, {"fault": 0}, 0, NOW, 5, 4_096)


def test_a_history_file_that_works_is_ok_and_without_one_nothing_is_checked():
    assert "history" not in findings()
    assert findings(history=HISTORY)["history"].message == "5 tasks in the history file"


def test_a_history_file_that_cannot_be_used_is_reported_also_without_a_broker():
    failing = replace(HISTORY, error="disk\x1b is full", failing_since=NOW - HISTORY_LIMIT)
    for broker_up in (True, False):
        finding = findings(history=failing, broker_up=broker_up)["history"]
        assert (finding.severity, finding.alert) == ("warning", "CeleryHistoryFailing")
        assert "disk" in finding.message
        assert "\x1b" not in finding.message
    recent = replace(failing, failing_since=NOW - HISTORY_LIMIT + 1)
    assert "history" not in findings(history=recent), "another exporter may be about to stop"


def test_a_history_file_that_is_not_open_yet_is_not_reported():
    new = replace(HISTORY, last_success=None, tasks=None, size_bytes=None)
    assert "history" not in findings(history=new)


def test_tasks_that_were_dropped_in_the_window_are_reported_also_if_the_file_works_again():
    recent, driver = Recent(), ClusterDriver()
    before = driver.shown(history=replace(HISTORY, dropped={"buffer_full": 3, "fault": 4}))
    recent.add(before, 0.0)
    assert history(before, recent.growth(before, 60.0)).severity == "ok"
    after = replace(HISTORY, dropped={"buffer_full": 1_003, "fault": 5})
    failing = replace(after, error="disk is full", failing_since=NOW)
    for view in (after, failing):
        shown = driver.shown(history=view)
        finding = history(shown, recent.growth(shown, 60.0))
        assert (finding.severity, finding.alert) == ("warning", "CeleryHistoryFailing")
        assert "1,001 tasks in 60 s" in finding.message
