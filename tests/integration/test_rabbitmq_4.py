"""RabbitMQ from 4.3 on, which denies transient non-exclusive queues, as Celery before 5.7 declares them."""

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

from .test_doctor import by_check, connectivity, doctor, every, settings_of

#: The line for rabbitmq.conf that doctor prints.
PERMIT = amqp.check_transient_queues("4.3.0", permitted=False).remedy.rpartition("in rabbitmq.conf: ")[2]
#: The defaults before Celery 5.7.
NOT_EXCLUSIVE = {"control_queue_exclusive": False, "event_queue_exclusive": False}


@pytest.fixture(scope="module")
def denying_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer4]:
    with RabbitServer4(tmp_path_factory.mktemp("denying"), vhosts=20) as server:
        yield server


@pytest.fixture(scope="module")
def permitting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer4]:
    with RabbitServer4(tmp_path_factory.mktemp("permitting"), PERMIT, vhosts=20) as server:
        yield server


def declare_transient_queue(url: str) -> None:
    with kombu.Connection(url) as connection:
        kombu.Queue("transient", durable=False)(connection.default_channel).queue_declare()


def test_the_servers_deny_and_permit_transient_queues(denying_server, permitting_server):
    """The other tests depend on this."""
    with pytest.raises(Exception, match=r"\(541\) INTERNAL_ERROR - Feature `transient_nonexcl_queues`"):
        declare_transient_queue(denying_server.clean())
    declare_transient_queue(permitting_server.clean())


def heartbeat_of_celery_5_4() -> dict[str, object]:
    """Return the heartbeat of a worker that cannot start on a denying server."""
    software = {
        "sw_ident": "py-celery",
        "sw_ver": "5.4.0",
        "sw_sys": "Linux",
        "freq": 2.0,
        "clock": 1,
        "pid": 1,
    }
    numbers = {"active": 0, "processed": 0, "loadavg": [0, 0, 0], "utcoffset": 0}
    return {
        "type": "worker-heartbeat",
        "hostname": "old@box",
        "timestamp": time.time(),
        **software,
        **numbers,
    }


def test_the_remedy_of_doctor_permits_transient_queues(denying_server, permitting_server):
    assert PERMIT == "deprecated_features.permit.transient_nonexcl_queues = true"
    url = denying_server.clean()
    with every(1, lambda: publish_events(url, heartbeat_of_celery_5_4())):
        findings = doctor(url).findings
    version = findings["broker-version"].message.removeprefix("RabbitMQ ")
    assert tuple(map(int, version.split(".")[:2])) >= (4, 3)
    denied = findings["transient-queues"]
    assert denied.severity == "warning"
    assert denied.message.startswith(f"RabbitMQ {version} denies the transient queues")
    assert denied.remedy.endswith(f"in rabbitmq.conf: {PERMIT}")
    assert findings["workers"].message == "1 worker up: old@box"

    permitted = by_check(amqp.run_rabbitmq_checks(settings_of(permitting_server.clean()), None, print)[0])[
        "transient-queues"
    ]
    assert permitted.severity == "ok"
    assert permitted.message.startswith(f"RabbitMQ {version} permits the transient queues")


def test_doctor_reports_ok_if_no_worker_declares_transient_queues(running, tmp_path, denying_server):
    url = denying_server.clean()
    running(Worker(tmp_path / "worker", url, "w@box", pool="solo"))
    findings = doctor(url).findings
    assert (findings["workers"].message, findings["remote-control"].severity) == (
        "1 worker up: w@box",
        "ok",
    )
    denied = findings["transient-queues"]
    assert denied.severity == "ok"
    assert denied.message.endswith("; the workers here have Celery 5.7 or later, and declare none")


