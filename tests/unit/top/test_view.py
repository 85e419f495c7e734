"""`celery-exporter top`: its screen, keys, errors, and that no name gets at the terminal.

After a change that is meant: UPDATE_GOLDEN=1 pytest tests/unit/top/test_view.py, and read the difference.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
import trustme
from harness.exporter import run_cli
from harness.processes import ROOT, TESTS, free_port
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from celery_exporter.errors import BadSettingError
from celery_exporter.status.columns import TABLES
from celery_exporter.status.finding import Finding
from celery_exporter.status.model import (
    BrokerStatus,
    FailureStatus,
    QueueStatus,
    Status,
    TaskStatus,
    WorkerStatus,
)
from celery_exporter.top import PLAIN_WIDTH
from celery_exporter.top.app import Top
from celery_exporter.top.layout import LINE, bar, clean, cut, fit, spark, width
from celery_exporter.top.status_source import NoStatusError, Source, exporter
from celery_exporter.top.view import _FIELDS, SECTIONS, News, Screen, View, pressed, screen, share

UPDATE = "UPDATE_GOLDEN" in os.environ
GOLDEN = TESTS / "data/golden/top"
PICTURE = ROOT / "docs/img/top.svg"
VIEW = View()
AT = 1_795_300_000.0  # 2026-11-21 22:26:40 UTC
SIZES = [(80, 24), (140, 40)]


def task(
    name: str, rate: float, *, failed: float = 0.0, open_: int = 0, p95: float | None = 0.8
) -> TaskStatus:
    rates = {
        "PENDING": rate,
        "RECEIVED": rate,
        "STARTED": rate,
        "SUCCESS": rate - failed,
        "FAILURE": failed,
        "RETRY": failed / 2,
        "REVOKED": 0.0,
        "REJECTED": 0.0,
    }
    return TaskStatus(
        name,
        rates,
        failed / rate if rate else None,
        p95 and p95 / 4,
        p95,
        0.012 if rate else None,
        1.5 if rate else None,
        {"PENDING": open_, "STARTED": 1} if open_ else {},
        AT - 90 if open_ else None,
    )


def worker(name: str, *, up: bool = True, active: int | None = 1) -> WorkerStatus:
    if not up:
        return WorkerStatus(name, False, None, None, 1_204, None, None, None, AT - 400, "5.6.0")
    return WorkerStatus(name, True, active, 8, 48_213, 1.42, 0.02, active != 0, AT - 1, "5.6.0")


def queue(name: str, length: int | None, peak: int = 0) -> QueueStatus:
    lengths = [(AT - 900 + 15 * step, round(peak * (1 - abs(step - 45) / 45))) for step in range(15, 61)]
    return QueueStatus(name, length, AT - 42 if length else None, 2, 16, [*lengths, (AT, length)])


STATUS = Status(
    version=1,
    exporter_version="0.1.0",
    at=AT,
    started=AT - 7_300,
    window=300.0,
    broker=BrokerStatus("redis://user:***@redis:6379/0", True, 2, AT - 0.2, 0.004, 312.4, 17),
    findings=[
        Finding("subscription", "ok", "the event subscription is open"),
        Finding(
            "task-events",
            "critical",
            "no task events from worker idle@web-2",
            "start workers with -E, or now: celery -A yourapp control enable_events",
        ),
        Finding(
            "unconsumed-messages",
            "warning",
            "messages wait in queues that nobody consumes: thumbnails (3)",
            "celery -A yourapp worker -E -Q thumbnails",
        ),
    ],
    workers=[
        worker("emails@web-1", active=5),
        worker("gone@web-3", up=False),
        worker("idle@web-2", active=0),
    ],
    queues=[queue("emails", 0, 40), queue("reports", 1_250, 1_250), queue("thumbnails", None)],
    tasks=[
        task("shop.email.send_confirmation", 120.25, open_=12),
        task("shop.image.thumbnail", 8.0, failed=2.0, open_=1_250, p95=95.0),
        task("shop.report.build_the_monthly_report_of_everything", 0.03, p95=3_700.0),
        *(task(f"shop.sync.part_{number}", number / 10, p95=None) for number in range(9)),
    ],
    failures=[
        FailureStatus(AT - 60 * number, "shop.image.thumbnail", "emails@web-1", "OSError", f"0000-{number}")
        for number in range(4)
    ],
)
NEWS = News("http://127.0.0.1:9808/api/v1/status", STATUS)


def texts(shown: Screen) -> list[str]:
    return ["".join(part for part, _ in line).rstrip() for line in shown.lines]


def drawn(view: View = VIEW, *, status: Status = STATUS, size: tuple[int, int] = (80, 24)) -> list[str]:
    return texts(screen(News("here", status), view, *size))


def of(section: str, lines: list[str]) -> list[str]:
    """Return the lines of a table, without that over it."""
    titles = ("What to look at", *(table.title for table in TABLES), "q quit")
    start = next(index for index, line in enumerate(lines) if line.startswith(section)) + 1
    end = next(index for index, line in enumerate(lines[start:], start) if line.startswith(titles))
    return [line for line in lines[start:end] if line]


def keyed(*keys: str, view: View = VIEW, size: tuple[int, int] = (80, 24), status: Status = STATUS) -> View:
    for key in keys:
        seen = screen(News("here", status), view, *size)
        view = pressed(view, seen, {"/": "slash"}.get(key, key), key if len(key) == 1 else "")
    return view


# -- the screen ----------------------------------------------------------------------------------------


def held(path: Path, text: str) -> None:
    if UPDATE:
        path.write_text(text)
    assert path.read_text() == text


async def screen_of(app: Top, *keys: str, size: tuple[int, int]) -> tuple[list[str], str]:
    """Return what the terminal shows after these keys, and a picture of it."""
    async with app.run_test(size=size) as pilot:
        await settled(app, pilot)
        await pilot.press(*keys)
        await pilot.pause()
        shown = [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]
        return shown, app.export_screenshot(title="celery-exporter top")


async def settled(app: Top, pilot) -> None:
    while app.canvas.news.status is None and not app.canvas.news.problem:
        await pilot.pause()


def app_of(status: Status = STATUS) -> Top:
    return Top(Source("http://127.0.0.1:9808/api/v1/status", lambda: status))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_screen_is_the_golden_one(size):
    shown, _ = asyncio.run(screen_of(app_of(), size=size))
    assert len(shown) == size[1]
    assert max(map(width, shown)) <= size[0]
    held(GOLDEN / f"{size[0]}x{size[1]}.txt", "\n".join(shown) + "\n")


def test_the_picture_in_the_docs_is_of_this_screen():
    """Its font is the reader's: nothing is fetched."""
    _, picture = asyncio.run(screen_of(app_of(), size=(120, 36)))
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = re.sub(r"terminal-\d+", "terminal", picture)  # a checksum
    picture = "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"
    assert not re.search(r"https?://(?!www\.w3\.org|www\.textualize\.io)[^/1]", picture)
    held(PICTURE, picture)


