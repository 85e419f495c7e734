"""RabbitMQ from 4.3 on, which denies transient queues that are shared, as Celery before 5.7 declares them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator

import kombu
import pytest
from harness import workers
from harness.events import publish_events, task_events
from harness.exporter import Exporter
from harness.servers import RabbitServer4
from harness.waiting import eventually, until_equal
from harness.workers import Worker
from kombu.pidbox import Mailbox

from celery_exporter.broker.connection import connect
from celery_exporter.broker.inspect import WorkerInspector
from celery_exporter.broker.queues.factory import queue_reader_for
from celery_exporter.core.queues import Absence
from celery_exporter.core.snapshot import QueueStats
from celery_exporter.doctor import rabbitmq_checks as amqp
from celery_exporter.doctor.remedies import queue_lengths_remedy

from .test_doctor import by_check, doctor, every, rungs, settings_of

#: What the doctor has people put into rabbitmq.conf.
PERMIT = amqp.check_transient_queues("4.3.0", permitted=False).remedy.rpartition("in rabbitmq.conf: ")[2]
#: What Celery before 5.7 does.
SHARED = {"control_queue_exclusive": False, "event_queue_exclusive": False}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer4]:
    with RabbitServer4(tmp_path_factory.mktemp("strict"), vhosts=20) as server:
        yield server


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer4]:
    with RabbitServer4(tmp_path_factory.mktemp("lenient"), PERMIT, vhosts=20) as server:
        yield server


def declare_shared(url: str) -> None:
    with kombu.Connection(url) as connection:
        kombu.Queue("shared", durable=False)(connection.default_channel).queue_declare()


def test_it_is_one_that_denies_them(strict, lenient):
    """Without the exporter: what the tests below stand on."""
    with pytest.raises(Exception, match=r"\(541\) INTERNAL_ERROR - Feature `transient_nonexcl_queues`"):
        declare_shared(strict.clean())
    declare_shared(lenient.clean())


def heartbeat_of_before() -> dict[str, object]:
    """Return that of a worker of Celery 5.4, which cannot come up here."""
    about = {"sw_ident": "py-celery", "sw_ver": "5.4.0", "sw_sys": "Linux", "freq": 2.0, "clock": 1, "pid": 1}
    numbers = {"active": 0, "processed": 0, "loadavg": [0, 0, 0], "utcoffset": 0}
    return {"type": "worker-heartbeat", "hostname": "old@box", "timestamp": time.time(), **about, **numbers}


def test_the_doctor_says_how_to_permit_them_and_that_permits_them(strict, lenient):
    assert PERMIT == "deprecated_features.permit.transient_nonexcl_queues = true"
    url = strict.clean()
    with every(1, lambda: publish_events(url, heartbeat_of_before())):
        found = doctor(url).found
    version = found["broker-version"].message.removeprefix("RabbitMQ ")
    assert tuple(map(int, version.split(".")[:2])) >= (4, 3)
    denied = found["transient-queues"]
    assert denied.severity == "warning"
    assert denied.message.startswith(f"RabbitMQ {version} denies the transient queues")
    assert denied.remedy.endswith(f"in rabbitmq.conf: {PERMIT}")
    assert found["workers"].message == "1 worker up: old@box"

    permitted = by_check(amqp.run_rabbitmq_checks(settings_of(lenient.clean()), None, print)[0])[
        "transient-queues"
    ]
    assert permitted.severity == "ok"
    assert permitted.message.startswith(f"RabbitMQ {version} permits the transient queues")


def test_the_doctor_is_content_with_workers_that_declare_none(running, tmp_path, strict):
    url = strict.clean()
    running(Worker(tmp_path / "worker", url, "w@box", pool="solo"))
    found = doctor(url).found
    assert (found["workers"].message, found["remote-control"].severity) == ("1 worker up: w@box", "ok")
    denied = found["transient-queues"]
    assert denied.severity == "ok"
    assert denied.message.endswith("; the workers here have Celery 5.7 or later, and declare none")


def test_a_user_who_may_not_ask_for_queue_lengths(strict):
    """RabbitMQ before 4.3 told everybody; and the command that is printed lets him. An error is never a 0."""
    url = strict.clean()
    vhost = url.rpartition("/")[2]
    with kombu.Connection(url) as connection:
        kombu.Queue("jobs")(connection.default_channel).queue_declare()
    strict.control("set_permissions", "-p", vhost, "guest", "^celeryev", "^celeryev", "^celeryev")

    def measured() -> QueueStats | Absence:
        with kombu.Connection(url) as connection:
            return queue_reader_for(connection).read(["jobs"], requested=["jobs"], consumed=())["jobs"]

    assert measured() is Absence.UNREADABLE
    remedy = queue_lengths_remedy(settings_of(url), "")
    assert remedy.startswith("exclusive=False ")
    command = remedy[remedy.index("rabbitmqctl set_permissions") :]
    strict.control(*shlex.split(command)[1:])
    assert measured() == QueueStats(0, 0)


def test_the_doctor_can_subscribe(strict):
    assert {finding.severity for finding in rungs(strict.clean()).values()} == {"ok"}


@pytest.mark.parametrize("reader", ["auto", "kombu"])
def test_events_are_counted(running, tmp_path, strict, reader):
    url = strict.clean()
    app = running(Exporter(tmp_path / "exporter", url, "--event-consumer", reader)).connected()
    publish_events(url, *task_events(1))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1)
    assert app.get("/-/ready").status == 200
    assert "level=warning" not in app.text(), app.text()


@pytest.mark.parametrize(("broker", "configuration"), [("strict", {}), ("lenient", SHARED)])
def test_workers_are_seen_and_asked(request, running, tmp_path, broker, configuration):
    """Those of today on a RabbitMQ as it comes, and those of before on one that was told to permit them."""
    url = request.getfixturevalue(broker).clean()
    app = running(Exporter(tmp_path / "exporter", url)).connected()
    running(Worker(tmp_path / "worker", url, "w@box", pool="solo", **configuration))
    with workers.client(url, **configuration) as client:
        client.send_task("tasks.succeed", queue="celery")
        client.send_task("tasks.succeed", queue="backlog")
    until_equal(lambda: app.value("celery_worker_up", worker="w@box"), 1)
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS", queue_name="celery"), 1)
    # Its answers:
    until_equal(lambda: app.value("celery_worker_pool_size", worker="w@box"), 1, 20)
    until_equal(lambda: app.value("celery_queue_consumers", queue_name="celery"), 1)
    # Its queue, and one that nobody consumes:
    until_equal(lambda: app.value("celery_queue_length", queue_name="celery"), 0)
    until_equal(lambda: app.value("celery_queue_length", queue_name="backlog"), 1)
    samples = app.samples().matching("celery_exporter_collector_success")
    assert set(samples.values()) == {1}, samples
    assert app.get("/-/ready").status == 200
    warnings = [line for line in app.text().splitlines() if "level=warning" in line]
    # A busy worker may take longer for its first answer than is waited for it.
    assert all("no worker answered" in line for line in warnings), warnings


def test_a_name_too_long_for_a_refusal_costs_no_other_queue_its_length(running, tmp_path, strict):
    """RabbitMQ ends the connection over the question, which anybody can bring about with an event."""
    url, name = strict.clean(), "é" * 120
    connection = kombu.Connection(url)
    with connection, pytest.raises(connection.connection_errors, match="INTERNAL_ERROR"):
        connection.default_channel.queue_declare(name, passive=True)
    with workers.client(url) as client:
        client.send_task("tasks.succeed", queue="backlog")
    app = running(Exporter(tmp_path / "exporter", url, "-Q", f"{name},nowhere,backlog"))
    until_equal(
        lambda: app.samples().by("celery_queue_length", "queue_name"), {("backlog",): 1, ("nowhere",): 0}
    )
    assert app.value("celery_exporter_collector_success", collector="queues") == 1


def test_workers_of_before_are_denied(tmp_path, strict):
    """As the doctor says: they do not come up."""
    worker = Worker(tmp_path / "worker", strict.clean(), "w@box", pool="solo", **SHARED)
    try:
        worker.start()
        eventually(lambda: "transient_nonexcl_queues" in worker.text(), 40, what="the refusal in its log")
        assert not worker.ready()
    finally:
        worker.kill()


def test_workers_are_asked_whatever_kombu_declares(monkeypatch, running, tmp_path, strict):
    """Before 5.7 it has the queue of the answers shared; the exporter takes kombu from 5.4 on."""
    real = Mailbox.get_reply_queue

    def shared(mailbox):
        queue = real(mailbox)
        queue.exclusive = False
        return queue

    monkeypatch.setattr(Mailbox, "get_reply_queue", shared)
    url = strict.clean()
    running(Worker(tmp_path / "worker", url, "w@box", pool="solo"))
    with connect(settings_of(url)) as connection:
        assert set(WorkerInspector(connection).inspect({})) == {"w@box"}
