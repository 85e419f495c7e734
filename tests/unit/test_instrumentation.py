"""The module for applications: it needs nothing, bounds what it sends, and never makes a task fail."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import task_received
from harness.processes import ROOT

from celery_exporter import instrumentation
from celery_exporter.core.events import MAX_FIELDS, MAX_TAGS, MEASURED, Event, decode
from celery_exporter.core.task_names import MAX_VALUE_BYTES
from celery_exporter.instrumentation import Measurements, monitor_time


@pytest.fixture(autouse=True)
def _nothing_logged_yet(monkeypatch):
    monkeypatch.setattr(instrumentation, "_logged", set())


def ship(self: Any) -> None:
    """Do nothing."""


@pytest.fixture
def task() -> Iterator[Any]:
    """Return a bound task that a worker seems to run; its broker is in memory."""
    app = Celery("shop", broker="memory://localhost", set_as_current=False)
    shipped = app.task(name="shop.ship", bind=True)(ship)
    shipped.push_request(id="u1", root_id="r1", hostname="w@h", called_directly=False)
    yield shipped
    shipped.pop_request()


def sent(task: Any, data: Measurements) -> list[Event]:
    """Send, and return the events as the exporter decodes them."""
    return events_of(task.app, lambda: data.send(task))


def events_of(app: Celery, function: Callable[[], object]) -> list[Event]:
    """Call a function, and return the events as the exporter decodes them."""
    events: list[dict[str, Any]] = []
    receiver = app.events.Receiver(app.connection(), handlers={"*": events.append})
    with receiver.consumer_context() as (connection, _, _):
        function()
        with suppress(TimeoutError):
            while True:
                connection.drain_events(timeout=0.05)
    receiver.connection.close()
    return [event for body in events for event in decode(json.dumps(body).encode())]


# -- importing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_copied", [False, True])
def test_it_needs_the_standard_library_only(tmp_path, is_copied):
    """-I and -S hide all installed packages."""
    package = Path(instrumentation.__file__).parent
    if is_copied:
        name = "measuring"
        shutil.copy(instrumentation.__file__, tmp_path / "measuring.py")
    else:
        name = f"{package.name}.instrumentation"
        (tmp_path / package.name).symlink_to(package)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"from {name} import Measurements, monitor_time\n"
        "data = Measurements({'a': 'b'}, {'c': 1})\n"
        "with monitor_time(data, 'seconds'): pass\n"
        "data.send(None)\n"
        "print(sorted(data.fields), sorted({'celery', 'msgspec', 'kombu'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['c', 'seconds'] []\n"


def test_its_bounds_are_those_of_the_exporter():
    assert (instrumentation.MAX_TAGS, instrumentation.MAX_FIELDS) == (MAX_TAGS, MAX_FIELDS)
    assert (instrumentation.MAX_CHARACTERS, instrumentation.EVENT_TYPE) == (MAX_VALUE_BYTES, MEASURED)


# -- measuring -----------------------------------------------------------------------------------------------


def test_a_time_is_added_to_its_field_also_if_the_block_raises():
    data = Measurements()
    with monitor_time(data, "seconds"):
        pass
    first = data.fields["seconds"]
    with pytest.raises(KeyError), monitor_time(data, "seconds"):
        raise KeyError
    assert 0 < first < data.fields["seconds"] < 1


def test_a_time_replaces_what_is_no_number():
    data = Measurements(fields={"seconds": "unknown"})
    with monitor_time(data, "seconds"):
        pass
    assert isinstance(data.fields["seconds"], float)


def test_measurements_do_not_change_what_they_were_made_from():
    tags, fields = {"a": "b"}, {"c": 1}
    data = Measurements(tags, fields)
    data.tags["x"] = data.fields["x"] = "y"
    assert (tags, fields) == ({"a": "b"}, {"c": 1})
    assert repr(data) == "Measurements(tags={'a': 'b', 'x': 'y'}, fields={'c': 1, 'x': 'y'})"


# -- sending -------------------------------------------------------------------------------------------------


def test_the_event_has_the_ids_and_the_name_of_the_task(task):
    (event,) = sent(task, Measurements({"market": "energy"}, {"orders": 3, "hit": True, "by": "bot"}))
    assert (event.type, event.uuid, event.name, event.hostname) == (MEASURED, "u1", "shop.ship", "w@h")
    assert event.tags == {"market": "energy"}
    assert event.fields == {"orders": 3.0, "hit": True, "by": "bot"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Decimal("0.5"), 0.5),
        (2**60, float(2**60)),
        (-(2**53), -(2.0**53)),
        (["a", 1], "['a', 1]"),
        ("x" * 300, "x" * 255),
        ("\ud800", "?"),
        ("", ""),
    ],
)
def test_other_values_are_sent_as_numbers_or_texts(task, value, shown):
    (event,) = sent(task, Measurements(fields={"f": value}))
    assert event.fields == {"f": shown}


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 1e101, -1e101, 10**400, None], ids=lambda value: f"{value!r:.9}"
)
def test_what_cannot_be_added_up_is_dropped(task, value):
    (event,) = sent(task, Measurements({"t": None}, {"f": value, "g": 1}))
    assert (event.tags, event.fields) == ({}, {"g": 1.0})


def test_too_much_is_cut_and_logged_once(task, caplog):
    data = Measurements(
        {"t" * 300 + str(number): "v" * 300 for number in range(2)} | {f"{n}": n for n in range(30)},
        {str(number): number for number in range(60)} | {"": 1},
    )
    for _ in range(2):
        (event,) = sent(task, data)
        assert len(event.tags) == MAX_TAGS
        assert [*event.fields] == [str(number) for number in range(MAX_FIELDS)]
        assert {*map(len, event.tags)} == {255, 1, 2}
    assert len(caplog.records) == 3
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_nothing_is_sent_outside_of_a_worker(task):
    data = Measurements(fields={"f": 1})
    task.push_request(id="u2", is_eager=True)
    assert sent(task, data) == []
    task.pop_request()
    called = task.app.task(name="shop.called", bind=True)(ship)  # as a function
    assert sent(called, data) == []
    task.send_events = False
    assert sent(task, data) == []


@pytest.mark.parametrize(
    ("dispatcher", "is_sent"),
    [
        (None, False),
        (SimpleNamespace(enabled=False, groups=set()), False),
        (SimpleNamespace(enabled=True, groups={"worker"}), False),
        (SimpleNamespace(enabled=True, groups={"worker", "task"}), True),
        (SimpleNamespace(enabled=True, groups=set()), True),
    ],
)
def test_it_is_sent_while_the_worker_sends_task_events(task, dispatcher, is_sent):
    """Celery sends this signal in the main process when a worker has received a task."""
    try:
        task_received.send(sender=None, request=SimpleNamespace(eventer=dispatcher))
        assert len(sent(task, Measurements(fields={"f": 1}))) == is_sent
    finally:
        instrumentation._events_off[0] = 0


def test_a_broker_that_is_down_is_logged_once_and_raises_nothing(caplog):
    app = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
    task = app.task(name="shop.ship", bind=True)(ship)
    task.push_request(id="u1", hostname="w@h", called_directly=False)
    for _ in range(2):
        Measurements(fields={"f": 1}).send(task)
    (record,) = [record for record in caplog.records if record.name == instrumentation.__name__]
    assert record.getMessage().startswith("measurements of a task were not sent: ")


def test_a_value_that_cannot_be_shown_raises_nothing(task, caplog):
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert sent(task, Measurements(fields={"f": Hostile()})) == []
    assert len(caplog.records) == 1


def test_the_example_of_the_page_sends_what_it_says():
    page = (ROOT / "docs" / "how-to" / "measure-inside-tasks.md").read_text()
    names: dict[str, Any] = {}
    exec(re.search("```python\n(.*?)```", page, re.DOTALL)[1], names)
    app, match = names["app"], names["match"]
    app.conf.broker_url = "memory://localhost"
    match.push_request(id="u1", hostname="w@h", called_directly=False)
    (event,) = events_of(app, lambda: match.run([5, 20, 30]))
    assert (event.name, event.tags) == ("orders.match", {"market": "energy"})
    assert event.fields.pop("load_seconds") < 1 > event.fields.pop("match_seconds")
    assert event.fields == {"orders": 3.0, "matches": 2.0}


def test_the_soft_time_limit_of_the_task_is_raised():
    class Interrupted:
        @property
        def request(self) -> None:
            raise SoftTimeLimitExceeded

    with pytest.raises(SoftTimeLimitExceeded):
        Measurements().send(Interrupted())
