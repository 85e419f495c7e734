"""Checks of the serializer of events and of the state file; the others are in test_checks.py."""

from __future__ import annotations

import pytest

from celery_exporter.core.snapshot import JobView, OutageView
from celery_exporter.status.broker_checks import REJECTED_RECENTLY_SECONDS
from celery_exporter.status.problems import ASK_DOCTOR
from unit.core.cluster_driver import T0, ClusterDriver
from unit.status.scenario import HEALTHY, findings, heartbeats


def test_a_state_that_cannot_be_saved_is_always_reported():
    for failed, level in ((False, "ok"), (True, "warning")):
        saving = JobView("state", not failed, 0.1, None, "cannot write" if failed else "")
        for around in ({}, {"broker_up": False}, {"blocked": "disk"}, {"no_events": "none"}):
            by_check = findings(*heartbeats(), jobs=[*HEALTHY, saving], **around)
            assert by_check["state"].severity == level
    assert "state" not in findings(*heartbeats())


@pytest.mark.parametrize(
    ("outage", "message"),
    [
        (OutageView(T0 - 200, "Connection refused"), "for 5 minutes: Connection refused"),
        (OutageView(T0 + 90, ""), "for 10 s: the broker has not answered yet"),
        (None, "for 2 minutes: the broker has not answered yet"),
    ],
)
def test_a_subscription_that_is_not_open(outage, message):
    """The driver has run for 100 s. An exporter that has just started is given time."""
    values = {"broker_up": False, "started": T0 - 20, "outage": outage}
    finding = findings(**values)["subscription"]
    assert (finding.severity, finding.message) == (
        "critical",
        f"no event subscription on the broker {message}",
    )
    finding = findings(**{**values, "started": T0 + 99})["subscription"]
    assert (finding.severity, finding.alert) == ("warning", "")
    assert finding.message.startswith("the exporter is starting, and the event subscription is not open yet")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("Error 111 connecting to 127.0.0.1:6391. Connection refused.", "start the broker, or correct host"),
        ("[Errno 113] No route to host", "start the broker, or correct host and port in --broker-url; if "),
        ("Error -2 connecting to mq-01:6379. Name or service not known.", "correct the host in --broker-url"),
        ("[Errno -3] Temporary failure in name resolution", "correct the host in --broker-url; if that does"),
        ("WRONGPASS invalid username-password pair", ASK_DOCTOR),
        ("", ASK_DOCTOR),
    ],
)
def test_the_remedy_for_a_broker_that_is_not_reached_is_that_of_doctor(error, remedy):
    for started in (T0, T0 + 99):
        values = {"broker_up": False, "started": started, "outage": OutageView(T0, error)}
        finding = findings(**values)["subscription"]
        assert finding.remedy.startswith(remedy)
        assert finding.remedy.endswith(ASK_DOCTOR)


def test_a_standby_checks_only_its_subscription():
    """It does not know what workers and tasks do."""
    active, standby = (findings(*heartbeats(), active=active) for active in (True, False))
    assert active["subscription"].message == "the event subscription is open"
    assert standby.keys() == {"subscription"} < active.keys()
    assert standby["subscription"].message.endswith("open, and another exporter receives the events")


def test_events_in_a_serializer_that_is_not_accepted():
    driver = ClusterDriver()
    now = T0 + driver.now
    refused = findings(last_refused=now - 1, last_event=None)["serializer"]
    assert (refused.severity, "--accept-content" in refused.remedy) == ("critical", True)
    assert findings(last_refused=now - REJECTED_RECENTLY_SECONDS)["serializer"].severity == "ok"
