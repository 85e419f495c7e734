"""`doctor` on real brokers, each put into the state that a check is there for; what mends it does mend it."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import kombu
import pytest
from harness.clocks import off_by
from harness.events import publish_event_bytes, publish_events
from harness.exporter import Exporter, run_cli
from harness.processes import TESTS, free_port, listening, side_by_side
from harness.servers import Prometheus, RabbitServer, RedisServer
from harness.tasks import BROKER_URL
from harness.waiting import eventually
from harness.workers import Worker
from harness.workers import client as make_client

from celery_exporter.doctor import amqp, prometheus, redis
from celery_exporter.doctor.ladder import climb
from celery_exporter.settings import load

from .test_urls import Certificates, OddRedis

SECONDS = "8"  # the least
EVE = ("ACL", "SETUSER", "eve", "on", ">pw", "~*", "+@all")  # may do all that is not taken from her


def settings_of(url: str, *ssl_options: str):
    return load({"broker_url": url, "broker_ssl_option": ssl_options}, {})


def by_check(findings) -> dict:
    return {finding.check: finding for finding in findings}


def rungs(url: str, *ssl_options: str) -> dict:
    """Return what is found on the way to a subscription, by check."""
    return by_check(climb(settings_of(url, *ssl_options), lambda _: None))


def last(found: dict) -> tuple[str, str, str]:
    """Return the check that failed, which has to be the last one; what was found; and what mends it."""
    *before, finding = found.values()
    assert {each.level for each in before} <= {"ok"}, before
    assert finding.level == "fail", finding
    return finding.check, finding.found, finding.mend


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
    assert all(bool(each.mend) == (each.level != "ok") for each in findings.values())
    return SimpleNamespace(code=done.returncode, found=findings, text=done.stdout, said=done.stderr)


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
    check, found, mend = last(rungs("rediz://127.0.0.1:6379/0"))
    assert (check, "'rediz'" in found, "redis" in mend) == ("url", True, True)


def test_a_host_that_does_not_exist():
    check, found, mend = last(rungs("redis://no-such-host.invalid:6379/0"))
    assert (check, mend.endswith("getent hosts no-such-host.invalid")) == ("host", True)
    assert "does not resolve" in found


def test_a_port_on_which_nobody_listens():
    port = free_port()
    check, found, mend = last(rungs(f"amqp://127.0.0.1:{port}//"))
    assert (check, found) == ("port", f"127.0.0.1:{port}: Connection refused")
    assert "start the broker" in mend


def test_a_password_that_is_wrong_or_missing_on_redis(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis", password="s3cret"))
    for url in (f"redis://127.0.0.1:{server.port}/0", f"redis://:wr0ng@127.0.0.1:{server.port}/0"):
        check, _, mend = last(rungs(url))
        assert (check, f"redis://USER:PASSWORD@127.0.0.1:{server.port}/0" in mend) == ("login", True)
        assert "wr0ng" not in mend
    assert list(rungs(server.url))[-1] == "database"


@pytest.mark.parametrize("database", ["99", "mine"])
def test_a_database_that_redis_does_not_have(redis_server, database):
    url = redis_server.url.rpartition("/")[0]
    check, _, mend = last(rungs(f"{url}/{database}"))
    assert (check, "databases" in mend) == ("database", True)


def test_a_broker_that_is_another_one(redis_server, rabbit_server):
    assert last(rungs(f"redis://127.0.0.1:{rabbit_server.port}/0"))[0] == "answer"
    assert last(rungs(f"amqp://guest:guest@127.0.0.1:{redis_server.port}//"))[0] == "answer"


def test_tls_on_one_side_only_and_an_authority_that_is_not_known(
    running, tmp_path, certificates, redis_server
):
    port = free_port()
    files = {"cert": certificates.cert, "key": certificates.key, "ca-cert": certificates.ca}
    options = [text for name, path in files.items() for text in (f"--tls-{name}-file", str(path))]
    options += ["--tls-port", str(port), "--tls-auth-clients", "no"]
    running(OddRedis(tmp_path / "redis", *options, there=lambda: listening(port)))

    check, found, mend = last(rungs(f"redis://127.0.0.1:{port}/0"))
    assert (check, mend) == ("tls", "--broker-url rediss://…")
    assert "speaks TLS" in found
    check, found, mend = last(rungs(redis_server.url.replace("redis:", "rediss:")))
    assert (check, mend.startswith("--broker-url redis://…")) == ("tls", True)
    url = f"rediss://127.0.0.1:{port}/0"
    check, found, mend = last(rungs(url))
    assert (check, "certificate verify failed" in found) == ("tls", True)
    option = re.search(r"--broker-ssl-option (\S+)=", mend)[1]
    well = rungs(url, f"{option}={certificates.ca}")
    assert {finding.level for finding in well.values()} == {"ok"}


def test_a_user_who_may_not_subscribe(running, tmp_path):
    """And the command that is printed lets him."""
    server = running(RedisServer(tmp_path / "redis"))
    server.client().execute_command(*EVE, "&nothing", "-psubscribe")
    url = f"redis://eve:pw@127.0.0.1:{server.port}/0"
    check, found, mend = last(rungs(url))
    assert (check, "psubscribe" in found) == ("subscription", True)
    program, *words = shlex.split(mend)
    assert program == "redis-cli"
    server.client().execute_command(*words[words.index("ACL") :])
    assert {finding.level for finding in rungs(url).values()} == {"ok"}
    server.client().execute_command(*EVE, "-@all")
    check, _, mend = last(rungs(url))
    words = shlex.split(mend)
    server.client().execute_command(*words[words.index("ACL") :])
    assert (check, {finding.level for finding in rungs(url).values()}) == ("login", {"ok"})


def test_logins_on_rabbitmq(rabbit_server):
    url = rabbit_server.clean()
    assert {finding.level for finding in rungs(url).values()} == {"ok"}
    check, _, mend = last(rungs(url.replace("guest:guest", "guest:wr0ng")))
    assert (check, "rabbitmqctl change_password guest" in mend) == ("login", True)
    check, _, mend = last(rungs(rabbit_server.url_of("no such")))
    assert check == "virtual-host"
    assert mend.startswith(
        "rabbitmqctl add_vhost 'no such' && rabbitmqctl set_permissions -p 'no such' guest"
    )


def test_a_user_of_rabbitmq_who_may_not_declare_a_queue(rabbit_server):
    """And the command that is printed lets him."""
    url = rabbit_server.clean()
    vhost = url.rpartition("/")[2]
    rabbit_server.control("set_permissions", "-p", vhost, "guest", "^$", ".*", ".*")
    check, found, mend = last(rungs(url))
    assert (check, "ACCESS_REFUSED" in found) == ("subscription", True)
    program, *words = shlex.split(mend)
    assert program == "rabbitmqctl"
    rabbit_server.control(*words)
    assert {finding.level for finding in rungs(url).values()} == {"ok"}


def test_of_several_urls_one_that_leads_to_a_broker_is_enough(redis_server):
    dead = f"redis://127.0.0.1:{free_port()}/0"
    found = list(climb(settings_of(f"{dead};{redis_server.url}"), lambda _: None))
    assert [(each.check, each.level) for each in found if each.level != "ok"] == [("port", "warn")]
    found = list(climb(settings_of(f"{dead};{dead}"), lambda _: None))
    assert [each.level for each in found].count("fail") == 2


def test_a_broker_that_hangs_does_not_hang_the_doctor(broker):
    broker.server.pause()
    try:
        begin = time.monotonic()
        result = doctor(broker.url)
        assert time.monotonic() - begin < 20
    finally:
        broker.server.resume()
    assert (result.code, list(result.found)[-1]) == (2, "answer")
    assert "does not answer" in result.found["answer"].mend


# -- what the broker is set to -------------------------------------------------------------------------------


def test_settings_of_redis_that_lose_tasks_or_events(running, tmp_path):
    """Each is mended by the command that is printed."""
    server = running(RedisServer(tmp_path / "redis"))
    client, settings = server.client(), settings_of(server.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("client-output-buffer-limit", "pubsub 1048576 0 0")
    found = by_check(redis.look(settings)[0])
    assert (found["eviction"].level, found["output-buffer"].level) == ("warn", "warn")
    assert "1,048,576 bytes" in found["output-buffer"].found
    client.config_set("maxmemory", "1gb")
    # Behind a URL that is dead, too, the command is for the one that lives.
    dead = settings_of(f"redis://127.0.0.1:{free_port()}/0;{server.url}")
    found["eviction"] = by_check(redis.look(dead)[0])["eviction"]
    assert found["eviction"].level == "fail"
    assert found["eviction"].mend.startswith(f"redis-cli -h 127.0.0.1 -p {server.port} CONFIG SET")
    for check in ("eviction", "output-buffer"):
        words = shlex.split(found[check].mend.partition(", and")[0])
        client.execute_command(*words[words.index("CONFIG") :])
    assert {each.level for each in redis.look(settings)[0]} == {"ok"}
    client.config_set("maxmemory-policy", "volatile-lru")
    assert by_check(redis.look(settings)[0])["eviction"].level == "warn"


def test_a_redis_that_may_not_be_asked(running, tmp_path):
    """As where others run it: said to be not seen, with how to see it."""
    server = running(RedisServer(tmp_path / "redis"))
    server.client().execute_command(*EVE, "&*", "-config", "-info", "-scan")
    found = by_check(redis.look(settings_of(f"redis://eve:pw@127.0.0.1:{server.port}/0"))[0])
    assert {each.level for each in found.values()} == {"ok"}
    for check, how in (("eviction", "CONFIG GET"), ("output-buffer", "CONFIG GET"), ("leftovers", "--scan")):
        assert f"redis-cli -h 127.0.0.1 -p {server.port} --user eve --askpass {how}" in found[check].found


def test_what_was_left_on_redis_by_those_who_asked_workers(running, tmp_path):
    server = running(RedisServer(tmp_path / "redis"))
    client, settings = server.client(), settings_of(server.url)
    with kombu.Connection(server.url) as connection:
        exchange = kombu.Exchange("reply.celery.pidbox", "direct")
        names = [f"{uuid.uuid4()}.reply.celery.pidbox" for _ in range(30)]
        for name in names:
            kombu.Queue(name, exchange, name)(connection.default_channel).declare()
    found = by_check(redis.look(settings)[0])["leftovers"]
    assert (found.level, "30 reply queues are bound" in found.found) == ("warn", True)
    client.rpush("model", b"answer")
    client.restore(names[0], 0, client.dump("model"), idletime=3600)
    found = by_check(redis.look(settings)[0])["leftovers"]
    assert (found.level, found.mend.endswith(f"DEL {names[0]}")) == ("warn", True)
    client.flushall()
    assert by_check(redis.look(settings)[0])["leftovers"].level == "ok"


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
    assert result.found["broker-version"].found.startswith("RabbitMQ 3.")
    assert result.found["transient-queues"].level == "ok"
    assert result.found["leftovers"].mend == f"rabbitmqctl delete_queue -p test0 {left}"
    waiting = result.found["waiting-for-nobody"]
    assert (waiting.level, waiting.found.endswith(": jobs (4)")) == ("fail", True)
    assert waiting.mend == "celery -A yourapp worker -E -Q jobs"
    assert "guest:guest" not in result.text + result.said

    with kombu.Connection(server.url) as connection:
        kombu.Queue(left)(connection.default_channel).delete()
    found = by_check(amqp.look(settings_of(server.url), management)[0])
    assert found["leftovers"].level == "ok"
    found = by_check(amqp.look(settings_of(server.url), "http://127.0.0.1:1")[0])
    assert (found["leftovers"].level, "rabbitmqctl list_queues" in found["leftovers"].found) == ("ok", True)
    with kombu.Connection(server.url) as connection:  # of an exporter with --event-queue-durable that is away
        kombu.Queue("celeryev.celery-exporter")(connection.default_channel).queue_declare()
    found = by_check(amqp.look(settings_of(server.url), "http://127.0.0.1:1")[0])["leftovers"]
    assert (found.level, found.mend.endswith("test0 celeryev.celery-exporter")) == ("warn", True)


@pytest.mark.parametrize(
    ("version", "permitted", "level"),
    [
        ("3.10.8", True, "ok"),
        ("4.2.1", True, "ok"),
        ("4.3.0", True, "ok"),
        ("4.3.0", False, "warn"),
        ("4.3.0-rc.1", None, "warn"),
        ("5.0", None, "warn"),
        ("", None, "ok"),
    ],
)
def test_transient_queues_by_version_and_by_trying(version, permitted, level):
    found = amqp.judge_transient(version, permitted=permitted)
    assert found.level == level
    assert ("permit.transient_nonexcl_queues = true" in found.mend) == (level == "warn")


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
                environment=off_by(120, "UTC"),
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
    assert sick.found["workers"].found == "2 workers heard: w@pod, w@pod.example.org"
    assert re.fullmatch(r"py-celery [\d.]+: w@pod, w@pod\.example\.org", sick.found["worker-versions"].found)
    assert sick.found["answers"].level == sick.found["heartbeats"].level == "ok"
    assert sick.found["same-names"].level == "ok"
    assert re.fullmatch(r"the first event came after [\d.]+ s", sick.found["first-event"].found)


@pytest.mark.parametrize(
    ("check", "level", "found", "mend"),
    [
        ("serializer", "fail", "application/x-yaml", "--accept-content json,yaml"),
        ("task-events", "fail", "no task events from worker w@pod", "control enable_events"),
        ("sent-events", "warn", "no client said", "task_send_sent_event = True"),
        ("clock-skew", "warn", "w@pod.example.org by +120 s", "timedatectl set-ntp true"),
        ("worker-names", "warn", "w@pod, w@pod.example.org", "-n NAME@HOST"),
        ("queues-without-consumers", "warn", "nobody consumes idle ", "-Q idle"),
        ("waiting-for-nobody", "fail", "backlog (3)", "celery -A yourapp worker -E -Q backlog"),
    ],
)
def test_what_is_wrong_with_workers_and_queues_is_found(sick, check, level, found, mend):
    finding = sick.found[check]
    assert finding.level == level
    assert found in finding.found
    assert mend in finding.mend


def test_progress_is_shown_while_it_listens_and_not_on_stdout(sick):
    assert re.search(r"listening for \d+ s more: events \d+, workers \d", sick.said)
    assert "listening" not in sick.text


def test_nobody_at_all(redis_broker):
    result = doctor(redis_broker.url)
    assert result.code == 2
    assert result.found["workers"].found.startswith("no worker was heard in ")
    assert "worker -E" in result.found["workers"].mend


def test_workers_that_publish_elsewhere_and_share_a_name(running, tmp_path, redis_broker):
    """They answer, and no event comes: the option that is printed brings them."""
    workers = [
        Worker(tmp_path / name, redis_broker.url, "w@box", pool="solo", event_exchange="mine")
        for name in "ab"
    ]
    running(*workers)
    result = doctor(redis_broker.url)
    assert (result.code, result.found["heartbeats"].level) == (2, "fail")
    assert (result.found["same-names"].level, "w@box" in result.found["same-names"].found) == ("fail", True)
    assert result.found["first-event"].mend == "--event-exchange mine"
    result = doctor(redis_broker.url, *result.found["first-event"].mend.split())
    assert (result.found["first-event"].level, result.found["heartbeats"].level) == ("ok", "ok")


# -- Prometheus ----------------------------------------------------------------------------------------------


def test_a_prometheus_that_scrapes_us_or_not(running, tmp_path, redis_broker):
    exporter = Exporter(tmp_path / "exporter", redis_broker.url)
    well = Prometheus(tmp_path / "well", f"127.0.0.1:{exporter.port}")
    down = Prometheus(tmp_path / "down", f"127.0.0.1:{free_port()}")
    running(exporter, well, down)
    exporter.connected()

    def look(server, *up: str) -> dict:
        return by_check(prometheus.look(f"http://127.0.0.1:{server.port}", "celery_", set(up)))

    beat = {"type": "worker-heartbeat", "hostname": "w@box", "timestamp": time.time(), "freq": 2.0}
    publish_events(redis_broker.url, {**beat, "active": 0, "processed": 0, "pid": 1})
    eventually(lambda: well.query("celery_worker_up == 1"), 15)
    found = look(well, "w@box")
    assert [each.level for each in found.values()] == ["ok", "ok"]
    assert f"127.0.0.1:{exporter.port}" in found["prometheus"].found
    other = look(well, "x@box")["prometheus-agrees"]
    assert (other.level, other.found.endswith("without x@box, and with w@box")) == ("warn", True)

    eventually(lambda: down.targets()[0]["health"] == "down", 15)
    found = look(down)["prometheus"]
    assert (found.level, "it cannot scrape http://127.0.0.1" in found.found) == ("fail", True)
    nobody = SimpleNamespace(port=free_port())
    assert "does not answer" in look(nobody)["prometheus"].found
    # One that answers, and is no Prometheus; and one that scrapes others.
    assert look(exporter)["prometheus"].level == "fail"
    itself = running(Prometheus(tmp_path / "itself", f"127.0.0.1:{well.port}", job="itself"))
    eventually(lambda: itself.query("up == 1"), 15)
    found = look(itself)["prometheus"]
    assert (found.level, "scrape_configs" in found.mend) == ("fail", True)


# -- from nothing to numbers ---------------------------------------------------------------------------------


def test_from_nothing_to_see_to_numbers(running, tmp_path, redis_broker):
    """Workers without -E: doctor, log and page say what to do; then all are content, and numbers come."""
    url = redis_broker.url
    exporter = Exporter(tmp_path / "exporter", url)
    server = Prometheus(tmp_path / "prometheus", f"127.0.0.1:{exporter.port}")
    running(exporter, server, Worker(tmp_path / "worker", url, "w@box", events=False))
    exporter.connected()
    idle = doctor(url)
    assert (idle.code, idle.found["task-events"].level) == (1, "warn")
    with make_client(url) as client, every(0.3, lambda: client.send_task("tasks.succeed", queue="celery")):
        result = doctor(url)
        assert (result.code, result.found["task-events"].level) == (2, "fail")
        said = "no task events from worker w@box: start workers with -E, or now: "
        eventually(lambda: said in exporter.text(), 45, what="the log says what to do")
        assert exporter.total("celery_tasks_total", state="SUCCESS") == 0
        page = html.unescape(exporter.get("/").body.decode())
        assert "no task events from worker w@box" in page
        assert f"<code>{result.found['task-events'].mend}</code>" in page

        command = re.search(r"celery -A yourapp [\w ]+", result.found["task-events"].mend)[0]
        subprocess.run(
            [sys.executable, "-m", *shlex.split(command.replace("yourapp", "harness.tasks"))],
            env={**os.environ, "PYTHONPATH": str(TESTS), BROKER_URL: url},
            check=True,
            timeout=30,
        )
        eventually(lambda: exporter.total("celery_tasks_total", state="SUCCESS") > 0, 20)
        again = doctor(url, "--prometheus", f"http://127.0.0.1:{server.port}")
        assert (again.code, {each.level for each in again.found.values()}) == (0, {"ok"}), again.text
        assert "over: task events come from w@box" in eventually(
            lambda: exporter.text() if "over: " in exporter.text() else "", 20
        )
    assert exporter.text().count(said) == 1


def test_what_people_read(running, tmp_path):
    """A line for each check, and what mends it under it; the password nowhere."""
    server = running(RedisServer(tmp_path / "redis", password="s3cret"))
    done = run_cli("doctor", "--broker-url", server.url.replace("/0", "/99"), deadline=30)
    assert done.returncode == 2
    *lines, fail, mend = done.stdout.splitlines()
    assert all(re.fullmatch(r"ok    [a-z-]+ +\S.*", line) for line in lines), done.stdout
    assert re.fullmatch(r"FAIL  database {18}\S.*", fail)
    assert re.fullmatch(r" {32}-> \S.*", mend)
    assert "s3cret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
