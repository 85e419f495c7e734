"""Passwords appear in no log, page, metric, error message or process list."""

from __future__ import annotations

import re
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.exporter import OPENMETRICS, Exporter, run_cli
from harness.processes import free_port
from harness.servers import RedisServer
from harness.waiting import eventually

#: Passwords with characters that must be percent-encoded in a URL, of two brokers.
SECRET, SECOND = "p@ss/w0rd:hunt&r2", "f%ilover#0042"
PAGES = ("/", "/api/v1/status", "/metrics", "/-/healthy", "/healthcheck", "/-/ready", "/health", "/nosuch")


def quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


#: Plain, percent-encoded, and the parts into which a URL parser might split it.
FORMS = (SECRET, quoted(SECRET), "p@ss", "w0rd", "hunt", SECOND, quoted(SECOND), "ilover")


def outputs(exporter: Exporter) -> Iterator[tuple[str, str]]:
    """Yield all output of an exporter, by source."""
    for path in PAGES:
        for method in ("GET", "POST"):
            response = exporter.get(path, method=method)
            yield f"{method} {path}", f"{response.headers}{response.text}"
    yield "OpenMetrics", exporter.get("/metrics", {"Accept": OPENMETRICS}).text
    process = Path("/proc", str(exporter.pid))
    for name in ("cmdline", "environ"):
        yield name, (process / name).read_text()
    for thread in (process / "task").iterdir():
        yield "thread", (thread / "comm").read_text()
    yield "log", exporter.text()  # last: the requests above may have logged something


