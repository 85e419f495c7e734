"""`doctor` on real brokers: each check reports its problem, and its remedy solves it."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import kombu
import pytest
from harness.configs import broker_config
from harness.events import publish_event_bytes, publish_events
from harness.exporter import Exporter, run_cli
from harness.faked_clock import clock_offset
from harness.processes import TESTS, communicate, free_port, listening, side_by_side
from harness.servers import Prometheus, RabbitServer, RedisServer
from harness.tasks import BROKER_URL
from harness.time_spans import TimeSpan
from harness.waiting import eventually, until_equal
from harness.workers import Worker
from harness.workers import client as make_client
from redis import Redis

from celery_exporter.broker.connection import CONNECT_TIMEOUT_SECONDS, BrokerError, CachedConnection
from celery_exporter.broker.inspect import WorkerInspector
from celery_exporter.broker.source import ConfigSource
from celery_exporter.doctor import prometheus_checks as prometheus
from celery_exporter.doctor import rabbitmq_checks as amqp
from celery_exporter.doctor import redis_checks as redis
from celery_exporter.doctor.connectivity import check_connectivity
from celery_exporter.doctor.remedies import broker_address, delete_queues_command, inspection_remedy
from celery_exporter.doctor.runner import DoctorOptions, _run_broker_checks
from celery_exporter.status.worker_checks import MIN_CHANGED_HOSTS

from .test_broker_urls import Certificates, RedisWithOptions

SECONDS = "8"  # the minimum
#: Creates a Redis user with all permissions, from which a test removes some.
CREATE_USER = ("ACL", "SETUSER", "eve", "on", ">pw", "~*", "+@all")


def settings_of(url: str, *ssl_options: str):
    return broker_config(url, broker_ssl_option=ssl_options)


def by_check(findings) -> dict:
    return {finding.check: finding for finding in findings}


def connectivity(url: str, *ssl_options: str) -> dict:
    """Return the findings of the connectivity checks, by check."""
    return by_check(check_connectivity(settings_of(url, *ssl_options), lambda _: None))


def failure(findings: dict) -> tuple[str, str, str]:
    """Return check, message and remedy of the last finding, which must be the only one with a problem."""
    *before, finding = findings.values()
    assert {previous.severity for previous in before} <= {"ok"}, before
    assert finding.severity == "critical", finding
    return finding.check, finding.message, finding.remedy


def doctor(url: str, *arguments: str, deadline: float = 60.0) -> SimpleNamespace:
    """Run doctor; return its exit code, findings by check, output and duration."""
    command = run_cli(
        "doctor", "--json", "--broker-url", url, "--seconds", SECONDS, *arguments, deadline=deadline
    )
    assert "Traceback" not in command.stderr, command.stderr
    report = json.loads(command.stdout)
    assert report["version"] == 1
    assert report["exit_code"] == command.returncode
    findings = {fields["check"]: SimpleNamespace(**fields) for fields in report["findings"]}
    assert len(findings) == len(report["findings"])
    assert all(bool(finding.remedy) == (finding.severity != "ok") for finding in findings.values())
    return SimpleNamespace(
        code=command.returncode,
        findings=findings,
        stdout=command.stdout,
        stderr=command.stderr,
        span=command.span,
    )


@contextmanager
def every(seconds: float, function) -> Iterator[None]:
    """Call a function repeatedly in a thread."""
    stopping = threading.Event()

    def loop():
        while not stopping.wait(seconds):
            function()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(10)


# -- connectivity -----------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path)


def test_an_unknown_scheme_fails_the_url_check():
    check, message, remedy = failure(connectivity("rediz://127.0.0.1:6379/0"))
    assert (check, "'rediz'" in message, "redis" in remedy) == ("url", True, True)


def test_a_missing_unix_socket_fails_and_an_existing_one_is_ok(running, tmp_path):
    path = tmp_path / "redis.sock"
    check, _, remedy = failure(connectivity(f"redis+socket://{path}"))
    assert (check, remedy.startswith(f"unixsocket {path} ")) == ("answer", True)
    options = ("--unixsocket", str(path), "--port", "0")
    running(RedisWithOptions(tmp_path / "redis", *options, is_ready=path.exists))
    url = f"redis+socket://{path}"
    assert {finding.severity for finding in connectivity(url).values()} == {"ok"}
    client = Redis(unix_socket_path=str(path))
    client.config_set("maxmemory-policy", "allkeys-lru")
    finding = by_check(redis.run_redis_checks(settings_of(url))[0])["eviction"]
    assert finding.remedy.startswith(f"redis-cli -s {path} CONFIG SET")


def test_an_unknown_host_fails_the_host_check():
    check, message, remedy = failure(connectivity("redis://no-such-host.invalid:6379/0"))
    assert (check, remedy.endswith("getent hosts no-such-host.invalid")) == ("host", True)
    assert "does not resolve" in message


def test_a_closed_port_fails_the_port_check():
    port = free_port()
    check, message, remedy = failure(connectivity(f"amqp://127.0.0.1:{port}//"))
    assert (check, message) == ("port", f"127.0.0.1:{port}: Connection refused")
    assert "start the broker" in remedy


def test_a_wrong_or_missing_redis_password_fails_the_login_check(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis", password="s3cret"))
    for url in (f"redis://127.0.0.1:{server.port}/0", f"redis://:wr0ng@127.0.0.1:{server.port}/0"):
        check, _, remedy = failure(connectivity(url))
        assert (check, f"redis://USER:PASSWORD@127.0.0.1:{server.port}/0" in remedy) == ("login", True)
        assert "wr0ng" not in remedy
    assert list(connectivity(server.url))[-1] == "database"


@pytest.mark.parametrize(
    ("database", "failed_check", "hint"),
    [("99", "database", "databases"), ("mine", "url", "redis://HOST:6379/0")],
)
def test_an_unknown_redis_database_fails(redis_server, database, failed_check, hint):
    url = redis_server.url.rpartition("/")[0]
    check, _, remedy = failure(connectivity(f"{url}/{database}"))
    assert (check, hint in remedy) == (failed_check, True)


def test_the_protocol_of_another_broker_fails_the_answer_check(redis_server, rabbit_server):
    assert failure(connectivity(f"redis://127.0.0.1:{rabbit_server.port}/0"))[0] == "answer"
    assert failure(connectivity(f"amqp://guest:guest@127.0.0.1:{redis_server.port}//"))[0] == "answer"


def test_tls_on_one_side_or_an_unknown_authority_fails_the_tls_check(
    running, tmp_path, certificates, redis_server
):
    port = free_port()
    files = {"cert": certificates.cert, "key": certificates.key, "ca-cert": certificates.ca}
    options = [text for name, path in files.items() for text in (f"--tls-{name}-file", str(path))]
    options += ["--tls-port", str(port), "--tls-auth-clients", "no"]
    running(RedisWithOptions(tmp_path / "redis", *options, is_ready=lambda: listening(port)))

    check, message, remedy = failure(connectivity(f"redis://127.0.0.1:{port}/0"))
    assert (check, remedy) == ("tls", "--broker-url rediss://…")
    assert "speaks TLS" in message
    check, message, remedy = failure(connectivity(redis_server.url.replace("redis:", "rediss:")))
    assert (check, remedy.startswith("--broker-url redis://…")) == ("tls", True)
    url = f"rediss://127.0.0.1:{port}/0"
    check, message, remedy = failure(connectivity(url))
    assert (check, "certificate verify failed" in message) == ("tls", True)
    option = re.search(r"--broker-ssl-option (\S+)=", remedy)[1]
    trusted = connectivity(url, f"{option}={certificates.ca}")
    assert {finding.severity for finding in trusted.values()} == {"ok"}


def run_as_administrator(remedy: str) -> None:
    """Run the command of a remedy as the default user, who has all permissions."""
    line = remedy.removeprefix("as an administrator: ")
    assert line.startswith("redis-cli "), remedy
    process = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True)
    assert process.stdout == "OK\n", process.stdout + line


def acl(client: Redis, user: str) -> str:
    """Return the ACL rules of a Redis user."""
    return next(
        line for line in map(bytes.decode, client.execute_command("ACL", "LIST")) if f" {user} " in line
    )


@pytest.mark.parametrize(
    ("rights", "check", "denied"),
    [
        (("allchannels", "-psubscribe"), "subscription", ["psubscribe"]),
        (("&nothing",), "subscription", ["channels"]),
        (("&nothing", "-psubscribe"), "subscription", ["psubscribe", "channels"]),
        (("allchannels", "-llen"), "subscription", ["llen"]),  # the class of kombu calls it
        (("allchannels", "resetkeys"), "subscription", ["keys"]),
        (("allchannels", "resetkeys", "~mine"), "subscription", ["keys"]),
        (("allchannels", "-@all"), "login", ["run the"]),
        (("&nothing", "resetkeys", "-@all"), "login", ["run the", "keys", "channels"]),
    ],
)
def test_remedies_grant_a_redis_user_what_a_subscription_needs(running, tmp_path, rights, check, denied):
    """There is one remedy for each kind of denial. No remedy removes a permission."""
    server = running(RedisServer(tmp_path / "redis"))
    client = server.client()
    client.execute_command(*CREATE_USER, *rights)
    admin = acl(client, "default")
    url = f"redis://eve:pw@127.0.0.1:{server.port}/0"
    for number, word in enumerate(denied):
        failed_check, message, remedy = failure(connectivity(url))
        assert (failed_check, word in message) == (check if number == 0 else "subscription", True), message
        assert " -@" not in remedy
        run_as_administrator(remedy)
    assert {finding.severity for finding in connectivity(url).values()} == {"ok"}
    assert acl(client, "default") == admin


def test_a_remedy_for_the_default_redis_user_keeps_its_permissions(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    client = server.client()
    client.execute_command("ACL", "SETUSER", "default", "-psubscribe")
    url = server.url
    run_as_administrator(failure(connectivity(url))[2])
    assert client.acl_setuser("another", enabled=True)
    assert {finding.severity for finding in connectivity(url).values()} == {"ok"}


@pytest.mark.parametrize("prefix", ["", "{shop}"])
@pytest.mark.parametrize(
    "rights",
    [
        ("resetkeys", "~_kombu.binding*", "~{shop}_kombu.binding*", "~*celeryev.*"),
        ("-sadd",),
        ("-evalsha", "-brpop", "-time"),
        ("resetchannels", "&*/0.celeryev/*"),
    ],
)
def test_the_remedy_grants_a_redis_user_what_inspection_needs(running, tmp_path, rights, prefix):
    """Also with a global key prefix."""
    server = running(RedisServer(tmp_path / "redis"))
    options = {"global_keyprefix": prefix} if prefix else {}
    running(Worker(tmp_path / "worker", server.url, "w@box", pool="solo", broker_transport_options=options))
    server.client().execute_command(*CREATE_USER, "&*", *rights)
    settings = broker_config(
        f"redis://eve:pw@127.0.0.1:{server.port}/0",
        broker_transport_option=[f"{name}={value}" for name, value in options.items()],
    )

    with pytest.raises(BrokerError) as error:
        inspect(settings)
    run_as_administrator(inspection_remedy(settings, str(error.value)))
    assert inspect(settings) == {"w@box"}


def test_a_redis_replica_fails_the_subscription_check(running, tmp_path):
    master, replica = running(RedisServer(tmp_path / "master")), running(RedisServer(tmp_path / "replica"))
    replica.client().replicaof("127.0.0.1", master.port)
    check, message, remedy = failure(connectivity(replica.url))
    assert (check, "read only replica" in message) == ("subscription", True)
    line = remedy[remedy.index("redis-cli") :]
    process = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True)
    assert f"master_port:{master.port}" in process.stdout
    assert remedy.startswith("--broker-url ")
    assert "master_host" in remedy


@pytest.mark.parametrize(
    ("login", "query"),
    [
        (":s3cret@", ""),
        (":s3cret@", "?virtual_host=3"),
        (":s3cret@", "?virtual_host=99"),
        ("", "?password=s3cret"),
        (":s3cretx@", ""),
    ],
)
def test_the_password_of_a_unix_socket_url_is_not_printed(running, tmp_path, login, query):
    path = tmp_path / "redis.sock"
    server = RedisWithOptions(
        tmp_path / "redis", "--unixsocket", str(path), "--requirepass", "s3cret", is_ready=path.exists
    )
    url = f"redis+socket://{login}{path}{query}"
    before = connectivity(url)
    running(server)
    findings = connectivity(url)
    assert "s3cret" not in repr((before, findings))
    assert failure(before)[2].startswith(f"unixsocket {path} ")
    if login == ":s3cret@" and "99" not in query:
        assert last_severity(findings) == "ok"
        assert "password" not in findings["database"].message
        assert findings["database"].message == f"database {3 if query else 0} exists"
        client = Redis(unix_socket_path=str(path), password="s3cret")
        client.config_set("maxmemory-policy", "allkeys-lru")
        eviction = by_check(redis.run_redis_checks(settings_of(url))[0])["eviction"]
        assert eviction.remedy.startswith(f"redis-cli -s {path} --askpass CONFIG SET")
    else:
        check, _, remedy = failure(findings)
        assert check == ("database" if "99" in query else "login")
        assert re.match(f"--broker-url redis\\+socket://(USER:PASSWORD|…)@{path}[ ,]", remedy)


def last_severity(findings: dict) -> str:
    return list(findings.values())[-1].severity


def test_a_wrong_rabbitmq_password_or_virtual_host_fails(rabbit_server):
    url = rabbit_server.clean()
    assert {finding.severity for finding in connectivity(url).values()} == {"ok"}
    check, _, remedy = failure(connectivity(url.replace("guest:guest", "guest:wr0ng")))
    assert (check, "rabbitmqctl change_password guest" in remedy) == ("login", True)
    check, _, remedy = failure(connectivity(rabbit_server.url_of("no such")))
    assert check == "virtual-host"
    assert remedy.startswith(
        "rabbitmqctl add_vhost 'no such' && rabbitmqctl set_permissions -p 'no such' guest"
    )


def test_the_remedy_grants_a_rabbitmq_user_what_a_subscription_needs(rabbit_server):
    """The user must not declare queues at first."""
    url = rabbit_server.clean()
    vhost = url.rpartition("/")[2]
    rabbit_server.control("set_permissions", "-p", vhost, "guest", "^$", ".*", ".*")
    check, message, remedy = failure(connectivity(url))
    assert (check, "ACCESS_REFUSED" in message) == ("subscription", True)
    program, *words = shlex.split(remedy)
    assert program == "rabbitmqctl"
    rabbit_server.control(*words)
    assert {finding.severity for finding in connectivity(url).values()} == {"ok"}


def test_the_remedy_grants_a_rabbitmq_user_what_inspection_needs(rabbit_server):
    """The password is correct, so the remedy does not change it."""
    url = rabbit_server.clean()
    vhost = url.rpartition("/")[2]
    rabbit_server.control("set_permissions", "-p", vhost, "guest", "celeryev.*", "celeryev.*", ".*")
    settings = settings_of(url)
    with pytest.raises(BrokerError, match=r"\(403\) ACCESS_REFUSED") as error:
        inspect(settings)
    remedy = inspection_remedy(settings, str(error.value))
    assert remedy == f"rabbitmqctl set_permissions -p {vhost} guest '.*' '.*' '.*'"
    rabbit_server.control(*shlex.split(remedy)[1:])
    inspect(settings)


def inspect(settings) -> set[str]:
    """Inspect workers as the exporter does; return the names of those that replied."""
    connection = CachedConnection(ConfigSource(settings), WorkerInspector)
    try:
        with connection.use() as inspector:
            return set(inspector.inspect({}))
    finally:
        connection.close()


def test_one_reachable_broker_of_several_urls_is_enough(redis_server):
    dead = f"redis://127.0.0.1:{free_port()}/0"
    findings = list(check_connectivity(settings_of(f"{dead};{redis_server.url}"), lambda _: None))
    problems = [finding for finding in findings if finding.severity != "ok"]
    assert [(finding.check, finding.severity) for finding in problems] == [("port", "warning")]
    findings = list(check_connectivity(settings_of(f"{dead};{dead}"), lambda _: None))
    assert [finding.severity for finding in findings].count("critical") == 2


def test_a_frozen_broker_fails_the_answer_check_in_time(broker):
    broker.server.pause()
    try:
        result = doctor(broker.url)
        assert result.span.seconds < 20
    finally:
        broker.server.resume()
    assert (result.code, list(result.findings)[-1]) == (2, "answer")
    assert "does not answer" in result.findings["answer"].remedy


# -- settings of the broker ---------------------------------------------------------------------------------


def test_remedies_change_redis_settings_that_lose_tasks_or_events(running, tmp_path):
    """They are commands for the server that is up."""
    server = running(RedisServer(tmp_path / "redis"))
    client, settings = server.client(), settings_of(server.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("client-output-buffer-limit", "pubsub 1048576 0 0")
    findings = by_check(redis.run_redis_checks(settings)[0])
    assert (findings["eviction"].severity, findings["output-buffer"].severity) == ("warning", "warning")
    assert "1,048,576 bytes" in findings["output-buffer"].message
    client.config_set("maxmemory", "1gb")
    # With an unreachable first URL, the command is for the second server.
    dead = settings_of(f"redis://127.0.0.1:{free_port()}/0;{server.url}")
    findings["eviction"] = by_check(redis.run_redis_checks(dead)[0])["eviction"]
    assert findings["eviction"].severity == "critical"
    assert findings["eviction"].remedy.startswith(f"redis-cli -h 127.0.0.1 -p {server.port} CONFIG SET")
    for check in ("eviction", "output-buffer"):
        words = shlex.split(findings[check].remedy.partition(", and")[0])
        client.execute_command(*words[words.index("CONFIG") :])
    assert {finding.severity for finding in redis.run_redis_checks(settings)[0]} == {"ok"}
    client.config_set("maxmemory-policy", "volatile-lru")
    assert by_check(redis.run_redis_checks(settings)[0])["eviction"].severity == "warning"


def test_a_broker_that_stops_before_the_checks_is_a_warning(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    server.stop()
    (finding,), queues = _run_broker_checks(settings_of(server.url), DoctorOptions(seconds=8), print)
    assert (finding.check, finding.severity, queues) == ("broker-version", "warning", set())
    assert finding.remedy.startswith(f"redis-cli -h 127.0.0.1 -p {server.port} INFO")


def test_redis_settings_without_permission_are_ok_with_a_command_to_see_them(running, tmp_path):
    """Managed servers often deny these commands."""
    server = running(RedisServer(tmp_path / "redis"))
    server.client().execute_command(*CREATE_USER, "&*", "-config", "-info", "-scan")
    findings = by_check(redis.run_redis_checks(settings_of(f"redis://eve:pw@127.0.0.1:{server.port}/0"))[0])
    assert {finding.severity for finding in findings.values()} == {"ok"}
    commands = {"eviction": "CONFIG GET", "output-buffer": "CONFIG GET", "orphaned-queues": "--scan"}
    for check, command in commands.items():
        assert (
            f"redis-cli -h 127.0.0.1 -p {server.port} --user eve --askpass {command}"
            in findings[check].message
        )


def test_orphaned_reply_queues_on_redis_are_reported(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    client, settings = server.client(), settings_of(server.url)
    with kombu.Connection(server.url) as connection:
        exchange = kombu.Exchange("reply.celery.pidbox", "direct")
        names = [f"{uuid.uuid4()}.reply.celery.pidbox" for _ in range(30)]
        for name in names:
            kombu.Queue(name, exchange, name)(connection.default_channel).declare()
    finding = by_check(redis.run_redis_checks(settings)[0])["orphaned-queues"]
    assert (finding.severity, "30 reply queues are bound" in finding.message) == ("warning", True)
    client.rpush("model", b"answer")
    client.restore(names[0], 0, client.dump("model"), idletime=3600)
    finding = by_check(redis.run_redis_checks(settings)[0])["orphaned-queues"]
    assert (finding.severity, finding.remedy.endswith(f"DEL {names[0]}")) == ("warning", True)
    client.flushall()
    assert by_check(redis.run_redis_checks(settings)[0])["orphaned-queues"].severity == "ok"


class ManagedRabbit(RabbitServer):
    """RabbitMQ with its management API."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.management_port = free_port()
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        with (self.folder / "rabbitmq.conf").open("a") as configuration:
            configuration.write(
                f"management.tcp.port = {self.management_port}\nmanagement.tcp.ip = 127.0.0.1\n"
            )


