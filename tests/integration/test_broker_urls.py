"""Broker URLs that kombu accepts: events are counted and queues measured for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from harness.exporter import Exporter, run_cli
from harness.processes import Process, free_port, listening
from harness.servers import RabbitServer, RedisServer
from harness.waiting import eventually, until_equal
from harness.workers import Worker, client

Start = Callable[..., Any]


class Certificates:
    """A certificate authority, and a certificate that it issued for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        server = authority.issue_cert("127.0.0.1", "localhost")
        self.ca, self.cert, self.key = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
        authority.cert_pem.write_to_path(str(self.ca))
        server.private_key_pem.write_to_path(str(self.key))
        server.cert_chain_pems[0].write_to_path(str(self.cert))


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


class RedisWithOptions(RedisServer):
    """redis-server with more options. `is_ready` returns whether it is ready."""

    def __init__(self, folder: Path, *options: str, is_ready: Callable[[], bool]) -> None:
        super().__init__(folder)
        self.options = options
        self.is_ready = is_ready

    def command(self) -> list[str]:
        return [*super().command(), *self.options]

    def ready(self) -> bool:
        return self.is_ready()


class Sentinel(Process):
    """One Sentinel for one master."""

    name = "sentinel"

    def __init__(self, folder: Path, master: RedisServer) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.program = master.program
        self.configuration = folder / "sentinel.conf"
        self.configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
        )

    def command(self) -> list[str]:
        return [self.program, str(self.configuration), "--sentinel"]

    def ready(self) -> bool:
        return listening(self.port)


