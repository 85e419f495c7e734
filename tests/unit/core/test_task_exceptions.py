"""Class names in the texts of exceptions, whatever their length."""

from __future__ import annotations

import time

import pytest

from celery_exporter.core.events import Event
from celery_exporter.core.task_exceptions import (
    RETRIES_EXCEEDED,
    exception_class,
    read_traceback,
    unregistered_name,
)

from .cluster_driver import (
    ClusterDriver,
    failed,
    sent,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ValueError('x')", "ValueError"),
        ("KeyError()", "KeyError"),
        ("pkg.mod.Err('a', 1)", "Err"),
        ("Outer.Inner('a')", "Inner"),
        ("<AioRpcError of RPC that terminated with:\n\tstatus = 14>", "AioRpcError"),
        ("1 validation error for Model\nfield required", None),
        ("something (went) wrong", None),
        ("reject requeue=False: no", "Reject"),
        ("Retry(Retry(...), socket.timeout('x'), 3)", "timeout"),
        ("Retry(Retry(...), None, 3)", None),
        ("'quoted'", None),
        ("", None),
        (None, None),
        ("x" * 1000 + "(", None),
    ],
)
def test_the_class_name_is_read_from_the_repr(text, name):
    assert exception_class(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "NotRegistered(" + " " * 10**7,
        "a." * 10**7,
        "<" + "a" * 10**7,
        "A" * 10**7 + "(",
        "NotRegistered('" + "'" * 10**7,
    ],
    ids=lambda text: text[:18],
)
def test_only_the_start_of_an_exception_is_read(text):
    begin = time.thread_time()
    exception_class(text)
    unregistered_name(text)
    assert time.thread_time() - begin < 0.05


@pytest.mark.parametrize("line", [" ", " x", "\t", "", "a"], ids=repr)
def test_a_traceback_of_ten_megabytes_is_read_in_milliseconds(line):
    head = "Traceback (most recent call last):\n x\n"
    text = head + f"{line}\n" * (10**7 // (len(line) + 1))
    event = Event("task-failed", 1.5, "h", exception="ExceptionWithTraceback()", traceback=text)
    begin = time.thread_time()
    read_traceback(event)
    assert time.thread_time() - begin < 0.05
    assert (event.exception, event.traceback) == (None, None)


def test_the_name_of_an_unregistered_task_is_read_from_its_exception():
    assert unregistered_name("NotRegistered('shop.tasks.pay')") == "shop.tasks.pay"
    assert unregistered_name("KeyError('shop.tasks.pay')") is None


HEAD = "Traceback (most recent call last):\n"
LOST = HEAD + '  File "x.py", line 1, in f\n    f()\n    ^^^\nbilliard.exceptions.WorkerLostError: exited\n'


@pytest.mark.parametrize(
    ("traceback", "raised"),
    [
        (LOST, "WorkerLostError"),
        (HEAD + "  File\nbilliard.exceptions.TimeLimitExceeded", "TimeLimitExceeded"),
        (HEAD + "  File\nValueError: two\nKeyError: lines", "ValueError"),
        (
            LOST + "\nDuring handling of the above exception, another exception occurred:\n\n" + LOST,
            "unknown",
        ),
        (HEAD + "  File\n", "unknown"),
        (HEAD + "  File", "unknown"),
        (HEAD + "ValueError: x", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
        ("billiard.exceptions.WorkerLostError", "unknown"),
    ],
)
@pytest.mark.parametrize("wait", [0, 3])
def test_a_wrapped_exception_is_read_from_the_traceback(traceback, raised, wait):
    driver = ClusterDriver()
    event = failed(exception="ExceptionWithTraceback()", name="add", queue="q", traceback=traceback)
    driver.apply(*([] if wait else [sent()]), event)
    driver.wait(wait)
    assert driver.aggregate().exceptions == {raised: 1}


def test_the_traceback_of_another_exception_is_not_read():
    driver = ClusterDriver()
    driver.apply(sent(), failed(exception="KeyError('x')", traceback=LOST))
    assert driver.aggregate().exceptions == {"KeyError": 1}


def test_tracebacks_are_not_kept():
    driver = ClusterDriver()
    lost = failed("u2", exception="ExceptionWithTraceback()", traceback=LOST)
    driver.apply(failed(traceback="x" * 100_000), lost)
    deferred = driver.cluster.tasks.deferred.values()
    assert [event.traceback for events in deferred for event in events] == [None, None]


FRAME = '  File "/x/celery/app/task.py", line 942, in retry\n    '
EXCEEDED = FRAME + "raise_with_context(exc)\n    ~~~^^^\n"


@pytest.mark.parametrize(
    ("frames", "exceeded"),
    [
        (EXCEEDED, True),
        (EXCEEDED.replace("/", "\\"), True),
        (FRAME + "raise self.MaxRetriesExceededError(\n", True),
        (f'  File "a.py", line 1, in f\n    g()\n{EXCEEDED}  File "b.py", line 2, in g\n    h()\n', True),
        (FRAME + "raise_with_context(exc or Retry('Task can be retried', None))\n", False),
        (FRAME + "raise ret\n", False),
        (FRAME + "raise Reject(exc, requeue=False)\n", False),
        (EXCEEDED.replace("celery", "shop"), False),
        (EXCEEDED.replace("in retry", "in run"), False),
        ("", False),
    ],
)
@pytest.mark.parametrize("wait", [0, 3])
def test_exceeded_retries_are_read_from_the_traceback(frames, exceeded, wait):
    driver = ClusterDriver()
    traceback = f"{HEAD}{frames}ConnectionError: no\n"
    event = failed(exception="ConnectionError('no')", name="add", queue="q", traceback=traceback)
    driver.apply(*([] if wait else [sent()]), event)
    driver.wait(wait)
    assert driver.aggregate().retries_exceeded == exceeded
    assert driver.aggregate().exceptions == {"ConnectionError": 1}


def test_exceeded_retries_are_read_once():
    """A recording has what was left of the traceback."""
    event = Event("task-failed", 1.5, "h", exception="E()", traceback=HEAD + EXCEEDED)
    for _ in range(2):
        read_traceback(event)
        assert event.traceback == RETRIES_EXCEEDED