def test_orphaned_queues_and_unconsumed_messages_on_rabbitmq_are_reported(running, tmp_path):
    """No event names the queue with the messages, but the management API does."""
    server = running(ManagedRabbit(tmp_path / "rabbit"))
    management = f"http://127.0.0.1:{server.management_port}"
    orphaned = f"celeryev.{uuid.uuid4()}"
    with kombu.Connection(server.url) as connection:
        channel = connection.default_channel
        kombu.Queue(orphaned, kombu.Exchange("celeryev", "topic"), "#", durable=True)(channel).declare()
        jobs = kombu.Queue("jobs")
        for _ in range(4):
            connection.Producer().publish({}, routing_key="jobs", declare=[jobs])
    result = doctor(server.url, "--management", management)
    assert result.findings["broker-version"].message.startswith("RabbitMQ 3.")
    assert result.findings["transient-queues"].severity == "ok"
    remedy = result.findings["orphaned-queues"].remedy
    assert remedy.endswith(f" again: rabbitmqctl delete_queue -p test0 {orphaned}")
    waiting = result.findings["unconsumed-messages"]
    assert (waiting.severity, waiting.message.endswith(": jobs (4)")) == ("critical", True)
    assert waiting.remedy == "celery -A yourapp worker -E -Q jobs"
    assert "guest:guest" not in result.stdout + result.stderr

    with kombu.Connection(server.url) as connection:
        kombu.Queue(orphaned)(connection.default_channel).delete()
    findings = by_check(amqp.run_rabbitmq_checks(settings_of(server.url), management, print)[0])
    assert findings["orphaned-queues"].severity == "ok"
    findings = by_check(amqp.run_rabbitmq_checks(settings_of(server.url), "http://127.0.0.1:1", print)[0])
    assert (
        findings["orphaned-queues"].severity,
        "rabbitmqctl list_queues" in findings["orphaned-queues"].message,
    ) == (
        "ok",
        True,
    )
    # The queue of an exporter with --event-queue-durable that does not run.
    with kombu.Connection(server.url) as connection:
        kombu.Queue("celeryev.celery-exporter")(connection.default_channel).queue_declare()
    finding = by_check(amqp.run_rabbitmq_checks(settings_of(server.url), "http://127.0.0.1:1", print)[0])[
        "orphaned-queues"
    ]
    assert (finding.severity, finding.remedy.endswith("test0 celeryev.celery-exporter")) == ("warning", True)


