"""`doctor` on real brokers, each put into the state that a check is there for; its remedy helps."""

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

SECONDS = "8"  # the least
EVE = ("ACL", "SETUSER", "eve", "on", ">pw", "~*", "+@all")  # may do all that is not taken from her


def settings_of(url: str, *ssl_options: str):
    return broker_config(url, broker_ssl_option=ssl_options)


def by_check(findings) -> dict:
    return {finding.check: finding for finding in findings}


def connectivity(url: str, *ssl_options: str) -> dict:
    """Return what is found on the way to a subscription, by check."""
    return by_check(check_connectivity(settings_of(url, *ssl_options), lambda _: None))


def last(found: dict) -> tuple[str, str, str]:
    """Return the check that failed, which has to be the last one; what was found; and what mends it."""
    *before, finding = found.values()
    assert {each.severity for each in before} <= {"ok"}, before
    assert finding.severity == "critical", finding
    return finding.check, finding.message, finding.remedy


def doctor(url: str, *arguments: str, deadline: float = 60.0) -> SimpleNamespace:
    """Run it as people do, but for the format."""
    done = run_cli(
        "doctor", "--json", "--broker-url", url, "--seconds", SECONDS, *arguments, deadline=deadline
    )
    assert "Traceback" not in done.stderr, done.stderr
    report = json.loads(done.stdout)
    assert report["version"] == 1
    assert report["exit_code"] == done.returncode
    findings = {each["check"]: SimpleNamespace(**each) for each in report["findings"]}
    assert len(findings) == len(report["findings"])
    assert all(bool(each.remedy) == (each.severity != "ok") for each in findings.values())
    return SimpleNamespace(
        code=done.returncode, findings=findings, text=done.stdout, said=done.stderr, span=done.span
    )


@contextmanager
def every(seconds: float, do) -> Iterator[None]:
    """Do something again and again meanwhile."""
    over = threading.Event()

    def loop():
        while not over.wait(seconds):
            do()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)


# -- from the URL to the subscription ----------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path)


def test_a_url_of_nothing():
    check, found, remedy = last(connectivity("rediz://127.0.0.1:6379/0"))
    assert (check, "'rediz'" in found, "redis" in remedy) == ("url", True, True)


def test_a_socket_that_is_not_there_and_one_that_is(running, tmp_path):
    path = tmp_path / "redis.sock"
    check, _, remedy = last(connectivity(f"redis+socket://{path}"))
    assert (check, remedy.startswith(f"unixsocket {path} ")) == ("answer", True)
    options = ("--unixsocket", str(path), "--port", "0")
    running(RedisWithOptions(tmp_path / "redis", *options, is_ready=path.exists))
    url = f"redis+socket://{path}"
    assert {finding.severity for finding in connectivity(url).values()} == {"ok"}
    client = Redis(unix_socket_path=str(path))
    client.config_set("maxmemory-policy", "allkeys-lru")
    found = by_check(redis.run_redis_checks(settings_of(url))[0])["eviction"]
    assert found.remedy.startswith(f"redis-cli -s {path} CONFIG SET")


def test_a_host_that_does_not_exist():
    check, found, remedy = last(connectivity("redis://no-such-host.invalid:6379/0"))
    assert (check, remedy.endswith("getent hosts no-such-host.invalid")) == ("host", True)
    assert "does not resolve" in found


def test_a_port_on_which_nobody_listens():
    port = free_port()
    check, found, remedy = last(connectivity(f"amqp://127.0.0.1:{port}//"))
    assert (check, found) == ("port", f"127.0.0.1:{port}: Connection refused")
    assert "start the broker" in remedy


