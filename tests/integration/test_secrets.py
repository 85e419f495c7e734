"""Passwords stand nowhere but in the file that they came in: no log, page, metric, error, process list."""

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

#: What has to be percent-encoded in a URL, as people's passwords have it; and of a second broker.
SECRET, SECOND = "p@ss/w0rd:hunt&r2", "f%ilover#0042"
PAGES = ("/", "/metrics", "/-/healthy", "/healthcheck", "/-/ready", "/health", "/nosuch")


def quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


#: In whatever form: as it is, in a URL, or a part that some parser has made of it.
FORMS = (SECRET, quoted(SECRET), "p@ss", "w0rd", "hunt", SECOND, quoted(SECOND), "ilover")


def told(exporter: Exporter) -> Iterator[tuple[str, str]]:
    """Yield all that a stranger can come to see, and where."""
    for path in PAGES:
        for method in ("GET", "POST"):
            answer = exporter.get(path, method=method)
            yield f"{method} {path}", f"{answer.headers}{answer.text}"
    yield "OpenMetrics", exporter.get("/metrics", {"Accept": OPENMETRICS}).text
    process = Path("/proc", str(exporter.pid))
    for name in ("cmdline", "environ"):
        yield name, (process / name).read_text()
    for thread in (process / "task").iterdir():
        yield "thread", (thread / "comm").read_text()
    yield "log", exporter.text()  # last: the requests above may have logged something


def leaks(places: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(where, form) for where, text in places for form in FORMS if form in text]


@pytest.fixture(scope="module")
def locked(tmp_path_factory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("locked"), password=SECRET) as server:
        yield server


@pytest.fixture
def from_file(tmp_path, running):
    """`from_file(url)` runs an exporter that has its URL from a file, and logs all it can."""

    def start(url: str, *arguments: str, variable: str | None = None) -> Exporter:
        path = tmp_path / "url"
        path.write_text(url + "\n")
        named = [] if variable else ["--broker-url-file", str(path)]
        environment = {variable: str(path)} if variable else None
        return running(
            Exporter(
                tmp_path / "exporter",
                None,
                *(*named, *arguments, "--log-level", "debug"),
                environment=environment,
            )
        )

    return start


@pytest.mark.parametrize("variable", [None, "CE_BROKER_URL_FILE"])
def test_a_password_that_is_right(from_file, locked, variable):
    exporter = from_file(locked.url, variable=variable).connected()
    assert "***" in exporter.text(), "the URL is shown without it"
    assert leaks(told(exporter)) == []


URLS = {
    "redis, wrong password": "redis://:{wrong}@127.0.0.1:{redis}/0",
    "redis, a user that is none": "redis://user:{wrong}@127.0.0.1:{redis}/0",
    "redis, nobody there": "redis://:{secret}@127.0.0.1:{nobody}/0",
    "redis, no such host": "redis://:{secret}@no-such-host.invalid:6379/0",
    "redis, no such socket": "redis+socket://:{secret}@/no/such/socket",
    "redis, no TLS there": "rediss://:{secret}@127.0.0.1:{redis}/0",
    "redis, failed over": "redis://:{secret}@127.0.0.1:{nobody}/0;redis://:{second}@127.0.0.1:{redis}/0",
    "sentinel": "sentinel://:{secret}@127.0.0.1:{nobody}/0;sentinel://:{second}@127.0.0.1:{redis}/0",
    "rabbitmq, wrong password": "amqp://guest:{secret}@127.0.0.1:{rabbit}/{vhost}",
    "rabbitmq, nobody there": "amqp://guest:{secret}@127.0.0.1:{nobody}//",
    "rabbitmq, no TLS there": "amqps://guest:{secret}@127.0.0.1:{rabbit}//",
    "rabbitmq, failed over": "amqp://guest:{secret}@127.0.0.1:{nobody}//;amqp://guest:{second}@127.0.0.1:{rabbit}//",
    "a redis that is asked for AMQP": "amqp://guest:{secret}@127.0.0.1:{redis}//",
    "a rabbitmq that is asked for Redis": "redis://:{secret}@127.0.0.1:{rabbit}/0",
}


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_a_connection_that_fails(from_file, locked, rabbit_server, url):
    filled = url.format(
        secret=quoted(SECRET),
        wrong=quoted(SECRET + "x"),
        second=quoted(SECOND),
        nobody=free_port(),
        redis=locked.port,
        rabbit=rabbit_server.port,
        vhost=rabbit_server.vhosts[0],
    )
    more = ("--broker-transport-option", "master_name=main") if filled.startswith("sentinel") else ()
    exporter = from_file(filled, *more)
    eventually(lambda: len(re.findall("no event subscription", exporter.text())) > 0, 30)
    eventually(lambda: exporter.value("celery_exporter_collector_success", collector="queues") == 0, 30)
    assert leaks(told(exporter)) == []


def test_a_broker_that_comes_back_and_a_collector_that_fails(from_file, locked):
    exporter = from_file(locked.url).connected()
    locked.client().client_kill_filter(_type="pubsub")
    eventually(lambda: exporter.value("celery_exporter_reconnects_total") == 1)
    assert leaks(told(exporter)) == []


#: Passwords with a slash in them: a parser takes the rest for the database.
NOT_ENCODED = {
    "not encoded": "redis://:p@ss/w0rd:hunt&r2@127.0.0.1:6379/0",
    "not encoded, a slash only": "redis://:hunt/w0rd@127.0.0.1:6379/0",
    "not encoded, AMQP": "amqp://guest:p@ss/w0rd:hunt&r2@127.0.0.1:5672//",
    "not encoded, the second": "amqp://guest:guest@127.0.0.1//;amqp://guest:hunt/w0rd@127.0.0.1//",
}
UNUSABLE = {
    **NOT_ENCODED,
    "no port": "redis://:{secret}@127.0.0.1:w0rd/0",
    "no scheme that we know": "nosuch://user:{secret}@host//",
    "no URL": "{secret}",
    "in the query": "redis://127.0.0.1/0?password={secret}",
    "no IPv6 address": "redis://:{secret}@[::1/0",
    "a control character": "redis://:p@ss\x01w0rd@h:port/0",
}


@pytest.mark.parametrize("url", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("given", ["file", "variable"])
def test_a_url_that_cannot_be_used(tmp_path, url, given):
    filled = url.format(secret=quoted(SECRET))
    path = tmp_path / "url"
    path.write_text(filled)
    named = {"file": ["--broker-url-file", str(path)], "variable": []}[given]
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that it ends in any case
        ended = run_cli(
            *(*named, "--host", "127.0.0.1", "--port", str(taken.getsockname()[1])),
            environment={"CELERY_BROKER_URL": filled} if given == "variable" else None,
        )
    assert ended.returncode in {1, 2}
    assert leaks(iter([("stdout", ended.stdout), ("stderr", ended.stderr)])) == []
    assert "Traceback" not in ended.stderr
    if url in NOT_ENCODED.values():
        assert "percent-encode" in ended.stderr


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
def test_a_url_that_stands_in_the_wrong_place(arguments):
    ended = run_cli(*arguments, environment={"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"})
    assert ended.returncode in {1, 2}
    assert leaks(iter([("stdout", ended.stdout), ("stderr", ended.stderr)])) == []