def leaks(texts: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the sources of texts that contain a secret, and its form."""
    return [(source, form) for source, text in texts for form in FORMS if form in text]


@pytest.fixture(scope="module")
def redis_with_password(tmp_path_factory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis-with-password"), password=SECRET) as server:
        yield server


@pytest.fixture
def from_file(tmp_path, running):
    """`from_file(url)` runs an exporter that reads its URL from a file, at log level debug."""

    def start(url: str, *arguments: str, variable: str | None = None) -> Exporter:
        path = tmp_path / "url"
        path.write_text(url + "\n")
        option = [] if variable else ["--broker-url-file", str(path)]
        environment = {variable: str(path)} if variable else None
        return running(
            Exporter(
                tmp_path / "exporter",
                None,
                *(*option, *arguments, "--log-level", "debug"),
                environment=environment,
            )
        )

    return start


@pytest.mark.parametrize("variable", [None, "CE_BROKER_URL_FILE"])
def test_a_correct_password_is_masked(from_file, redis_with_password, variable):
    exporter = from_file(redis_with_password.url, variable=variable).connected()
    assert "***" in exporter.text(), "the URL is logged without the password"
    assert leaks(outputs(exporter)) == []


URLS = {
    "redis, wrong password": "redis://:{wrong}@127.0.0.1:{redis}/0",
    "redis, unknown user": "redis://user:{wrong}@127.0.0.1:{redis}/0",
    "redis, no server": "redis://:{secret}@127.0.0.1:{unused}/0",
    "redis, no such host": "redis://:{secret}@no-such-host.invalid:6379/0",
    "redis, no such socket": "redis+socket://:{secret}@/no/such/socket",
    "redis, no TLS": "rediss://:{secret}@127.0.0.1:{redis}/0",
    "redis, second URL": "redis://:{secret}@127.0.0.1:{unused}/0;redis://:{second}@127.0.0.1:{redis}/0",
    "sentinel": "sentinel://:{secret}@127.0.0.1:{unused}/0;sentinel://:{second}@127.0.0.1:{redis}/0",
    "rabbitmq, wrong password": "amqp://guest:{secret}@127.0.0.1:{rabbit}/{vhost}",
    "rabbitmq, no server": "amqp://guest:{secret}@127.0.0.1:{unused}//",
    "rabbitmq, no TLS": "amqps://guest:{secret}@127.0.0.1:{rabbit}//",
    "rabbitmq, second URL": "amqp://guest:{secret}@127.0.0.1:{unused}//;amqp://guest:{second}@127.0.0.1:{rabbit}//",
    "AMQP to a redis": "amqp://guest:{secret}@127.0.0.1:{redis}//",
    "Redis protocol to a rabbitmq": "redis://:{secret}@127.0.0.1:{rabbit}/0",
}


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_a_failed_connection_leaks_no_password(from_file, redis_with_password, rabbit_server, url):
    broker_url = url.format(
        secret=quoted(SECRET),
        wrong=quoted(SECRET + "x"),
        second=quoted(SECOND),
        unused=free_port(),
        redis=redis_with_password.port,
        rabbit=rabbit_server.port,
        vhost=rabbit_server.vhosts[0],
    )
    options = ("--broker-transport-option", "master_name=main") if broker_url.startswith("sentinel") else ()
    exporter = from_file(broker_url, *options)
    eventually(lambda: len(re.findall("no event subscription", exporter.text())) > 0, 30)
    eventually(lambda: exporter.value("celery_exporter_collector_success", collector="queues") == 0, 30)
    assert leaks(outputs(exporter)) == []


def test_a_reconnect_leaks_no_password(from_file, redis_with_password):
    exporter = from_file(redis_with_password.url).connected()
    redis_with_password.client().client_kill_filter(_type="pubsub")
    eventually(lambda: exporter.value("celery_exporter_reconnects_total") == 1)
    assert leaks(outputs(exporter)) == []


#: Passwords with a slash: a parser reads the rest as the database.
NOT_ENCODED = {
    "not encoded": "redis://:p@ss/w0rd:hunt&r2@127.0.0.1:6379/0",
    "not encoded, a slash only": "redis://:hunt/w0rd@127.0.0.1:6379/0",
    "not encoded, AMQP": "amqp://guest:p@ss/w0rd:hunt&r2@127.0.0.1:5672//",
    "not encoded, the second": "amqp://guest:guest@127.0.0.1//;amqp://guest:hunt/w0rd@127.0.0.1//",
}
UNUSABLE = {
    **NOT_ENCODED,
    "invalid port": "redis://:{secret}@127.0.0.1:w0rd/0",
    "unknown scheme": "nosuch://user:{secret}@host//",
    "no URL": "{secret}",
    "in the query": "redis://127.0.0.1/0?password={secret}",
    "invalid IPv6 address": "redis://:{secret}@[::1/0",
    "a control character": "redis://:p@ss\x01w0rd@h:port/0",
}


@pytest.mark.parametrize("url", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("source", ["file", "variable"])
def test_the_error_for_an_unusable_url_leaks_no_password(tmp_path, url, source):
    broker_url = url.format(secret=quoted(SECRET))
    path = tmp_path / "url"
    path.write_text(broker_url)
    option = {"file": ["--broker-url-file", str(path)], "variable": []}[source]
    with socket.create_server(("127.0.0.1", 0)) as listener:  # a port in use, so that it ends in any case
        command = run_cli(
            *(*option, "--host", "127.0.0.1", "--port", str(listener.getsockname()[1])),
            environment={"CELERY_BROKER_URL": broker_url} if source == "variable" else None,
        )
    assert command.returncode in {1, 2}
    assert leaks(iter([("stdout", command.stdout), ("stderr", command.stderr)])) == []
    assert "Traceback" not in command.stderr
    if url in NOT_ENCODED.values():
        assert "percent-encode" in command.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--broker-url-file", f"redis://:{SECRET}@127.0.0.1/0"),
        ("--broker-url", SECRET),
        (f"redis://:{SECRET}@127.0.0.1/0",),
        ("--queues", "a", f"amqp://user:{quoted(SECRET)}@127.0.0.1//"),
        ("--broker-transport-option", SECRET),
        ("--broker-ssl-option", SECRET),
        ("--port", f"redis://:{quoted(SECRET)}@127.0.0.1/0"),
        ("--web.config.file", f"redis://:{quoted(SECRET)}@127.0.0.1/0"),
    ],
)
def test_the_error_for_a_misplaced_url_leaks_no_password(arguments):
    command = run_cli(*arguments, environment={"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"})
    assert command.returncode in {1, 2}
    assert leaks(iter([("stdout", command.stdout), ("stderr", command.stderr)])) == []