@pytest.mark.parametrize("size", [(20, 3), (40, 8), (80, 24), (100, 30), (200, 60), (1, 1)])
def test_it_fits_whatever_the_size(size):
    lines = drawn(size=size)
    assert len(lines) == size[1]
    assert max(map(width, lines)) <= size[0]


def test_a_wider_terminal_has_all_columns_and_a_narrow_one_says_the_name():
    for table in TABLES:
        (head,) = [line for line in drawn(size=(200, 80)) if line.startswith(table.title)]
        assert [column.title for column in table.columns[1:] if column.title not in head] == []
    assert "shop.email.send" in "\n".join(drawn(size=(40, 30)))


def test_lines_are_shared_and_nobody_gets_what_another_needs_more():
    assert share([1, 9, 9], 11) == [1, 5, 5]
    assert share([2, 2], 10) == [2, 2]
    assert share([5, 5], -3) == [0, 0]
    assert share([5, 0, 2], float("inf")) == [5, 0, 2]


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(0, 60))
def test_no_line_is_lost_where_it_is_wanted(wanted, room):
    given_ = share(wanted, room)
    assert sum(given_) <= room
    assert all(got <= want for got, want in zip(given_, wanted, strict=True))
    if sum(wanted) > room:
        assert sum(given_) > room - len(wanted)


def test_what_mends_it_is_whole():
    lines = drawn(View(selected="findings", alone=True), size=(60, 30))
    text = " ".join(" ".join(lines).split())
    for finding in STATUS.findings[1:]:
        assert finding.message in text
        assert finding.remedy in text


def test_a_broker_that_is_down_is_said():
    down = replace(STATUS, broker=replace(STATUS.broker, up=False, event_lag=None, unacked=None))
    assert "DOWN" in drawn(status=down)[0]