def test_a_length_is_unreadable_without_permission_until_the_remedy_is_applied(denying_server):
    """RabbitMQ before 4.3 needs no permission for passive declarations."""
    url = denying_server.clean()
    vhost = url.rpartition("/")[2]
    with kombu.Connection(url) as connection:
        kombu.Queue("jobs")(connection.default_channel).queue_declare()
    denying_server.control("set_permissions", "-p", vhost, "guest", "^celeryev", "^celeryev", "^celeryev")

    def measured() -> QueueStats | Absence:
        with kombu.Connection(url) as connection:
            return queue_reader_for(connection).read(["jobs"], requested=["jobs"], consumed=())["jobs"]

    assert measured() is Absence.UNREADABLE
    remedy = queue_lengths_remedy(settings_of(url), "")
    assert remedy.startswith("exclusive=False ")
    command = remedy[remedy.index("rabbitmqctl set_permissions") :]
    denying_server.control(*shlex.split(command)[1:])
    assert measured() == QueueStats(0, 0)


def test_the_connectivity_checks_of_doctor_are_ok(denying_server):
    assert {finding.severity for finding in connectivity(denying_server.clean()).values()} == {"ok"}


@pytest.mark.parametrize("consumer", ["auto", "kombu"])
def test_events_are_counted(running, tmp_path, denying_server, consumer):
    url = denying_server.clean()
    app = running(Exporter(tmp_path / "exporter", url, "--event-consumer", consumer)).connected()
    publish_events(url, *task_events(1))
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1)
    assert app.get("/-/ready").status == 200
    assert "level=warning" not in app.text(), app.text()


@pytest.mark.parametrize(
    ("broker", "configuration"), [("denying_server", {}), ("permitting_server", NOT_EXCLUSIVE)]
)
def test_workers_are_counted_and_inspected(request, running, tmp_path, broker, configuration):
    """Current workers on a denying server, and workers with older defaults on a permitting one."""
    url = request.getfixturevalue(broker).clean()
    app = running(Exporter(tmp_path / "exporter", url)).connected()
    running(Worker(tmp_path / "worker", url, "w@box", pool="solo", **configuration))
    with workers.client(url, **configuration) as client:
        client.send_task("tasks.succeed", queue="celery")
        client.send_task("tasks.succeed", queue="backlog")
    until_equal(lambda: app.value("celery_worker_up", worker="w@box"), 1)
    until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS", queue_name="celery"), 1)
    # From its answers:
    until_equal(lambda: app.value("celery_worker_pool_size", worker="w@box"), 1, 20)
    until_equal(lambda: app.value("celery_queue_consumers", queue_name="celery"), 1)
    # Its queue, and a queue without consumers:
    until_equal(lambda: app.value("celery_queue_length", queue_name="celery"), 0)
    until_equal(lambda: app.value("celery_queue_length", queue_name="backlog"), 1)
    samples = app.samples().matching("celery_exporter_collector_success")
    assert set(samples.values()) == {1}, samples
    assert app.get("/-/ready").status == 200
    warnings = [line for line in app.text().splitlines() if "level=warning" in line]
    # On a busy machine, the first reply of a worker may be late.
    assert all("no worker replied" in line for line in warnings), warnings


def test_other_queues_are_measured_despite_a_name_that_closes_the_connection(
    running, tmp_path, denying_server
):
    """RabbitMQ closes the connection for a declaration of a long name, which any event may contain."""
    url, name = denying_server.clean(), "é" * 120
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


def test_workers_with_older_defaults_do_not_start(tmp_path, denying_server):
    """As doctor reports."""
    worker = Worker(tmp_path / "worker", denying_server.clean(), "w@box", pool="solo", **NOT_EXCLUSIVE)
    try:
        worker.start()
        eventually(lambda: "transient_nonexcl_queues" in worker.text(), 40, what="the error in its log")
        assert not worker.ready()
    finally:
        worker.kill()


def test_inspection_works_though_kombu_declares_reply_queues_as_not_exclusive(
    monkeypatch, running, tmp_path, denying_server
):
    """As kombu does before 5.7; the exporter supports kombu from 5.4 on."""
    get_reply_queue = Mailbox.get_reply_queue

    def not_exclusive(mailbox):
        queue = get_reply_queue(mailbox)
        queue.exclusive = False
        return queue

    monkeypatch.setattr(Mailbox, "get_reply_queue", not_exclusive)
    url = denying_server.clean()
    running(Worker(tmp_path / "worker", url, "w@box", pool="solo"))
    with connect(settings_of(url)) as connection:
        assert set(WorkerInspector(connection).inspect({})) == {"w@box"}