class TLSRabbit(RabbitServer):
    """RabbitMQ with a TLS listener beside the plain one."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        super().__init__(folder)
        self.tls_port = free_port()
        with (folder / "rabbitmq.conf").open("a") as configuration:
            configuration.write(
                f"listeners.ssl.default = 127.0.0.1:{self.tls_port}\n"
                f"ssl_options.cacertfile = {certificates.ca}\n"
                f"ssl_options.certfile = {certificates.cert}\n"
                f"ssl_options.keyfile = {certificates.key}\n"
            )


def check_broker(
    running: Start, folder: Path, url: str, *options: str, worker_url: str = "", **configuration: Any
) -> None:
    """Check that tasks on this broker are counted by queue, and that the queue is measured."""
    exporter = running(Exporter(folder / "exporter", url, *options)).connected()
    worker = Worker(folder / "worker", worker_url or url, pool="threads", **configuration)
    with client(worker_url or url, **configuration) as app:
        running(worker)
        for _ in range(5):
            app.send_task("tasks.succeed", queue="celery")
    until_equal(lambda: exporter.total("celery_tasks_total", state="SUCCESS", queue_name="celery"), 5, 20)
    eventually(lambda: exporter.value("celery_queue_length", queue_name="celery") == 0)
    eventually(lambda: exporter.value("celery_queue_consumers", queue_name="celery") == 1)


def test_a_unix_socket_works(running: Start, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    running(RedisWithOptions(tmp_path / "redis", "--unixsocket", str(path), is_ready=path.exists))
    check_broker(running, tmp_path, f"redis+socket://{path}?virtual_host=2")


def test_tls_on_redis_verifies_the_certificate(
    running: Start, tmp_path: Path, certificates: Certificates
) -> None:
    port = free_port()
    files = {"cert": certificates.cert, "key": certificates.key, "ca-cert": certificates.ca}
    options = [text for name, path in files.items() for text in (f"--tls-{name}-file", str(path))]
    running(
        RedisWithOptions(
            tmp_path / "redis",
            *("--tls-port", str(port), "--tls-auth-clients", "no", *options),
            is_ready=lambda: listening(port),
        )
    )
    url = f"rediss://127.0.0.1:{port}/0"
    worker_url = f"{url}?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={certificates.ca}"
    refused = running(Exporter(tmp_path / "refused", url))
    check_broker(
        running,
        tmp_path,
        url,
        "--broker-ssl-option",
        f"ssl_ca_certs={certificates.ca}",
        worker_url=worker_url,
    )
    assert refused.get("/-/ready").status == 503, "a certificate of an unknown authority is refused"
    assert "certificate verify failed" in refused.text()
    insecure = running(Exporter(tmp_path / "insecure", url, "--broker-ssl-option", "ssl_cert_reqs=none"))
    insecure.connected()


def test_tls_on_rabbitmq_verifies_the_certificate(
    running: Start, tmp_path: Path, certificates: Certificates
) -> None:
    rabbit = running(TLSRabbit(tmp_path / "rabbit", certificates))
    url = rabbit.url.replace("amqp://", "amqps://").replace(str(rabbit.port), str(rabbit.tls_port))
    refused = running(Exporter(tmp_path / "refused", url))
    check_broker(
        running, tmp_path, url, "--broker-ssl-option", f"ca_certs={certificates.ca}", worker_url=rabbit.url
    )
    assert refused.get("/-/ready").status == 503
    assert "certificate verify failed" in refused.text()


def test_sentinel_works(running: Start, tmp_path: Path) -> None:
    master = running(RedisServer(tmp_path / "redis"))
    sentinel = running(Sentinel(tmp_path / "sentinel", master))
    check_broker(
        running,
        tmp_path,
        f"sentinel://127.0.0.1:{sentinel.port}/0",
        *("--broker-transport-option", "master_name=mymaster"),
        broker_transport_options={"master_name": "mymaster"},
    )


def test_the_exporter_fails_over_to_the_url_that_is_up(running: Start, tmp_path: Path) -> None:
    redis = running(RedisServer(tmp_path / "redis"))
    dead = [f"redis://127.0.0.1:{free_port()}/0" for _ in range(2)]
    check_broker(running, tmp_path, ";".join([*dead, redis.url]), worker_url=redis.url)


@pytest.mark.parametrize(
    "options",
    [{"global_keyprefix": "shop:"}, {"fanout_prefix": False, "fanout_patterns": False}, {"sep": ":"}],
    ids=lambda options: next(iter(options)),
)
def test_transport_options_that_rename_keys_and_channels_work(
    running: Start, tmp_path: Path, options: dict[str, Any]
) -> None:
    redis = running(RedisServer(tmp_path / "redis"))
    flags = [
        text
        for name, value in options.items()
        for text in ("--broker-transport-option", f"{name}={str(value).lower() if value is False else value}")
    ]
    check_broker(running, tmp_path, redis.url, *flags, broker_transport_options=options)


def test_the_filesystem_transport_works(running: Start, tmp_path: Path) -> None:
    """A folder as a broker has fan-out, and needs no server."""
    folders = {f"data_folder_{side}": str(tmp_path / "folder") for side in ("in", "out")}
    options = {**folders, "control_folder": str(tmp_path / "control")}
    (tmp_path / "folder").mkdir()
    flags = [text for pair in options.items() for text in ("--broker-transport-option", "=".join(pair))]
    exporter = running(Exporter(tmp_path / "exporter", "filesystem://", *flags)).connected()
    with client("filesystem://", broker_transport_options=options) as app:
        for _ in range(5):
            app.send_task("tasks.succeed", queue="celery")
    until_equal(lambda: exporter.total("celery_tasks_total", state="PENDING", queue_name="celery"), 5, 20)
    eventually(lambda: exporter.value("celery_queue_length", queue_name="celery") == 5)
    assert exporter.value("celery_queue_consumers", queue_name="celery") is None, "unknown"


def test_a_transport_whose_package_is_missing_is_one_line_and_exit_code_2() -> None:
    command = run_cli("--broker-url", "zookeeper://127.0.0.1/")
    assert command.returncode == 2
    (line,) = command.stderr.splitlines()
    assert "zookeeper" in line
    assert "pip install" in line