def test_an_empty_cluster():
    empty = replace(STATUS, findings=[], workers=[], queues=[], tasks=[], failures=[])
    text = "\n".join(drawn(status=empty))
    assert "what can be seen from here is well" in text
    for table in TABLES:
        assert table.empty[:78] in text


def test_without_a_height_all_is_there():
    text = "\n".join(texts(screen(NEWS, View(), PLAIN_WIDTH)))
    for each in (*STATUS.tasks, *STATUS.workers, *STATUS.queues):
        assert each.name[:40] in text
    for table in TABLES:
        assert not [column.title for column in table.columns[1:] if column.title not in text]
    assert "quit" not in text


# -- cells ---------------------------------------------------------------------------------------------


def test_bars():
    assert (bar(0, 8), bar(1, 100), bar(8, 8), bar(9, 8)) == ("░" * 8, "█" + "░" * 7, "█" * 8, "█" * 8)


def test_a_line_of_lengths_ends_now_and_is_blank_where_nothing_is_known():
    points = [(AT - 899, 0), (AT - 450, None), (AT - 30, 4), (AT, 8)]
    line = spark(points, AT)
    assert len(line) == LINE
    assert (line[0], line[-1], line.count(" ")) == ("▁", "█", LINE - 2)
    assert spark([(AT - 5_000, 3)], AT) == " " * LINE
    assert set(spark([(AT - 15 * step, 0) for step in range(60)], AT)) == {"▁"}


@given(st.text(), st.integers(0, 30))
def test_whatever_the_text_it_takes_the_cells_it_is_given(text, cells):
    assert width(fit(clean(text), cells)) == cells
    assert width(cut(clean(text), cells)) <= cells
    assert clean(text).isprintable()


# -- keys ----------------------------------------------------------------------------------------------


def test_tasks_are_sorted_by_the_next_column_and_the_other_way_round():
    first = lambda view: of("Tasks", drawn(view))[0].split()[0]  # noqa: E731
    assert first(View()).startswith("shop.email")
    assert first(keyed("r")).startswith("shop.sync.part_8")
    assert keyed("right").sort == "-rates.PENDING"
    assert first(keyed("right")).startswith("shop.email")
    assert keyed("left").sort == "-oldest"
    fields = {keyed(*["s"] * presses).sort.removeprefix("-") for presses in range(len(_FIELDS))}
    assert fields == set(_FIELDS)


@pytest.mark.parametrize("presses", range(len(_FIELDS)))
def test_the_column_that_it_is_sorted_by_is_seen(presses):
    (head,) = [line for line in drawn(keyed(*["s"] * presses)) if line.startswith("Tasks")]
    assert "▼" in head or "▲" in head


def test_a_filter_is_typed_kept_and_forgotten():
    typing = keyed("/", *"QimageX", "backspace")
    assert (typing.contains, typing.typing) == ("Qimage", True)
    view = keyed("/", *"imaGe", "enter")
    assert [line.split()[0] for line in of("Tasks", drawn(view))] == ["shop.image.thumbnail"]
    assert "/imaGe" in drawn(view)[-1]
    assert keyed("escape", view=view).contains == ""
    assert "None has this in its name." in "\n".join(drawn(keyed("/", *"nosuch", "enter")))


def test_one_section_is_looked_at_alone_and_scrolled():
    view = keyed("enter", size=(80, 10))
    assert view.alone
    lines = drawn(view, size=(80, 10))
    assert not [line for line in lines if line.startswith("Workers")]
    assert "1-6 of 12" in "\n".join(lines)
    assert "7-12 of 12" in "\n".join(drawn(keyed("end", view=view, size=(80, 10)), size=(80, 10)))
    end = keyed(*["pagedown"] * 9, view=view, size=(80, 10))
    assert keyed("up", view=end, size=(80, 10)).offset == end.offset - 1
    assert keyed("home", view=end, size=(80, 10)).offset == 0


def test_each_section_is_come_by():
    view, seen = View(), []
    for _ in SECTIONS:
        view = keyed("tab", view=view)
        seen.append(view.selected)
    assert sorted(seen) == sorted(SECTIONS)
    assert keyed("tab", "shift+tab") == View()