def test_a_password_that_is_wrong_or_missing_on_redis(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis", password="s3cret"))
    for url in (f"redis://127.0.0.1:{server.port}/0", f"redis://:wr0ng@127.0.0.1:{server.port}/0"):
        check, _, remedy = last(connectivity(url))
        assert (check, f"redis://USER:PASSWORD@127.0.0.1:{server.port}/0" in remedy) == ("login", True)
        assert "wr0ng" not in remedy
    assert list(connectivity(server.url))[-1] == "database"


@pytest.mark.parametrize(
    ("database", "finds", "says"), [("99", "database", "databases"), ("mine", "url", "redis://HOST:6379/0")]
)
def test_a_database_that_redis_does_not_have(redis_server, database, finds, says):
    url = redis_server.url.rpartition("/")[0]
    check, _, remedy = last(connectivity(f"{url}/{database}"))
    assert (check, says in remedy) == (finds, True)


def test_a_broker_that_is_another_one(redis_server, rabbit_server):
    assert last(connectivity(f"redis://127.0.0.1:{rabbit_server.port}/0"))[0] == "answer"
    assert last(connectivity(f"amqp://guest:guest@127.0.0.1:{redis_server.port}//"))[0] == "answer"


def test_tls_on_one_side_only_and_an_authority_that_is_not_known(
    running, tmp_path, certificates, redis_server
):
    port = free_port()
    files = {"cert": certificates.cert, "key": certificates.key, "ca-cert": certificates.ca}
    options = [text for name, path in files.items() for text in (f"--tls-{name}-file", str(path))]
    options += ["--tls-port", str(port), "--tls-auth-clients", "no"]
    running(RedisWithOptions(tmp_path / "redis", *options, is_ready=lambda: listening(port)))

    check, found, remedy = last(connectivity(f"redis://127.0.0.1:{port}/0"))
    assert (check, remedy) == ("tls", "--broker-url rediss://…")
    assert "speaks TLS" in found
    check, found, remedy = last(connectivity(redis_server.url.replace("redis:", "rediss:")))
    assert (check, remedy.startswith("--broker-url redis://…")) == ("tls", True)
    url = f"rediss://127.0.0.1:{port}/0"
    check, found, remedy = last(connectivity(url))
    assert (check, "certificate verify failed" in found) == ("tls", True)
    option = re.search(r"--broker-ssl-option (\S+)=", remedy)[1]
    well = connectivity(url, f"{option}={certificates.ca}")
    assert {finding.severity for finding in well.values()} == {"ok"}


def as_administrator(remedy: str) -> None:
    """Run the line that is printed, as people paste it: as the default user, who may all."""
    line = remedy.removeprefix("as an administrator: ")
    assert line.startswith("redis-cli "), remedy
    done = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True)
    assert done.stdout == "OK\n", done.stdout + line


def acl(client: Redis, user: str) -> str:
    return next(
        line for line in map(bytes.decode, client.execute_command("ACL", "LIST")) if f" {user} " in line
    )


@pytest.mark.parametrize(
    ("rights", "check", "denied"),
    [
        (("allchannels", "-psubscribe"), "subscription", ["psubscribe"]),
        (("&nothing",), "subscription", ["channels"]),
        (("&nothing", "-psubscribe"), "subscription", ["psubscribe", "channels"]),
        (("allchannels", "-llen"), "subscription", ["llen"]),  # kombu makes a queue of its own
        (("allchannels", "resetkeys"), "subscription", ["keys"]),
        (("allchannels", "resetkeys", "~mine"), "subscription", ["keys"]),
        (("allchannels", "-@all"), "login", ["run the"]),
        (("&nothing", "resetkeys", "-@all"), "login", ["run the", "keys", "channels"]),
    ],
)
def test_a_user_who_may_not_subscribe(running, tmp_path, rights, check, denied):
    """And the commands that are printed let him, one for each kind of what is denied; nothing is taken."""
    server = running(RedisServer(tmp_path / "redis"))
    client = server.client()
    client.execute_command(*EVE, *rights)
    admin = acl(client, "default")
    url = f"redis://eve:pw@127.0.0.1:{server.port}/0"
    for number, word in enumerate(denied):
        failed, found, remedy = last(connectivity(url))
        assert (failed, word in found) == (check if number == 0 else "subscription", True), found
        assert " -@" not in remedy
        as_administrator(remedy)
    assert {finding.severity for finding in connectivity(url).values()} == {"ok"}
    assert acl(client, "default") == admin


def test_the_default_user_keeps_what_he_has(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    client = server.client()
    client.execute_command("ACL", "SETUSER", "default", "-psubscribe")
    url = server.url
    as_administrator(last(connectivity(url))[2])
    assert client.acl_setuser("somebody", enabled=True)
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
def test_a_user_who_may_not_ask_workers(running, tmp_path, rights, prefix):
    """He may when he has what is printed, in a few steps."""
    server = running(RedisServer(tmp_path / "redis"))
    options = {"global_keyprefix": prefix} if prefix else {}
    running(Worker(tmp_path / "worker", server.url, "w@box", pool="solo", broker_transport_options=options))
    server.client().execute_command(*EVE, "&*", *rights)
    settings = broker_config(
        f"redis://eve:pw@127.0.0.1:{server.port}/0",
        broker_transport_option=[f"{name}={value}" for name, value in options.items()],
    )

    with pytest.raises(BrokerError) as refused:
        ask(settings)
    as_administrator(inspection_remedy(settings, str(refused.value)))
    assert ask(settings) == {"w@box"}


def test_a_replica_of_redis(running, tmp_path):
    master, replica = running(RedisServer(tmp_path / "master")), running(RedisServer(tmp_path / "replica"))
    replica.client().replicaof("127.0.0.1", master.port)
    check, found, remedy = last(connectivity(replica.url))
    assert (check, "read only replica" in found) == ("subscription", True)
    line = remedy[remedy.index("redis-cli") :]
    done = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True)
    assert f"master_port:{master.port}" in done.stdout
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
def test_the_password_of_a_socket_is_not_printed(running, tmp_path, login, query):
    path = tmp_path / "redis.sock"
    server = RedisWithOptions(
        tmp_path / "redis", "--unixsocket", str(path), "--requirepass", "s3cret", is_ready=path.exists
    )
    url = f"redis+socket://{login}{path}{query}"
    before = connectivity(url)
    running(server)
    found = connectivity(url)
    assert "s3cret" not in repr((before, found))
    assert last(before)[2].startswith(f"unixsocket {path} ")
    if login == ":s3cret@" and "99" not in query:
        assert last_level(found) == "ok"
        assert "password" not in found["database"].message
        assert found["database"].message == f"database {3 if query else 0} exists"
        client = Redis(unix_socket_path=str(path), password="s3cret")
        client.config_set("maxmemory-policy", "allkeys-lru")
        eviction = by_check(redis.run_redis_checks(settings_of(url))[0])["eviction"]
        assert eviction.remedy.startswith(f"redis-cli -s {path} --askpass CONFIG SET")
    else:
        check, _, remedy = last(found)
        assert check == ("database" if "99" in query else "login")
        assert re.match(f"--broker-url redis\\+socket://(USER:PASSWORD|…)@{path}[ ,]", remedy)


