"""The section `expected` of --config.file."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_exporter.config.loader import load
from celery_exporter.config.schema import Settings
from celery_exporter.core.expected import DEFAULT_GRACE_SECONDS, MAX_EXPECTED, ExpectedTask
from celery_exporter.core.schedules import Cron, Every
from celery_exporter.errors import BadSettingError

ONE = "broker_url: redis://\nexpected:\n"
BERLIN = "Europe/Berlin"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yml"


def loaded(path: Path, text: str, **argv: object) -> Settings:
    path.write_text(text)
    return load({"config_file": str(path), **argv}, {})


def test_entries_have_a_schedule_and_a_grace(path):
    text = f"""{ONE}
- {{task: a, every: 1h}}
- {{task: a, every: 90, grace: 10s}}
- {{task: b, cron: "0  3 * * *"}}
- {{task: b, cron: "0 3 * * mon", timezone: {BERLIN}, grace: 1.5h}}
"""
    assert loaded(path, text).monitor.expected == (
        ExpectedTask("a", Every(3_600.0), DEFAULT_GRACE_SECONDS),
        ExpectedTask("a", Every(90.0), 10.0),
        ExpectedTask("b", Cron("0 3 * * *", "UTC"), DEFAULT_GRACE_SECONDS),
        ExpectedTask("b", Cron("0 3 * * mon", BERLIN), 5_400.0),
    )


def test_without_the_section_nothing_is_expected(path):
    assert loaded(path, "broker_url: redis://").monitor.expected == ()
    assert load({"broker_url": "redis://"}, {}).monitor.expected == ()


def test_a_broker_has_its_own_section_or_the_common_one(path):
    text = """
expected: [{task: common, every: 1h}]
brokers:
  shop: {url: redis://a}
  billing: {url: redis://b, expected: [{task: own, every: 1h}]}
"""
    names = {
        name: [task.name for task in broker.monitor.expected]
        for name, broker in loaded(path, text).brokers.items()
    }
    assert names == {"shop": ["common"], "billing": ["own"]}


def test_a_reload_restarts_the_brokers_whose_section_changed(path):
    text = """
brokers:
  shop: {url: redis://a, expected: [{task: a, every: 1h}]}
  billing: {url: redis://b}
"""
    before = loaded(path, text).brokers
    same = loaded(path, text.replace("1h", "60m")).brokers
    changed = loaded(path, text.replace("1h", "2h")).brokers
    assert before["shop"].given == same["shop"].given != changed["shop"].given
    assert before["billing"].given == changed["billing"].given


def test_names_are_those_of_metrics(path):
    rules = {"task_name_rule": (r"shop\.(.*)=\1",)}
    text = f"{ONE}- {{task: shop.pay, every: 1h}}\n- {{task: mail, every: 1h}}"
    assert [task.name for task in loaded(path, text, **rules).monitor.expected] == ["pay", "mail"]
    with pytest.raises(BadSettingError, match=r"expected\[1\]: got task 'shop.pay', which --task-include or"):
        loaded(path, text, task_exclude="shop.*")


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ("expected: []", "expected: expected a list, such as - {task: name, every: 1h}"),
        ("expected: {task: a}", "expected: expected a list"),
        ("expected:", "expected: expected a list"),
        ("expected: # all left out", "expected: expected a list"),
        ("brokers: {shop: {url: redis://, expected: null}}", "brokers.shop.expected: expected a list"),
        ("expected: [a]", "expected[1]: expected a mapping, such as {task: name, every: 1h}"),
        ("expected: [{every: 1h}]", "expected[1]: task is missing; give the name of a task"),
        ("expected: [{task: ' ', every: 1h}]", "expected[1]: task is missing"),
        ("expected: [{task: a}]", "expected[1]: task 'a': every or cron is missing; give one of them"),
        (
            'expected: [{task: a, every: 1h, cron: "0 3 * * *"}]',
            "expected[1]: task 'a': got every and cron; give one of them",
        ),
        ("expected: [{task: a, evry: 1h}]", "expected[1].evry: unknown key; did you mean every?"),
        ("expected: [{task: a, every: [1h]}]", "expected[1].every: expected a single value"),
        (
            "expected: [{task: a, every: soon}]",
            "expected[1].every: got 'soon'; it takes a duration",
        ),
        ("expected: [{task: a, every: 0}]", "expected[1].every: got '0'; it takes a duration"),
        ("expected: [{task: a, every: nan}]", "expected[1].every: got 'nan'; it takes a duration"),
        ("expected: [{task: a, every: 9999d}]", "expected[1].every: got '9999d'; it takes a duration"),
        ("expected: [{task: a, every: 1h, grace: -1}]", "expected[1].grace: got '-1'; it takes a duration"),
        (
            "expected: [{task: a, every: 1h, timezone: UTC}]",
            "expected[1].timezone: got 'UTC', which only cron has; remove it",
        ),
        (
            'expected: [{task: a, cron: "61 * * * *"}]',
            "expected[1].cron: got '61 * * * *': invalid minute; it takes an expression such as 0 3 * * *",
        ),
        ('expected: [{task: a, cron: "@daily"}]', "expected[1].cron: got '@daily': not five fields"),
        (
            'expected: [{task: a, cron: "0 3 * * *", timezone: Europe/Berlim}]',
            "expected[1].timezone: got 'Europe/Berlim'; it takes an IANA name such as Europe/Berlin; did ",
        ),
        (
            'expected: [{task: a, cron: "0 0 31 2 *"}]',
            "expected[1].cron: got '0 0 31 2 *': no such day exists; it takes an expression such as",
        ),
        (
            "expected: [{task: a, every: 1h}, {task: b, every: 1h}, {task: a, every: 60m}]",
            "expected[3]: task 'a' has the schedule of entry 1; remove one",
        ),
        (f"expected: [{'{task: a, every: 1h},' * (MAX_EXPECTED + 1)}]", "expected: got 1001 entries"),
        (
            "brokers: {shop: {url: redis://, expected: [{task: a}]}}",
            "brokers.shop.expected[1]: task 'a': every or cron is missing",
        ),
        ("expectd: [{task: a, every: 1h}]", "expectd: unknown key; did you mean expected?"),
    ],
)
def test_what_is_wrong_is_named(path, section, error):
    with pytest.raises(BadSettingError) as raised:
        loaded(path, section)
    assert str(raised.value).startswith(f"{path}: {error}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("zone", ["CEST", "PDT", "localtime", "UTC+2", "Berlin", "right/Mars"])
def test_no_zone_is_suggested_that_means_another_time(path, zone):
    with pytest.raises(BadSettingError) as raised:
        loaded(path, f'expected: [{{task: a, cron: "0 3 * * *", timezone: {zone}}}]')
    assert str(raised.value).endswith(f".timezone: got {zone!r}; it takes an IANA name such as Europe/Berlin")