def test_a_redirect_of_the_management_api_does_not_receive_the_password(rabbit_server):
    requests: list[tuple[str, str | None]] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers["Authorization"]))
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        finding = by_check(amqp.run_rabbitmq_checks(settings_of(rabbit_server.clean()), url, print)[0])[
            "orphaned-queues"
        ]
        server.shutdown()
    assert [path.partition("?")[0].rpartition("/")[0] for path, _ in requests] == ["/api/queues"]
    assert requests[0][1]
    assert "management API does not answer" in finding.message


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_slow_response_of_the_management_api_is_not_awaited(rabbit_server, sent):
    """Single bytes arrive within the timeout of each read. Progress messages name the pending request."""
    progress: list[str] = []
    url = rabbit_server.clean()
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:

        def send_slowly():
            with suppress(OSError):
                client, _ = server.accept()
                stack.enter_context(client)
                client.sendall(sent)
                stack.enter_context(every(0.5, lambda: sent and client.sendall(b" ")))

        threading.Thread(target=send_slowly, daemon=True).start()
        management = f"http://127.0.0.1:{server.getsockname()[1]}"
        with TimeSpan() as span:
            findings = by_check(
                _run_broker_checks(
                    settings_of(url), DoctorOptions(seconds=8, management=management), progress.append
                )[0]
            )
        assert span.seconds < CONNECT_TIMEOUT_SECONDS + 2
    assert "management API does not answer" in findings["orphaned-queues"].message
    assert progress == ["querying the broker", "querying the management API"]