@given(
    st.lists(st.sampled_from(["up", "end", "pagedown", "tab", "enter", "s", "r", "/", "x", "escape", "f1"])),
    st.integers(1, 120),
    st.integers(1, 40),
)
def test_any_keys_in_any_size_leave_a_screen(keys, cells, height):
    lines = drawn(keyed(*keys, size=(cells, height)), size=(cells, height))
    assert len(lines) == height


# -- in a terminal of textual's ------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_it_quits(key):
    async def quits() -> int | None:
        app = app_of()
        async with app.run_test() as pilot:
            await settled(app, pilot)
            await pilot.press(key)
            await pilot.pause()
        return app.return_code

    assert asyncio.run(quits()) == 0


def test_a_q_in_a_filter_is_a_letter_and_the_tasks_are_filtered():
    shown, _ = asyncio.run(screen_of(app_of(), "slash", *"thumbq", "backspace", "enter", size=(80, 24)))
    assert [line.split()[0] for line in of("Tasks", shown)] == ["shop.image.thumbnail"]


def test_it_is_drawn_anew_for_another_size():
    async def resized() -> list[str]:
        app = app_of()
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(app, pilot)
            await pilot.resize_terminal(140, 40)
            await pilot.pause()
            return [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]

    assert "\n".join(asyncio.run(resized())) + "\n" == (GOLDEN / "140x40.txt").read_text()


def test_the_last_numbers_stay_when_there_is_no_news():
    answers = iter([STATUS])

    def look() -> Status:
        for status in answers:
            return status
        raise NoStatusError("http://there: nobody listens there; start it")

    async def after_it_went() -> list[str]:
        app = Top(Source("http://there", look))
        async with app.run_test(size=(80, 24)) as pilot:
            while not app.canvas.news.problem:
                await pilot.pause(0.05)
            await pilot.pause()
            return [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]

    lines = asyncio.run(after_it_went())
    assert "no news since: http://there: nobody listens there; start it" in "\n".join(lines)
    assert "as of 11-21" in lines[0]
    assert of("Workers", lines)


def test_an_error_of_ours_is_said_and_the_screen_goes_on():
    def look() -> Status:
        raise ZeroDivisionError("never")

    shown, _ = asyncio.run(screen_of(Top(Source("x", look)), size=(80, 24)))
    assert "ZeroDivisionError" in "\n".join(shown)


# -- hostile names -------------------------------------------------------------------------------------

HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b2J",
    "[red]markup[/red] [link=http://evil]x[/link]",
    "a\nb\rc\td\x08\x00",
    "\u202ereversed\u2066",
    "e" + "\u0301" * 300,
    "\U000e0041tags\u200d\ufe0f",
    "漢字" * 90,
    "x" * 255,
    "",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_name_gets_at_the_terminal(name):
    """Wherever a text comes from: each is shown, and none does anything."""
    hostile = replace(
        STATUS,
        exporter_version=name,
        broker=replace(STATUS.broker, url=name),
        findings=[Finding("x", "warning", name, name)],
        workers=[replace(STATUS.workers[0], name=name, version=name)],
        queues=[replace(STATUS.queues[0], name=name)],
        tasks=[replace(STATUS.tasks[0], name=name)],
        failures=[FailureStatus(1e300, name, name, name, name)],
    )
    for news in (News(name, hostile), News(name, hostile, name), News(name, None, name)):
        shown = screen(news, View(contains=name, typing=True), 100, 30)
        for line in shown.lines:
            text = "".join(part for part, _ in line)
            assert text.isprintable()
            assert width(text) <= 100
    shown, _ = asyncio.run(screen_of(app_of(hostile), size=(100, 30)))
    assert all(line.isprintable() for line in shown)
    if name.startswith("[red]"):
        assert name[:13] in "\n".join(shown)


# -- a running exporter that is none, or is another one ------------------------------------------------


