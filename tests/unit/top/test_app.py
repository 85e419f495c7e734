"""`top` in a terminal of Textual: the screen, keys, sizes, problems, and names that would control a terminal.

After an intended change: UPDATE_GOLDEN=1 pytest tests/unit/top/test_app.py, and read the difference.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import random
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from harness.example_status import STATUS, task_status
from harness.processes import ROOT, TESTS
from msgspec.structs import replace
from textual.pilot import Pilot

from celery_exporter.quoting import terminal_cells
from celery_exporter.status.finding import Finding
from celery_exporter.status.model import FailureStatus, Status
from celery_exporter.top.app import StatusTable, Top
from celery_exporter.top.status_source import Source
from celery_exporter.top.view import SECTIONS, plain
from celery_exporter.web.client import NoAnswerError

UPDATE = "UPDATE_GOLDEN" in os.environ
GOLDEN = TESTS / "data/golden/top"
PICTURE = ROOT / "docs/img/top.svg"
SIZES = [(80, 24), (140, 40)]
LARGE = replace(STATUS, tasks=[task_status(f"part_{number:02}", number) for number in range(60)])


class Terminal:
    """A running `top`, its keys and its lines."""

    def __init__(self, app: Top, pilot: Pilot) -> None:
        self.app, self.pilot = app, pilot

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.settle()

    async def show(self, status: Status | None, problem: str = "") -> None:
        self.app.show_status(status, problem)
        await self.settle()

    async def settle(self) -> None:
        """Wait until nothing changes any more: rows change first, then heights, then what is scrolled."""
        seen: list[list[str]] = [[]]
        while seen[-3:] != [self.lines] * 3:
            seen.append(self.lines)
            await self.pilot.pause(0.02)

    @property
    def lines(self) -> list[str]:
        return [strip.text.rstrip() for strip in self.app.screen._compositor.render_strips()]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def table(self, name: str = "tasks") -> StatusTable:
        return self.app.query_one(f"#{name}", StatusTable)

    def row(self) -> str:
        """Return the first cell of the row with the cursor."""
        table = self.table()
        return table.get_row_at(table.cursor_row)[0].plain


@asynccontextmanager
async def running(
    read: Callable[[], Status] = lambda: STATUS, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[Terminal]:
    """Run `top`, which reads once: a test shows what else it wants to."""
    reads, ended = itertools.count(), threading.Event()

    def read_first() -> Status:
        if next(reads):
            ended.wait()
        return read()

    app = Top(Source("http://127.0.0.1:9808/api/v1/status", "", read_first, read))
    async with app.run_test(size=size) as pilot:
        terminal = Terminal(app, pilot)
        while not app.query("FooterKey") or not (app.status or app.problem.display):
            await pilot.pause()
        await terminal.settle()
        yield terminal
    ended.set()


def asynchronous(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: object, **named: object) -> None:
        asyncio.run(test(*arguments, **named))

    return run


# -- the screen ----------------------------------------------------------------------------------------


def compare(path: Path, text: str) -> None:
    if UPDATE:
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@asynchronous
async def test_the_screen_is_the_golden_one(size):
    async with running(size=size) as terminal:
        assert len(terminal.lines) == size[1]
        assert max(map(terminal_cells, terminal.lines)) <= size[0]
        compare(GOLDEN / f"{size[0]}x{size[1]}.txt", terminal.text + "\n")


@asynchronous
async def test_the_picture_in_the_docs_is_of_this_screen():
    """Its font is the reader's: nothing is fetched."""
    async with running(size=(120, 36)) as terminal:
        picture = terminal.app.export_screenshot(title="celery-exporter top")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = re.sub(r"terminal-\d+", "terminal", picture)  # a checksum
    picture = "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"
    assert not re.search(r"https?://(?!www\.w3\.org|www\.textualize\.io)[^/1]", picture)
    compare(PICTURE, picture)


@asynchronous
async def test_a_resized_terminal_is_drawn_in_its_new_size():
    async with running(size=(80, 24)) as terminal:
        await terminal.pilot.resize_terminal(140, 40)
        await terminal.settle()
        assert terminal.text + "\n" == (GOLDEN / "140x40.txt").read_text()


@pytest.mark.parametrize("size", [(1, 1), (20, 3), (40, 8), (200, 60)])
@asynchronous
async def test_each_size_is_filled_and_not_exceeded(size):
    async with running(size=size) as terminal:
        assert len(terminal.lines) == size[1]
        assert max(map(terminal_cells, terminal.lines)) <= size[0]