def last_level(found: dict) -> str:
    return list(found.values())[-1].severity


def test_logins_on_rabbitmq(rabbit_server):
    url = rabbit_server.clean()
    assert {finding.severity for finding in connectivity(url).values()} == {"ok"}
    check, _, remedy = last(connectivity(url.replace("guest:guest", "guest:wr0ng")))
    assert (check, "rabbitmqctl change_password guest" in remedy) == ("login", True)
    check, _, remedy = last(connectivity(rabbit_server.url_of("no such")))
    assert check == "virtual-host"
    assert remedy.startswith(
        "rabbitmqctl add_vhost 'no such' && rabbitmqctl set_permissions -p 'no such' guest"
    )


def test_a_user_of_rabbitmq_who_may_not_declare_a_queue(rabbit_server):
    """And the command that is printed lets him."""
    url = rabbit_server.clean()
    vhost = url.rpartition("/")[2]
    rabbit_server.control("set_permissions", "-p", vhost, "guest", "^$", ".*", ".*")
    check, found, remedy = last(connectivity(url))
    assert (check, "ACCESS_REFUSED" in found) == ("subscription", True)
    program, *words = shlex.split(remedy)
    assert program == "rabbitmqctl"
    rabbit_server.control(*words)
    assert {finding.severity for finding in connectivity(url).values()} == {"ok"}


def test_a_user_of_rabbitmq_who_may_not_ask_workers(rabbit_server):
    """And the command that is printed lets him: his password is right."""
    url = rabbit_server.clean()
    vhost = url.rpartition("/")[2]
    rabbit_server.control("set_permissions", "-p", vhost, "guest", "celeryev.*", "celeryev.*", ".*")
    settings = settings_of(url)
    with pytest.raises(BrokerError, match=r"\(403\) ACCESS_REFUSED") as refused:
        ask(settings)
    remedy = inspection_remedy(settings, str(refused.value))
    assert remedy == f"rabbitmqctl set_permissions -p {vhost} guest '.*' '.*' '.*'"
    rabbit_server.control(*shlex.split(remedy)[1:])
    ask(settings)


def ask(settings) -> set[str]:
    """Ask the workers as the exporter does; return the names of those that answered."""
    roster = CachedConnection(ConfigSource(settings), WorkerInspector)
    try:
        with roster.use() as asked:
            return set(asked.inspect({}))
    finally:
        roster.close()


def test_of_several_urls_one_that_leads_to_a_broker_is_enough(redis_server):
    dead = f"redis://127.0.0.1:{free_port()}/0"
    found = list(check_connectivity(settings_of(f"{dead};{redis_server.url}"), lambda _: None))
    assert [(each.check, each.severity) for each in found if each.severity != "ok"] == [("port", "warning")]
    found = list(check_connectivity(settings_of(f"{dead};{dead}"), lambda _: None))
    assert [each.severity for each in found].count("critical") == 2


def test_a_broker_that_hangs_does_not_hang_the_doctor(broker):
    broker.server.pause()
    try:
        result = doctor(broker.url)
        assert result.span.seconds < 20
    finally:
        broker.server.resume()
    assert (result.code, list(result.findings)[-1]) == (2, "answer")
    assert "does not answer" in result.findings["answer"].remedy


# -- what the broker is set to -------------------------------------------------------------------------------