def test_digits_in_a_queue_name_are_no_reply_code(monkeypatch, rabbit_server):
    """The error of RabbitMQ contains the name of the queue, here with the digits 541."""
    url = rabbit_server.clean()
    vhost = url.rpartition("/")[2]
    name = uuid.UUID("54154154-1541-4541-8541-541541541541")
    monkeypatch.setattr(amqp.uuid, "uuid4", lambda: name)
    rabbit_server.control("set_permissions", "-p", vhost, "guest", "^$", ".*", ".*")
    assert amqp._permits_transient_queues(settings_of(url)) is None
    rabbit_server.control("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    assert amqp._permits_transient_queues(settings_of(url)) is True


# -- workers, events, queues ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def misconfigured(tmp_path_factory):
    """Return the result of doctor for a cluster with many problems at once."""
    folder = tmp_path_factory.mktemp("misconfigured")
    quiet = {"task_send_sent_event": False}
    with RedisServer(folder / "redis") as server:
        workers = [
            Worker(folder / "quiet", server.url, "w@pod", pool="solo", events=False, **quiet),
            Worker(
                folder / "ahead",
                server.url,
                "w@pod.example.org",
                queues="other",
                pool="solo",
                environment=clock_offset(120, "UTC"),
                **quiet,
            ),
        ]
        with side_by_side(*workers), make_client(server.url, **quiet) as client:
            with kombu.Connection(server.url) as connection:
                kombu.Queue("idle", kombu.Exchange("idle"), "idle")(connection.default_channel).declare()
            for _ in range(3):
                client.send_task("tasks.succeed", queue="backlog")

            def publish():
                for queue in ("celery", "other"):
                    client.send_task("tasks.succeed", queue=queue)
                publish_event_bytes(server.url, b"- {}", content_type="application/x-yaml")

            with every(0.4, publish):
                yield doctor(server.url)


def test_workers_and_their_versions_are_reported(misconfigured):
    assert misconfigured.code == 2
    assert misconfigured.findings["workers"].message == "2 workers up: w@pod, w@pod.example.org"
    assert re.fullmatch(
        r"py-celery [\d.]+: w@pod, w@pod\.example\.org", misconfigured.findings["worker-versions"].message
    )
    assert (
        misconfigured.findings["remote-control"].severity
        == misconfigured.findings["heartbeats"].severity
        == "ok"
    )
    assert misconfigured.findings["duplicate-node-names"].severity == "ok"
    assert re.fullmatch(r"the first event came after [\d.]+ s", misconfigured.findings["first-event"].message)


@pytest.mark.parametrize(
    ("check", "severity", "message", "remedy"),
    [
        ("serializer", "critical", "application/x-yaml", "--accept-content json,yaml"),
        ("task-events", "warning", "no task events from worker w@pod", "control enable_events"),
        ("task-sent-events", "warning", "no task-sent event arrived in", "task_send_sent_event = True"),
        ("clock-skew", "warning", "w@pod.example.org by +120 s", "timedatectl set-ntp true"),
        ("worker-names", "warning", "w@pod, w@pod.example.org", "-n NAME@HOST"),
        ("queues-without-consumers", "warning", "empty queues without consumers: idle", "-Q idle"),
        ("unconsumed-messages", "warning", "backlog (3)", "celery -A yourapp worker -E -Q backlog"),
    ],
)
def test_problems_of_workers_and_queues_are_reported(misconfigured, check, severity, message, remedy):
    finding = misconfigured.findings[check]
    assert finding.severity == severity
    assert message in finding.message
    assert remedy in finding.remedy


def test_the_remedy_deletes_an_unused_queue(misconfigured, running, tmp_path):
    """The command for RabbitMQ is only compared."""
    delete = misconfigured.findings["queues-without-consumers"].remedy.partition("; if not: ")[2]
    server = running(RedisServer(tmp_path / "redis"))
    with kombu.Connection(server.url) as connection:
        kombu.Queue("idle", kombu.Exchange("idle"), "idle")(connection.default_channel).declare()
    settings = settings_of(server.url)
    assert redis.run_redis_checks(settings)[1] == {"idle"}
    assert (
        delete_queues_command(settings, broker_address(settings), ["idle"]).partition(" DEL ")[2]
        == delete.partition(" DEL ")[2]
    )
    subprocess.run(
        shlex.split(delete_queues_command(settings, broker_address(settings), ["idle"])),
        check=True,
        capture_output=True,
    )
    assert redis.run_redis_checks(settings)[1] == set()
    amqp_ = settings_of("amqp://guest:guest@127.0.0.1/a b")
    assert delete_queues_command(amqp_, broker_address(amqp_), ["x"]) == "rabbitmqctl delete_queue -p 'a b' x"


def test_progress_goes_to_stderr(misconfigured):
    assert re.search(r"listening for \d+ s more: events \d+, workers \d", misconfigured.stderr)
    assert "listening" not in misconfigured.stdout


@pytest.fixture(scope="module")
def restricted(tmp_path_factory):
    """Return the results of doctor for two Redis users without all keys, before and after its remedies.

    One worker does not reply, one is older, and one has a new name after each restart. The last two
    consist of events only.
    """
    folder = tmp_path_factory.mktemp("restricted")
    keys_of = {"eve": ("~*.pidbox*", "~unacked*"), "bob": ("~celery",)}
    with RedisServer(folder / "redis") as server:
        for user, keys in keys_of.items():
            rules = ("on", ">pw", "+@all", "&*", "~_kombu.*", "~celeryev.*", *keys)
            server.client().execute_command("ACL", "SETUSER", user, *rules)
        options = {"pool": "solo", "worker_enable_remote_control": False}
        silent = Worker(folder / "silent", server.url, "mute@box", **options)
        answering = Worker(folder / "answering", server.url, "new@box", pool="solo")

        def send_heartbeats():
            now = {"timestamp": time.time(), "freq": 2.0, "active": 0, "processed": 0}
            fields = {**now, "sw_ident": "py-celery", "sw_ver": "5.3.6"}
            names = [f"w@{number:012x}" for number in range(MIN_CHANGED_HOSTS)]
            publish_events(
                server.url,
                *({"type": "worker-offline", "hostname": name, **fields} for name in names),
                *({"type": "worker-heartbeat", "hostname": name, **fields} for name in ("w@abc", "old@box")),
            )

        def apply_remedy(user: str, check: str):
            """Return the results before and after the remedy of a check."""
            url = f"redis://{user}:pw@127.0.0.1:{server.port}/0"
            before = doctor(url)
            words = shlex.split(before.findings[check].remedy)
            server.client().execute_command(*words[words.index("ACL") :])
            return before, doctor(url)

        with side_by_side(silent, answering), every(1.0, send_heartbeats), ThreadPoolExecutor(2) as pool:
            eve = pool.submit(apply_remedy, "eve", "queue-lengths")
            bob = pool.submit(apply_remedy, "bob", "remote-control")
            yield SimpleNamespace(eve=eve.result(), bob=bob.result())


@pytest.mark.parametrize(
    ("check", "message", "remedy"),
    [
        ("worker-versions", "py-celery 5.3.6: old@box, w@abc; py-celery ", "pip install celery==5."),
        ("remote-control", "no reply from mute@box, old@box, w@abc", "worker_enable_remote_control = True"),
        ("worker-names", "4 names that differ only in the host, 3 of them down", "docker run --hostname"),
        ("queue-lengths", "workers consume celery, but the broker does not", "eve '~*' +exists +llen"),
    ],
)
def test_problems_with_restricted_keys_are_reported(restricted, check, message, remedy):
    finding = restricted.eve[0].findings[check]
    assert finding.severity == "warning"
    assert message in finding.message
    assert remedy in finding.remedy


def test_remote_control_reports_a_missing_permission(restricted):
    """Instead of workers that do not reply."""
    before, after = (result.findings["remote-control"].message for result in restricted.bob)
    assert before.startswith("workers could not be inspected: ")
    assert "no permissions" in before
    assert after.startswith("no reply from mute@box")


def test_the_remedy_makes_queue_lengths_readable(restricted):
    assert restricted.eve[1].findings["queue-lengths"].severity == "ok"


def test_workers_that_answer_without_events_are_a_warning(running, tmp_path, redis_broker):
    quiet = ("--without-heartbeat", "--without-gossip")
    url = redis_broker.url
    worker = running(Worker(tmp_path / "a", url, "w@box", pool="solo", events=False, arguments=quiet))
    finding = doctor(url).findings["first-event"]
    assert (finding.severity, finding.message.endswith("though workers replied: w@box")) == ("warning", True)
    assert finding.remedy.startswith("start workers with -E and without --without-heartbeat")
    worker.stop()
    running(Worker(tmp_path / "b", url, "w@box", pool="solo"))
    assert doctor(url).findings["first-event"].severity == "ok"


def test_sigint_ends_doctor_early_with_the_findings_so_far(redis_broker):
    """A finding reports the early end."""
    command = [sys.executable, "-m", "celery_exporter", "doctor", "--broker-url", redis_broker.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        next(line for line in process.stderr if line.startswith("listening for"))
        process.send_signal(signal.SIGINT)
        stdout, stderr, _ = communicate(process)
    assert "Traceback" not in stderr
    assert process.returncode == 1
    assert re.search(r"^warning +listening +stopped early, after \d s; ", stdout, re.MULTILINE)


def test_sigint_ends_doctor_while_the_broker_does_not_answer(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    server.pause()
    command = [sys.executable, "-m", "celery_exporter", "doctor", "--broker-url", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        next(line for line in process.stderr if line.startswith("logging in"))
        process.send_signal(signal.SIGINT)
        _, stderr, span = communicate(process)
    server.resume()
    assert span.seconds < 2
    assert (process.returncode, "Traceback" in stderr) == (130, False)


def test_the_status_reports_a_full_redis(running, tmp_path):
    """Workers replied before Redis was full, and no client can send a task."""
    server = running(RedisServer(tmp_path / "redis"))
    exporter = Exporter(tmp_path / "exporter", server.url)
    running(exporter, Worker(tmp_path / "worker", server.url, "w@box", pool="solo"))
    exporter.connected()
    until_equal(lambda: exporter.value("celery_worker_pool_size", worker="w@box"), 1, 20)
    server.client().config_set("maxmemory", "1")

    def problems() -> dict:
        findings = json.loads(exporter.get("/api/v1/status").text)["findings"]
        return {finding["check"]: finding["message"] for finding in findings if finding["severity"] != "ok"}

    eventually(lambda: "maxmemory" in problems().get("remote-control", ""), 30)


def test_a_broker_without_workers_is_critical(redis_broker):
    result = doctor(redis_broker.url)
    assert result.code == 2
    assert result.findings["workers"].message.startswith("no worker found in ")
    assert "worker -E" in result.findings["workers"].remedy


def test_another_event_exchange_and_a_duplicate_node_name_are_reported(running, tmp_path, redis_broker):
    """Workers reply, but no event arrives until the option of the remedy is set."""
    workers = [
        Worker(tmp_path / name, redis_broker.url, "w@box", pool="solo", event_exchange="mine")
        for name in "ab"
    ]
    running(*workers)
    result = doctor(redis_broker.url)
    assert (result.code, result.findings["heartbeats"].severity) == (2, "warning")
    assert (
        result.findings["duplicate-node-names"].severity,
        "w@box" in result.findings["duplicate-node-names"].message,
    ) == (
        "critical",
        True,
    )
    assert result.findings["first-event"].remedy == "--event-exchange mine"
    result = doctor(redis_broker.url, *result.findings["first-event"].remedy.split())
    assert (result.findings["first-event"].severity, result.findings["heartbeats"].severity) == ("ok", "ok")


# -- Prometheus ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Return the results of doctor for Prometheus servers with and without problems."""
    folder = tmp_path_factory.mktemp("watched")
    with ExitStack() as stack:
        redis_server, stopped = (
            stack.enter_context(RedisServer(folder / name)) for name in ("redis", "stopped")
        )
        connected, disconnected = (
            stack.enter_context(Exporter(folder / server.folder.name, server.url)).connected()
            for server in (redis_server, stopped)
        )
        stopped.stop()
        url = redis_server.url
        targets = {
            "connected": f"127.0.0.1:{connected.port}",
            "disconnected": f"127.0.0.1:{disconnected.port}",
            "down": f"127.0.0.1:{free_port()}",
        }
        injected = folder / "injected"  # created by a shell command in a path of service discovery
        servers = {
            name: stack.enter_context(
                Prometheus(
                    folder / f"of-{name}",
                    target,
                    path=f"/metrics;touch$IFS{injected};" if name == "down" else "/metrics",
                )
            )
            for name, target in targets.items()
        }
        others = f"127.0.0.1:{servers['connected'].port}"
        servers["others"] = stack.enter_context(Prometheus(folder / "of-others", others, job="itself"))

        def send_heartbeat():
            fields = {"hostname": "w@box", "freq": 2.0, "active": 0, "processed": 0}
            publish_events(url, {"type": "worker-heartbeat", "timestamp": time.time(), **fields})

        with every(0.5, send_heartbeat):
            eventually(lambda: servers["connected"].query("celery_worker_up == 1"), 20)
            eventually(lambda: servers["disconnected"].query("celery_broker_up == 0"), 30)
            eventually(lambda: servers["down"].targets()[0]["health"] == "down", 20)
            eventually(lambda: servers["others"].query("up == 1"), 20)
            urls = {name: f"http://127.0.0.1:{server.port}" for name, server in servers.items()}
            urls |= {
                "unused": f"http://127.0.0.1:{free_port()}",
                "exporter": f"http://127.0.0.1:{connected.port}",
            }
            with ThreadPoolExecutor(3) as pool:
                results = pool.map(lambda server_url: doctor(url, "--prometheus", server_url), urls.values())
                by_name = dict(zip(urls, results, strict=True))
                yield SimpleNamespace(targets=targets, injected=injected, **by_name)


def test_a_prometheus_with_the_same_workers_is_ok(watched):
    findings = watched.connected.findings
    assert (findings["prometheus"].severity, findings["prometheus-agrees"].severity) == ("ok", "ok")
    assert watched.targets["connected"] in findings["prometheus"].message


def test_an_exporter_without_events_is_reported(watched):
    finding = watched.disconnected.findings["prometheus-agrees"]
    assert (finding.severity, "receives no events itself" in finding.message) == ("critical", True)
    assert (
        f"celery-exporter doctor with the options of the exporter at {watched.targets['disconnected']}"
        in finding.remedy
    )


@pytest.mark.parametrize(
    ("server", "message", "remedy"),
    [
        ("down", "cannot scrape http://127.0.0.1", "curl 'http://127.0.0.1"),
        ("others", "scrapes no celery-exporter", "scrape_configs"),
        ("unused", "does not answer as Prometheus does", "/-/ready"),
        ("exporter", "does not answer as Prometheus does", "correct --prometheus"),
    ],
)
def test_a_prometheus_that_does_not_scrape_the_exporter_is_critical(watched, server, message, remedy):
    finding = getattr(watched, server).findings["prometheus"]
    assert finding.severity == "critical"
    assert message in finding.message
    assert remedy in finding.remedy


def test_a_remedy_quotes_texts_of_service_discovery(watched):
    command = watched.down.findings["prometheus"].remedy.partition("try: ")[2]
    subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert command.startswith("curl ")
    assert not watched.injected.exists()


def test_a_prometheus_with_other_workers_is_a_warning(running, tmp_path, redis_broker):
    """For example workers of another broker."""
    exporter = Exporter(tmp_path / "exporter", redis_broker.url)
    server = Prometheus(tmp_path / "prometheus", f"127.0.0.1:{exporter.port}")
    running(exporter, server)
    exporter.connected()
    beat = {"type": "worker-heartbeat", "hostname": "w@box", "timestamp": time.time(), "freq": 2.0}
    publish_events(redis_broker.url, {**beat, "active": 0, "processed": 0, "pid": 1})
    eventually(lambda: server.query("celery_worker_up == 1"), 15)
    findings = by_check(
        prometheus.run_prometheus_checks(f"http://127.0.0.1:{server.port}", "celery_", {"x@box"})
    )
    differs = findings["prometheus-agrees"]
    assert (differs.severity, differs.message.endswith("without x@box, and with w@box")) == ("warning", True)


@pytest.mark.parametrize(
    ("profile", "agrees", "differs"),
    [
        ("danihodovic", "has the same 2 workers up", "without x@else, and with box"),
        ("flower", "has a profile without worker_up, so workers cannot be compared", "without x@else"),
    ],
)
def test_workers_are_compared_for_an_exporter_with_another_profile(
    running, tmp_path, redis_broker, profile, agrees, differs
):
    exporter = Exporter(tmp_path / "exporter", redis_broker.url, "--profile", profile)
    server = Prometheus(tmp_path / "prometheus", f"127.0.0.1:{exporter.port}")
    running(exporter, server)
    eventually(lambda: exporter.get("/-/ready").status == 200, 20)
    eventually(lambda: server.query("celery_exporter_build_info"), 15)
    url = f"http://127.0.0.1:{server.port}"

    def compare(*up: str):
        return by_check(prometheus.run_prometheus_checks(url, "celery_", set(up)))["prometheus-agrees"]

    # The exporter has received no event yet.
    assert (compare().severity, compare("w@box").severity) == ("ok", "warning")
    for name in ("w@box", "v@box"):
        beat = {"type": "worker-heartbeat", "hostname": name, "timestamp": time.time(), "freq": 2.0}
        publish_events(redis_broker.url, {**beat, "active": 0, "processed": 0, "pid": 1})
    eventually(lambda: len(server.query("celery_exporter_events_missed_total")) == 2, 15)
    both = compare("w@box", "v@box")
    assert (both.severity, agrees in both.message) == ("ok", True)
    other = compare("x@else")
    assert (other.severity, other.message.endswith(differs)) == ("warning", True)


# -- as a user runs it --------------------------------------------------------------------------------------


def test_the_remedy_for_workers_without_events_starts_the_metrics(running, tmp_path, redis_broker):
    """Doctor, log and page have the remedy. After it doctor reports no problem, and tasks are counted."""
    url = redis_broker.url
    exporter = Exporter(tmp_path / "exporter", url)
    server = Prometheus(tmp_path / "prometheus", f"127.0.0.1:{exporter.port}")
    running(exporter, server, Worker(tmp_path / "worker", url, "w@box", events=False))
    exporter.connected()
    idle = doctor(url)
    assert "to be sure: celery -A yourapp control enable_events" in idle.findings["task-events"].message
    with make_client(url) as client, every(0.3, lambda: client.send_task("tasks.succeed", queue="celery")):
        result = doctor(url)
        assert (result.code, result.findings["task-events"].severity) == (2, "critical")
        message = "no task events from worker w@box: start workers with -E, or now: "
        eventually(lambda: message in exporter.text(), 45, what="the remedy in the log")
        assert exporter.total("celery_tasks_total", state="SUCCESS") == 0
        page = html.unescape(exporter.get("/").body.decode())
        assert "no task events from worker w@box" in page
        assert f"<code>{result.findings['task-events'].remedy}</code>" in page

        command = re.search(r"celery -A yourapp [\w ]+", result.findings["task-events"].remedy)[0]
        subprocess.run(
            [sys.executable, "-m", *shlex.split(command.replace("yourapp", "harness.tasks"))],
            env={**os.environ, "PYTHONPATH": str(TESTS), BROKER_URL: url},
            check=True,
        )
        eventually(lambda: exporter.total("celery_tasks_total", state="SUCCESS") > 0, 20)
        again = doctor(url, "--prometheus", f"http://127.0.0.1:{server.port}")
        assert (again.code, {finding.severity for finding in again.findings.values()}) == (0, {"ok"}), (
            again.stdout
        )
        assert "resolved: task events arrive from w@box" in eventually(
            lambda: exporter.text() if "resolved: " in exporter.text() else "", 20
        )
    assert exporter.text().count(message) == 1


def test_one_batch_of_tasks_shows_that_task_events_are_off(running, tmp_path, redis_broker):
    """No task-received event arrives either, which does not mean that no task was received."""
    url = redis_broker.url
    running(Worker(tmp_path / "worker", url, "w@box", events=False, task_send_sent_event=False))
    command = [sys.executable, "-m", "celery_exporter", "doctor", "--broker-url", url, "--seconds", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        next(line for line in process.stderr if line.endswith("workers 1\n"))
        with make_client(url, task_send_sent_event=False) as client:
            for _ in range(10):
                client.send_task("tasks.succeed", queue="celery")
        stdout, _, _ = communicate(process)
    assert process.returncode == 2
    lines = [" ".join(line.split()) for line in stdout.splitlines()]
    assert "CRITICAL task-events no task events from worker w@box" in lines, stdout
    unknown = r"warning task-sent-events no task-received event arrived in \d+ s, so it is unknown whether "
    assert any(re.match(unknown, line) for line in lines), stdout


def test_the_text_output_has_a_line_per_check_and_its_remedy(running, tmp_path):
    """It does not contain the password."""
    server = running(RedisServer(tmp_path / "redis", password="s3cret"))
    command = run_cli("doctor", "--broker-url", server.url.replace("/0", "/99"), deadline=30)
    assert command.returncode == 2
    *lines, problem, remedy = command.stdout.splitlines()
    assert all(re.fullmatch(r"ok       [a-z-]+ +\S.*", line) for line in lines), command.stdout
    assert re.fullmatch(r"CRITICAL database {18}\S.*", problem)
    assert re.fullmatch(r" {35}-> \S.*", remedy)
    assert "s3cret" not in command.stdout + command.stderr
    assert "Traceback" not in command.stderr