@asynchronous
async def test_tables_share_the_height_and_small_ones_are_whole():
    async with running(lambda: LARGE, size=(100, 40)) as terminal:
        heights = {table.name: terminal.table(table.name).size.height for table in SECTIONS}
        assert heights == {"findings": 5, "workers": 4, "queues": 4, "tasks": 19, "failures": 5}
        await terminal.show(replace(LARGE, workers=STATUS.workers * 20))
        heights = {table.name: terminal.table(table.name).size.height for table in SECTIONS}
        assert abs(heights["workers"] - heights["tasks"]) <= 1


@asynchronous
async def test_a_long_remedy_is_readable_to_its_end():
    async with running(size=(60, 30)) as terminal:
        await terminal.press("shift+tab", "shift+tab", "shift+tab", "enter")
        text = " ".join(terminal.text.split())
        for finding in STATUS.findings[1:]:
            assert finding.message in text
            assert finding.remedy in text


@asynchronous
async def test_states_have_colours():
    async with running() as terminal:
        states = terminal.table("workers").get_column_at(1)
        assert {(state.plain, str(state.spans[0].style)) for state in states} == {
            ("up", "green"),
            ("down", "bold red"),
        }


# -- keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
@asynchronous
async def test_it_quits(key):
    async with running() as terminal:
        await terminal.press(key)
    assert terminal.app.return_code == 0


@asynchronous
async def test_it_quits_while_a_filter_is_typed_and_a_status_arrives():
    async with running() as terminal:
        await terminal.press("slash", "x")
        await terminal.pilot.press("y", "ctrl+c")
        terminal.app.call_later(terminal.app.show_status, LARGE, "a problem")
    assert terminal.app.return_code == 0


@asynchronous
async def test_a_sorted_column_is_marked_and_scrolled_into_view():
    async with running() as terminal:
        title = lambda: next(line for line in terminal.lines if line.startswith(" Tasks"))  # noqa: E731
        for _ in terminal.table().table.columns:
            assert "▲" in title() or "▼" in title()
            await terminal.press("greater_than_sign")
        await terminal.press("less_than_sign")
        assert title().endswith("Rejected ▼")
        await terminal.press("r")
        assert title().endswith("Rejected ▲")
        await terminal.press("s")
        assert title().startswith(" Tasks 12 ▲")


@asynchronous
async def test_keys_sort_the_table_that_has_the_focus():
    async with running() as terminal:
        await terminal.press("shift+tab", "r")
        assert terminal.table("queues").get_row_at(0)[0].plain == "thumbnails"
        assert terminal.table().get_row_at(0)[0].plain == "shop.email…firmation"
        await terminal.press("shift+tab", "shift+tab", "r", "s")  # findings have an order of their own


@asynchronous
async def test_wide_tables_scroll_sideways_below_their_first_column():
    async with running() as terminal:
        assert "Rejected" not in terminal.text
        await terminal.press(*["right"] * 20)
        title = next(line for line in terminal.lines if line.startswith(" Tasks 12"))
        assert title.endswith("Rejected")
        await terminal.press(*["left"] * 20)
        assert "Rejected" not in terminal.text


@asynchronous
async def test_the_cursor_keeps_its_row_while_rows_move():
    async with running(lambda: LARGE) as terminal:
        await terminal.press(*["down"] * 30)
        assert terminal.row() == "part_30"
        await terminal.show(replace(LARGE, tasks=LARGE.tasks[10:]))
        assert (terminal.row(), terminal.table().cursor_row) == ("part_30", 20)
        await terminal.press("r", "greater_than_sign")
        assert terminal.row() == "part_30"
        assert "part_30" in terminal.text
        await terminal.show(replace(LARGE, tasks=LARGE.tasks[:5]))
        assert terminal.row() in {task.name for task in LARGE.tasks[:5]}


@asynchronous
async def test_a_cursor_on_the_first_row_stays_there():
    async with running(lambda: LARGE) as terminal:
        await terminal.press("greater_than_sign")
        assert (terminal.row(), terminal.table().scroll_offset.y) == ("part_59", 0)


@asynchronous
async def test_a_refresh_leaves_the_view_as_it_is():
    async with running(lambda: LARGE) as terminal:
        await terminal.press(*["down"] * 30, *["up"] * 2, "right", "right")
        before = terminal.text
        await terminal.show(LARGE)
        assert terminal.text == before