@contextmanager
def answering(status: int, body: bytes, seen: list | None = None, tls: ssl.SSLContext | None = None):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if seen is not None:
                seen.append((self.path, dict(self.headers)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


BODY = msgspec.json.encode(STATUS)


def test_a_status_comes_back_as_it_was_sent():
    with answering(200, BODY) as place:
        assert msgspec.json.encode(exporter(f"http://{place}").look()) == BODY


def test_a_later_exporter_of_this_version_may_say_more():
    more = msgspec.json.encode({**msgspec.to_builtins(STATUS), "more": {"than": "is known here"}})
    with answering(200, more) as place:
        assert exporter(f"http://{place}").look().at == AT


def test_the_login_and_the_prefix_of_the_url_are_used_and_the_password_is_not_told():
    seen: list = []
    with answering(200, BODY, seen) as place:
        source = exporter(f"http://me:s3%40cret@{place}/celery/")
        source.look()
    ((path, headers),) = seen
    assert path == "/celery/api/v1/status"
    assert headers["Authorization"] == "Basic bWU6czNAY3JldA=="
    with pytest.raises(NoStatusError) as error:
        source.look()
    assert "cret" not in str(error.value) + source.name


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b"", ["404", "--no-status-page", "--broker-url"]),
        (401, b"", ["401", "CELERY_EXPORTER_URL=http://user:password@"]),
        (403, b"", ["403", "client certificate"]),
        (500, b"", ["500", "log"]),
        (302, b"", ["302", "--url"]),
        (
            200,
            BODY.replace(b'"version":1', b'"version":2', 1),
            ["version 2", "version 1", "use the celery-exporter"],
        ),
        (200, b"<html>", ["something else than a status"]),
        (200, b'{"version":1}', ["something else than a status", "at"]),
        (200, b'{"version":"\xff"}', ["something else than a status"]),
        (200, b"[" * 100_000, ["something else than a status"]),
        (200, b"", ["something else than a status"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_answer_that_is_none_is_said_with_what_to_do(status, body, said):
    with answering(status, body) as place, pytest.raises(NoStatusError) as error:
        exporter(f"http://{place}").look()
    for part in (place, *said):
        assert part in str(error.value)


def test_nobody_there_another_scheme_and_no_such_name():
    with pytest.raises(NoStatusError, match="nobody listens there; start celery-exporter"):
        exporter(f"http://127.0.0.1:{free_port()}").look()
    with answering(200, BODY) as place, pytest.raises(NoStatusError, match="--url begins with http://"):
        exporter(f"https://{place}").look()
    with pytest.raises(NoStatusError, match="this name has no address"):
        exporter("http://no.such.name.invalid:9808").look()


def test_a_certificate_has_to_be_trusted(monkeypatch, tmp_path):
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with answering(200, BODY, tls=tls) as place:
        source = exporter(f"https://{place.replace('127.0.0.1', 'localhost')}")
        with pytest.raises(NoStatusError, match=r"its certificate is not trusted .*SSL_CERT_FILE"):
            source.look()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert source.look().at == AT
        with pytest.raises(NoStatusError, match="give --url the name it is for"):
            exporter(f"https://{place}").look()


def test_who_does_not_answer_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr("celery_exporter.top.status_source.PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NoStatusError, match="no answer in"):
        exporter(f"http://127.0.0.1:{silent.getsockname()[1]}").look()


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:9808",
        "ftp://s3cret@h",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://a b",
        "http://h/\x1b",
        "http://[::1",
    ],
)
def test_a_url_of_no_use_is_refused_without_telling_it(url):
    with pytest.raises(BadSettingError, match="--url: ") as error:
        exporter(url)
    assert "s3cret" not in str(error.value)


# -- the command ---------------------------------------------------------------------------------------


def test_where_there_is_no_terminal_it_is_written_once():
    with answering(200, BODY) as place:
        done = run_cli("top", "--url", f"http://{place}", environment={"COLUMNS": ""})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == texts(screen(News("", STATUS), View(), PLAIN_WIDTH))


def test_what_a_script_gets_where_nobody_listens():
    done = run_cli("top", environment={"CELERY_EXPORTER_URL": f"http://me:s3cret@127.0.0.1:{free_port()}"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "nobody listens there" in done.stderr
    assert "s3cret" not in done.stderr


def test_the_exporter_of_this_machine_is_asked_when_nobody_is_named():
    port = free_port()
    done = run_cli("top", environment={"PROMETHEUS_PORT": str(port)})
    assert f"http://127.0.0.1:{port}/api/v1/status: nobody listens there" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--url", "http://s3cret:x@h", "--broker-url", "redis://h"], 2, "--broker-url"),
        (["--url", "nosuch"], 2, "--url"),
        (["--broker-url", "nosuch://h"], 2, "--broker-url"),
    ],
)
def test_a_wrong_option_ends_with_one_line(arguments, code, said):
    done = run_cli("top", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert said in done.stderr
    assert "s3cret" not in done.stderr