def test_settings_of_redis_that_lose_tasks_or_events(running, tmp_path):
    """Each is mended by the command that is printed."""
    server = running(RedisServer(tmp_path / "redis"))
    client, settings = server.client(), settings_of(server.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("client-output-buffer-limit", "pubsub 1048576 0 0")
    found = by_check(redis.run_redis_checks(settings)[0])
    assert (found["eviction"].severity, found["output-buffer"].severity) == ("warning", "warning")
    assert "1,048,576 bytes" in found["output-buffer"].message
    client.config_set("maxmemory", "1gb")
    # Behind a URL that is dead, too, the command is for the one that lives.
    dead = settings_of(f"redis://127.0.0.1:{free_port()}/0;{server.url}")
    found["eviction"] = by_check(redis.run_redis_checks(dead)[0])["eviction"]
    assert found["eviction"].severity == "critical"
    assert found["eviction"].remedy.startswith(f"redis-cli -h 127.0.0.1 -p {server.port} CONFIG SET")
    for check in ("eviction", "output-buffer"):
        words = shlex.split(found[check].remedy.partition(", and")[0])
        client.execute_command(*words[words.index("CONFIG") :])
    assert {each.severity for each in redis.run_redis_checks(settings)[0]} == {"ok"}
    client.config_set("maxmemory-policy", "volatile-lru")
    assert by_check(redis.run_redis_checks(settings)[0])["eviction"].severity == "warning"


def test_a_broker_that_went_away_before_it_was_asked(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    server.stop()
    (found,), queues = _run_broker_checks(settings_of(server.url), DoctorOptions(seconds=8), print)
    assert (found.check, found.severity, queues) == ("broker-version", "warning", set())
    assert found.remedy.startswith(f"redis-cli -h 127.0.0.1 -p {server.port} INFO")


def test_a_redis_that_may_not_be_asked(running, tmp_path):
    """As where others run it: said to be not seen, with how to see it."""
    server = running(RedisServer(tmp_path / "redis"))
    server.client().execute_command(*EVE, "&*", "-config", "-info", "-scan")
    found = by_check(redis.run_redis_checks(settings_of(f"redis://eve:pw@127.0.0.1:{server.port}/0"))[0])
    assert {each.severity for each in found.values()} == {"ok"}
    commands = {"eviction": "CONFIG GET", "output-buffer": "CONFIG GET", "orphaned-queues": "--scan"}
    for check, how in commands.items():
        assert f"redis-cli -h 127.0.0.1 -p {server.port} --user eve --askpass {how}" in found[check].message


def test_what_was_left_on_redis_by_those_who_asked_workers(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    client, settings = server.client(), settings_of(server.url)
    with kombu.Connection(server.url) as connection:
        exchange = kombu.Exchange("reply.celery.pidbox", "direct")
        names = [f"{uuid.uuid4()}.reply.celery.pidbox" for _ in range(30)]
        for name in names:
            kombu.Queue(name, exchange, name)(connection.default_channel).declare()
    found = by_check(redis.run_redis_checks(settings)[0])["orphaned-queues"]
    assert (found.severity, "30 reply queues are bound" in found.message) == ("warning", True)
    client.rpush("model", b"answer")
    client.restore(names[0], 0, client.dump("model"), idletime=3600)
    found = by_check(redis.run_redis_checks(settings)[0])["orphaned-queues"]
    assert (found.severity, found.remedy.endswith(f"DEL {names[0]}")) == ("warning", True)
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


def test_what_was_left_on_rabbitmq_and_what_waits_there(running, tmp_path):
    """Nobody speaks of the queue with the tasks: the management API has its name."""
    server = running(ManagedRabbit(tmp_path / "rabbit"))
    management = f"http://127.0.0.1:{server.management_port}"
    left = f"celeryev.{uuid.uuid4()}"
    with kombu.Connection(server.url) as connection:
        channel = connection.default_channel
        kombu.Queue(left, kombu.Exchange("celeryev", "topic"), "#", durable=True)(channel).declare()
        jobs = kombu.Queue("jobs")
        for _ in range(4):
            connection.Producer().publish({}, routing_key="jobs", declare=[jobs])
    result = doctor(server.url, "--management", management)
    assert result.findings["broker-version"].message.startswith("RabbitMQ 3.")
    assert result.findings["transient-queues"].severity == "ok"
    assert result.findings["orphaned-queues"].remedy == f"rabbitmqctl delete_queue -p test0 {left}"
    waiting = result.findings["unconsumed-messages"]
    assert (waiting.severity, waiting.message.endswith(": jobs (4)")) == ("critical", True)
    assert waiting.remedy == "celery -A yourapp worker -E -Q jobs"
    assert "guest:guest" not in result.text + result.said

    with kombu.Connection(server.url) as connection:
        kombu.Queue(left)(connection.default_channel).delete()
    found = by_check(amqp.run_rabbitmq_checks(settings_of(server.url), management, print)[0])
    assert found["orphaned-queues"].severity == "ok"
    found = by_check(amqp.run_rabbitmq_checks(settings_of(server.url), "http://127.0.0.1:1", print)[0])
    assert (
        found["orphaned-queues"].severity,
        "rabbitmqctl list_queues" in found["orphaned-queues"].message,
    ) == (
        "ok",
        True,
    )
    with kombu.Connection(server.url) as connection:  # of an exporter with --event-queue-durable that is away
        kombu.Queue("celeryev.celery-exporter")(connection.default_channel).queue_declare()
    found = by_check(amqp.run_rabbitmq_checks(settings_of(server.url), "http://127.0.0.1:1", print)[0])[
        "orphaned-queues"
    ]
    assert (found.severity, found.remedy.endswith("test0 celeryev.celery-exporter")) == ("warning", True)


def test_the_login_is_given_to_the_management_api_and_to_nobody_that_it_points_to(rabbit_server):
    asked: list[tuple[str, str | None]] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        found = by_check(amqp.run_rabbitmq_checks(settings_of(rabbit_server.clean()), url, print)[0])[
            "orphaned-queues"
        ]
        server.shutdown()
    assert [path.partition("?")[0].rpartition("/")[0] for path, _ in asked] == ["/api/queues"]
    assert asked[0][1]
    assert "management API does not answer" in found.message


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_management_api_that_never_ends_is_not_waited_for(rabbit_server, sent):
    """A byte now and then is within the time of each read; and it is said what is being waited for."""
    said: list[str] = []
    url = rabbit_server.clean()
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:

        def drip():
            with suppress(OSError):
                client, _ = server.accept()
                stack.enter_context(client)
                client.sendall(sent)
                stack.enter_context(every(0.5, lambda: sent and client.sendall(b" ")))

        threading.Thread(target=drip, daemon=True).start()
        management = f"http://127.0.0.1:{server.getsockname()[1]}"
        with TimeSpan() as span:
            found = by_check(
                _run_broker_checks(
                    settings_of(url), DoctorOptions(seconds=8, management=management), said.append
                )[0]
            )
        assert span.seconds < CONNECT_TIMEOUT_SECONDS + 2
    assert "management API does not answer" in found["orphaned-queues"].message
    assert said == ["querying the broker", "querying the management API"]


def test_a_number_within_a_name_is_no_code(monkeypatch, rabbit_server):
    """A refusal has the name of the queue in it, which is made of anybody's digits."""
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
def sick(tmp_path_factory):
    """Return what is found on a cluster with all that can be wrong at the same time."""
    folder = tmp_path_factory.mktemp("sick")
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

            def work():
                for queue in ("celery", "other"):
                    client.send_task("tasks.succeed", queue=queue)
                publish_event_bytes(server.url, b"- {}", content_type="application/x-yaml")

            with every(0.4, work):
                yield doctor(server.url)


def test_workers_are_named_with_their_versions(sick):
    assert sick.code == 2
    assert sick.findings["workers"].message == "2 workers up: w@pod, w@pod.example.org"
    assert re.fullmatch(
        r"py-celery [\d.]+: w@pod, w@pod\.example\.org", sick.findings["worker-versions"].message
    )
    assert sick.findings["remote-control"].severity == sick.findings["heartbeats"].severity == "ok"
    assert sick.findings["duplicate-node-names"].severity == "ok"
    assert re.fullmatch(r"the first event came after [\d.]+ s", sick.findings["first-event"].message)


@pytest.mark.parametrize(
    ("check", "level", "found", "remedy"),
    [
        ("serializer", "critical", "application/x-yaml", "--accept-content json,yaml"),
        ("task-events", "warning", "no task events from worker w@pod", "control enable_events"),
        ("task-sent-events", "warning", "no task-sent event", "task_send_sent_event = True"),
        ("clock-skew", "warning", "w@pod.example.org by +120 s", "timedatectl set-ntp true"),
        ("worker-names", "warning", "w@pod, w@pod.example.org", "-n NAME@HOST"),
        ("queues-without-consumers", "warning", "empty queues without consumers: idle", "-Q idle"),
        ("unconsumed-messages", "warning", "backlog (3)", "celery -A yourapp worker -E -Q backlog"),
    ],
)
def test_what_is_wrong_with_workers_and_queues_is_found(sick, check, level, found, remedy):
    finding = sick.findings[check]
    assert finding.severity == level
    assert found in finding.message
    assert remedy in finding.remedy


def test_a_queue_that_nobody_should_consume_can_be_forgotten(sick, running, tmp_path):
    """By the command that is printed; on RabbitMQ too."""
    forget = sick.findings["queues-without-consumers"].remedy.partition("; if not: ")[2]
    server = running(RedisServer(tmp_path / "redis"))
    with kombu.Connection(server.url) as connection:
        kombu.Queue("idle", kombu.Exchange("idle"), "idle")(connection.default_channel).declare()
    settings = settings_of(server.url)
    assert redis.run_redis_checks(settings)[1] == {"idle"}
    assert (
        delete_queues_command(settings, broker_address(settings), ["idle"]).partition(" DEL ")[2]
        == forget.partition(" DEL ")[2]
    )
    subprocess.run(
        shlex.split(delete_queues_command(settings, broker_address(settings), ["idle"])),
        check=True,
        capture_output=True,
    )
    assert redis.run_redis_checks(settings)[1] == set()
    amqp_ = settings_of("amqp://guest:guest@127.0.0.1/a b")
    assert delete_queues_command(amqp_, broker_address(amqp_), ["x"]) == "rabbitmqctl delete_queue -p 'a b' x"


def test_progress_is_shown_while_it_listens_and_not_on_stdout(sick):
    assert re.search(r"listening for \d+ s more: events \d+, workers \d", sick.said)
    assert "listening" not in sick.text


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Return what two users find who may not see all keys, and what they find after doing what is printed.

    On a cluster where one worker does not answer, one is older, and one has another name after each restart;
    of the last two there are the events alone.
    """
    folder = tmp_path_factory.mktemp("odd")
    may = {"eve": ("~*.pidbox*", "~unacked*"), "bob": ("~celery",)}
    with RedisServer(folder / "redis") as server:
        for user, keys in may.items():
            rules = ("on", ">pw", "+@all", "&*", "~_kombu.*", "~celeryev.*", *keys)
            server.client().execute_command("ACL", "SETUSER", user, *rules)
        alone = {"pool": "solo", "worker_enable_remote_control": False}
        mute = Worker(folder / "mute", server.url, "mute@box", **alone)
        answering = Worker(folder / "answering", server.url, "new@box", pool="solo")

        def beat():
            now = {"timestamp": time.time(), "freq": 2.0, "active": 0, "processed": 0}
            said = {**now, "sw_ident": "py-celery", "sw_ver": "5.3.6"}
            gone = [f"w@{number:012x}" for number in range(MIN_CHANGED_HOSTS)]
            publish_events(
                server.url,
                *({"type": "worker-offline", "hostname": name, **said} for name in gone),
                *({"type": "worker-heartbeat", "hostname": name, **said} for name in ("w@abc", "old@box")),
            )

        def look(user: str, check: str):
            """Look, do what is printed, and look again."""
            url = f"redis://{user}:pw@127.0.0.1:{server.port}/0"
            before = doctor(url)
            words = shlex.split(before.findings[check].remedy)
            server.client().execute_command(*words[words.index("ACL") :])
            return before, doctor(url)

        with side_by_side(mute, answering), every(1.0, beat), ThreadPoolExecutor(2) as pool:
            eve = pool.submit(look, "eve", "queue-lengths")
            bob = pool.submit(look, "bob", "remote-control")
            yield SimpleNamespace(eve=eve.result(), bob=bob.result())


@pytest.mark.parametrize(
    ("check", "found", "remedy"),
    [
        ("worker-versions", "py-celery 5.3.6: old@box, w@abc; py-celery ", "pip install celery==5."),
        ("remote-control", "no reply from mute@box, old@box, w@abc", "worker_enable_remote_control = True"),
        ("worker-names", "4 names that differ only in the host, 3 of them down", "docker run --hostname"),
        ("queue-lengths", "workers consume celery, but the broker does not", "eve '~*' +exists +llen"),
    ],
)
def test_what_is_odd_about_workers_and_lengths_is_found(odd, check, found, remedy):
    finding = odd.eve[0].findings[check]
    assert finding.severity == "warning"
    assert found in finding.message
    assert remedy in finding.remedy


def test_who_may_not_ask_workers_is_told_so(odd):
    """And not that they do not answer."""
    before, after = (each.findings["remote-control"].message for each in odd.bob)
    assert before.startswith("workers could not be inspected: ")
    assert "no permissions" in before
    assert after.startswith("no reply from mute@box")


def test_what_is_printed_for_lengths_brings_them(odd):
    assert odd.eve[1].findings["queue-lengths"].severity == "ok"


def test_workers_that_answer_and_publish_nothing(running, tmp_path, redis_broker):
    quiet = ("--without-heartbeat", "--without-gossip")
    url = redis_broker.url
    worker = running(Worker(tmp_path / "a", url, "w@box", pool="solo", events=False, arguments=quiet))
    found = doctor(url).findings["first-event"]
    assert (found.severity, found.message.endswith("though workers replied: w@box")) == ("warning", True)
    assert found.remedy.startswith("start workers with -E and without --without-heartbeat")
    worker.stop()
    running(Worker(tmp_path / "b", url, "w@box", pool="solo"))
    assert doctor(url).findings["first-event"].severity == "ok"


def test_what_was_ended_early_says_so(redis_broker):
    """And still says what it knows by then."""
    command = [sys.executable, "-m", "celery_exporter", "doctor", "--broker-url", redis_broker.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        next(line for line in process.stderr if line.startswith("listening for"))
        process.send_signal(signal.SIGINT)
        said, more, _ = communicate(process)
    assert "Traceback" not in more
    assert process.returncode == 1
    assert re.search(r"^warning +listening +stopped early, after \d s; ", said, re.MULTILINE)


def test_ctrl_c_ends_it_while_a_broker_does_not_answer(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    server.pause()
    command = [sys.executable, "-m", "celery_exporter", "doctor", "--broker-url", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        next(line for line in process.stderr if line.startswith("logging in"))
        process.send_signal(signal.SIGINT)
        _, more, span = communicate(process)
    server.resume()
    assert span.seconds < 2
    assert (process.returncode, "Traceback" in more) == (130, False)


def test_a_full_redis_is_seen_though_each_worker_answered_before(running, tmp_path):
    """Nobody can send a task then; a running exporter says so."""
    server = running(RedisServer(tmp_path / "redis"))
    exporter = Exporter(tmp_path / "exporter", server.url)
    running(exporter, Worker(tmp_path / "worker", server.url, "w@box", pool="solo"))
    exporter.connected()
    until_equal(lambda: exporter.value("celery_worker_pool_size", worker="w@box"), 1, 20)
    server.client().config_set("maxmemory", "1")

    def wrong() -> dict:
        found = json.loads(exporter.get("/api/v1/status").text)["findings"]
        return {each["check"]: each["message"] for each in found if each["severity"] != "ok"}

    eventually(lambda: "maxmemory" in wrong().get("remote-control", ""), 30)


def test_nobody_at_all(redis_broker):
    result = doctor(redis_broker.url)
    assert result.code == 2
    assert result.findings["workers"].message.startswith("no worker found in ")
    assert "worker -E" in result.findings["workers"].remedy


def test_workers_that_publish_elsewhere_and_share_a_name(running, tmp_path, redis_broker):
    """They answer, and no event comes: the option that is printed brings them."""
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
    """Return what doctor finds by Prometheus servers that do well, and by others that do not."""
    folder = tmp_path_factory.mktemp("watched")
    with ExitStack() as stack:
        redis_server, gone = (stack.enter_context(RedisServer(folder / name)) for name in ("redis", "gone"))
        well, deaf = (
            stack.enter_context(Exporter(folder / server.folder.name, server.url)).connected()
            for server in (redis_server, gone)
        )
        gone.stop()
        url = redis_server.url
        targets = {
            "well": f"127.0.0.1:{well.port}",
            "deaf": f"127.0.0.1:{deaf.port}",
            "down": f"127.0.0.1:{free_port()}",
        }
        ran = folder / "ran"  # by a command that service discovery says
        servers = {
            name: stack.enter_context(
                Prometheus(
                    folder / f"of-{name}",
                    target,
                    path=f"/metrics;touch$IFS{ran};" if name == "down" else "/metrics",
                )
            )
            for name, target in targets.items()
        }
        others = f"127.0.0.1:{servers['well'].port}"
        servers["others"] = stack.enter_context(Prometheus(folder / "of-others", others, job="itself"))

        def beat():
            about = {"hostname": "w@box", "freq": 2.0, "active": 0, "processed": 0}
            publish_events(url, {"type": "worker-heartbeat", "timestamp": time.time(), **about})

        with every(0.5, beat):
            eventually(lambda: servers["well"].query("celery_worker_up == 1"), 20)
            eventually(lambda: servers["deaf"].query("celery_broker_up == 0"), 30)
            eventually(lambda: servers["down"].targets()[0]["health"] == "down", 20)
            eventually(lambda: servers["others"].query("up == 1"), 20)
            asked = {name: f"http://127.0.0.1:{server.port}" for name, server in servers.items()}
            asked |= {
                "nobody": f"http://127.0.0.1:{free_port()}",
                "exporter": f"http://127.0.0.1:{well.port}",
            }
            with ThreadPoolExecutor(3) as pool:
                found = pool.map(lambda each: doctor(url, "--prometheus", each), asked.values())
                yield SimpleNamespace(targets=targets, ran=ran, **dict(zip(asked, found, strict=True)))


def test_a_prometheus_that_scrapes_us_and_agrees(watched):
    found = watched.well.findings
    assert (found["prometheus"].severity, found["prometheus-agrees"].severity) == ("ok", "ok")
    assert watched.targets["well"] in found["prometheus"].message


def test_a_prometheus_that_scrapes_an_exporter_that_hears_nothing(watched):
    found = watched.deaf.findings["prometheus-agrees"]
    assert (found.severity, "receives no events itself" in found.message) == ("critical", True)
    assert (
        f"celery-exporter doctor with the options of the exporter at {watched.targets['deaf']}"
        in found.remedy
    )


@pytest.mark.parametrize(
    ("which", "found", "remedy"),
    [
        ("down", "cannot scrape http://127.0.0.1", "curl 'http://127.0.0.1"),
        ("others", "scrapes no celery-exporter", "scrape_configs"),
        ("nobody", "does not answer as Prometheus does", "/-/ready"),
        ("exporter", "does not answer as Prometheus does", "correct --prometheus"),
    ],
)
def test_a_prometheus_that_does_not_scrape_us(watched, which, found, remedy):
    finding = getattr(watched, which).findings["prometheus"]
    assert finding.severity == "critical"
    assert found in finding.message
    assert remedy in finding.remedy


def test_a_command_that_is_printed_runs_nothing_that_service_discovery_says(watched):
    command = watched.down.findings["prometheus"].remedy.partition("try: ")[2]
    subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert command.startswith("curl ")
    assert not watched.ran.exists()


def test_a_prometheus_that_holds_other_workers_than_are_heard(running, tmp_path, redis_broker):
    """For one, those of another broker."""
    exporter = Exporter(tmp_path / "exporter", redis_broker.url)
    server = Prometheus(tmp_path / "prometheus", f"127.0.0.1:{exporter.port}")
    running(exporter, server)
    exporter.connected()
    beat = {"type": "worker-heartbeat", "hostname": "w@box", "timestamp": time.time(), "freq": 2.0}
    publish_events(redis_broker.url, {**beat, "active": 0, "processed": 0, "pid": 1})
    eventually(lambda: server.query("celery_worker_up == 1"), 15)
    found = by_check(
        prometheus.run_prometheus_checks(f"http://127.0.0.1:{server.port}", "celery_", {"x@box"})
    )
    differs = found["prometheus-agrees"]
    assert (differs.severity, differs.message.endswith("without x@box, and with w@box")) == ("warning", True)


@pytest.mark.parametrize(
    ("profile", "agrees", "differs"),
    [
        ("danihodovic", "has the same 2 workers up", "without x@else, and with box"),
        ("flower", "has a profile without worker_up, so workers cannot be compared", "without x@else"),
    ],
)
def test_a_prometheus_of_an_exporter_with_another_profile(
    running, tmp_path, redis_broker, profile, agrees, differs
):
    exporter = Exporter(tmp_path / "exporter", redis_broker.url, "--profile", profile)
    server = Prometheus(tmp_path / "prometheus", f"127.0.0.1:{exporter.port}")
    running(exporter, server)
    eventually(lambda: exporter.get("/-/ready").status == 200, 20)
    eventually(lambda: server.query("celery_exporter_build_info"), 15)
    url = f"http://127.0.0.1:{server.port}"

    def compared(*up: str):
        return by_check(prometheus.run_prometheus_checks(url, "celery_", set(up)))["prometheus-agrees"]

    assert (compared().severity, compared("w@box").severity) == ("ok", "warning")  # nobody is heard there
    for name in ("w@box", "v@box"):
        beat = {"type": "worker-heartbeat", "hostname": name, "timestamp": time.time(), "freq": 2.0}
        publish_events(redis_broker.url, {**beat, "active": 0, "processed": 0, "pid": 1})
    eventually(lambda: len(server.query("celery_exporter_events_missed_total")) == 2, 15)
    both = compared("w@box", "v@box")
    assert (both.severity, agrees in both.message) == ("ok", True)
    other = compared("x@else")
    assert (other.severity, other.message.endswith(differs)) == ("warning", True)


# -- from nothing to numbers ---------------------------------------------------------------------------------


def test_from_nothing_to_see_to_numbers(running, tmp_path, redis_broker):
    """Workers without -E: doctor, log and page say what to do; then all are content, and numbers come."""
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
        said = "no task events from worker w@box: start workers with -E, or now: "
        eventually(lambda: said in exporter.text(), 45, what="the log says what to do")
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
        assert (again.code, {each.severity for each in again.findings.values()}) == (0, {"ok"}), again.text
        assert "over: task events arrive from w@box" in eventually(
            lambda: exporter.text() if "over: " in exporter.text() else "", 20
        )
    assert exporter.text().count(said) == 1


def test_what_people_read(running, tmp_path):
    """A line for each check, and what mends it under it; the password nowhere."""
    server = running(RedisServer(tmp_path / "redis", password="s3cret"))
    done = run_cli("doctor", "--broker-url", server.url.replace("/0", "/99"), deadline=30)
    assert done.returncode == 2
    *lines, fail, remedy = done.stdout.splitlines()
    assert all(re.fullmatch(r"ok       [a-z-]+ +\S.*", line) for line in lines), done.stdout
    assert re.fullmatch(r"CRITICAL database {18}\S.*", fail)
    assert re.fullmatch(r" {35}-> \S.*", remedy)
    assert "s3cret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