@asynchronous
async def test_home_and_end_go_to_the_first_and_the_last_row():
    async with running(lambda: LARGE) as terminal:
        await terminal.press("end")
        assert terminal.row() == "part_59"
        await terminal.press("home")
        assert terminal.row() == "part_00"


@asynchronous
async def test_a_table_is_shown_alone():
    async with running(lambda: LARGE, size=(80, 24)) as terminal:
        await terminal.press("enter")
        assert "Workers" not in terminal.text
        assert "part_18" in terminal.text
        await terminal.press("tab")
        assert "Recent failures" in terminal.text
        assert "part_18" not in terminal.text
        await terminal.press("enter")
        assert "Workers" in terminal.text
        await terminal.press("enter", "escape")
        assert "Workers" in terminal.text


@asynchronous
async def test_tab_goes_through_all_tables():
    async with running() as terminal:
        tables = []
        for _ in SECTIONS:
            await terminal.press("tab")
            tables.append(terminal.app.focused.id)
        assert tables == ["failures", "findings", "workers", "queues", "tasks"]


@asynchronous
async def test_a_filter_is_typed_kept_and_reset():
    async with running() as terminal:
        await terminal.press("slash", *"thumbq", "backspace")
        assert " Tasks 1 of 12" in terminal.text
        await terminal.press("enter", "down")
        assert terminal.row() == "shop.image.thumbnail"
        assert "\n thumb\n" in terminal.text
        await terminal.press("slash", *"xyz")
        assert "No name contains this text." in terminal.text
        await terminal.press("escape")
        assert " Tasks 12" in terminal.text
        assert terminal.app.focused is terminal.table()
        await terminal.press("enter", "slash", *"part")
        assert " Tasks 9 of 12" in terminal.text


KEYS = (
    *("up", "down", "home", "end", "pageup", "pagedown", "left", "right", "tab", "shift+tab", "enter"),
    *("s", "less_than_sign", "greater_than_sign", "r", "slash", "x", "backspace", "escape"),
)


@pytest.mark.parametrize("seed", range(2))
@asynchronous
async def test_any_keys_in_any_size_leave_a_screen(seed):
    chance = random.Random(seed)
    async with running() as terminal:
        for _ in range(4):
            size = chance.randint(1, 120), chance.randint(1, 40)
            await terminal.pilot.resize_terminal(*size)
            await terminal.press(*chance.choices(KEYS, k=10))
            await terminal.show(chance.choice([LARGE, STATUS, None]), chance.choice(["", "a problem"]))
            assert len(terminal.lines) == size[1]
            assert max(map(terminal_cells, terminal.lines)) <= size[0]


# -- problems ------------------------------------------------------------------------------------------


@asynchronous
async def test_the_last_status_stays_during_a_problem():
    async with running() as terminal:
        await terminal.show(None, "http://there: connection refused; start celery-exporter")
        assert "not updated since: http://there: connection refused; start celery-exporter" in terminal.text
        assert "as of 11-21" in terminal.lines[0]
        assert "emails@web-1" in terminal.text
        await terminal.show(STATUS)
        assert "connection refused" not in terminal.text


def failing(error: Exception) -> Callable[[], Status]:
    def read() -> Status:
        raise error

    return read


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NoAnswerError("connection refused"), "connection refused"),
        (ZeroDivisionError("never"), "this is a bug, please report it: ZeroDivisionError('never')"),
    ],
)
@asynchronous
async def test_a_failed_read_is_shown(error, text):
    async with running(failing(error)) as terminal:
        assert text in terminal.text
        assert "http://127.0.0.1:9808" in terminal.lines[0]


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
@asynchronous
async def test_no_name_controls_the_terminal(name):
    hostile = replace(
        STATUS,
        at=1e300,
        exporter_version=name,
        broker=replace(STATUS.broker, url=name),
        findings=[Finding("x", "warning", name, name)] * 2,
        workers=[replace(STATUS.workers[0], name=name, version=name)] * 2,
        queues=[replace(STATUS.queues[0], name=name)] * 2,
        tasks=[replace(STATUS.tasks[0], name=name)] * 2,
        failures=[FailureStatus(1e300, name, name, name, name)] * 2,
    )
    assert all(line.isprintable() for line in plain(hostile).splitlines())
    async with running(lambda: hostile, size=(100, 30)) as terminal:
        await terminal.show(hostile, name)
        assert all(line.isprintable() for line in terminal.lines)
        assert max(map(terminal_cells, terminal.lines)) <= 100
        if name.startswith("[red]"):
            assert name[:13] in terminal.text
