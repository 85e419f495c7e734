"""The terminal, with Textual: a header, a table per section, a filter and a footer."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import deque
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import DataTable, Footer, Input, Static

from celery_exporter.quoting import visible
from celery_exporter.status.columns import FILTERED, Table, reversed_sort
from celery_exporter.status.model import Status
from celery_exporter.top import view
from celery_exporter.top.status_source import Source
from celery_exporter.web.client import NoAnswerError

#: Seconds between two reads: as the pages, and as often as the exporter renews its status.
READ_INTERVAL_SECONDS = 2.0


class StatusTable(DataTable[Text]):
    """One table of the status. Its cursor stays on its row while rows move, or on the first one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "scroll_columns(-8)", show=False),  # terminal cells: about one column
        Binding("right", "scroll_columns(8)", "Columns", key_display="←→"),
        Binding("tab", "app.focus_next", "Next", key_display="tab"),
        Binding("enter", "app.toggle_class('Vertical', 'alone')", "Alone", key_display="enter"),
        Binding("home", "scroll_top", show=False),
        Binding("end", "scroll_bottom", show=False),
        Binding("greater_than_sign,s", "sort_by(1)", "Sort", key_display="< >"),
        Binding("less_than_sign", "sort_by(-1)", show=False),
        Binding("r", "sort_by(0)", "Reverse"),
    ]

    def __init__(self, table: Table) -> None:
        super().__init__(
            id=table.name, cursor_type="row", cursor_foreground_priority="renderable", fixed_columns=1
        )
        self.table = table
        self.orders = deque(view.orders(table))  # the first one is in use
        self._shown: tuple[Status, str, int] | None = None
        self._keys: list[str] = []

    def show(self, status: Status, contains: str, line_cells: int) -> None:
        """Show the rows of a status in a terminal of this width."""
        self._shown = status, contains, line_cells
        columns, keys = view.grid(status, self.table, self.orders[0], contains, line_cells)
        row, scrolled = self.cursor_row, self.scroll_offset
        key = self._keys[row] if 0 < row < len(self._keys) else ""
        self._keys = keys
        self.clear(columns=True)
        for column in columns:
            self.add_column(Text(column.title, justify=column.justify), width=column.width)
        texts = [
            [Text.assemble(*parts, justify=column.justify) for parts in column.cells] for column in columns
        ]
        for cells in zip(*texts, strict=True):
            self.add_row(*cells, height=cells[0].plain.count("\n") + 1)
        self.styles.max_height = 1 + sum(row.height for row in self.ordered_rows)
        self.scroll_to(*scrolled, animate=False, force=True, immediate=True)
        self.move_cursor(row=keys.index(key) if key in keys else row)

    def action_scroll_columns(self, cells: int) -> None:
        """Scroll sideways by so many terminal cells."""
        self.scroll_relative(x=cells, animate=False)

    def action_sort_by(self, step: int) -> None:
        """Sort by the column that is so many columns after the present one; 0 reverses the order."""
        if self._shown and self.orders[0]:
            self.orders.rotate(-step)
            if not step:
                self.orders[0] = reversed_sort(self.orders[0])
            self.show(*self._shown)
            self.call_after_refresh(self._scroll_to_sort_column)

    def _scroll_to_sort_column(self) -> None:
        index = [column.field for column in self.table.columns].index(self.orders[0].removeprefix("-"))
        before = sum(column.get_render_width(self) for column in self.ordered_columns[1:index])
        self.scroll_to(x=before, animate=False)


class Top(App[None]):
    """Reads a source every `READ_INTERVAL_SECONDS` until the user quits."""

    TITLE = "celery-exporter top"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = f"#{FILTERED}"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "reset", "Reset", key_display="esc"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]
    CSS = """
    * { background: ansi_default; color: ansi_default; }
    #header, #problem, Footer, Input { padding: 0 1; }
    #header { text-wrap: nowrap; text-overflow: ellipsis; }
    #problem { max-height: 4; color: ansi_red; text-style: bold; }
    #problem, Input { display: none; }
    Input > .input--cursor { text-style: reverse; }
    StatusTable { height: 1fr; scrollbar-size: 0 1; scrollbar-color: ansi_bright_black; }
    StatusTable { scrollbar-background: ansi_default; }
    .alone StatusTable { height: 0; }
    .alone StatusTable:focus { height: 1fr; }
    StatusTable > .datatable--header { text-style: bold underline; }
    StatusTable:focus > .datatable--cursor { text-style: reverse; }
    """

    def __init__(self, source: Source) -> None:
        super().__init__(ansi_color=True)  # the terminal's own colours, which suit its background
        self._source = source
        self.status: Status | None = None
        # Not queried: messages still arrive while the app ends and the widgets are removed.
        self.header = Static(Text(f"{self.TITLE}  {visible(source.name)}\n…"), id="header")
        self.problem = Static(id="problem")
        self.tables = Vertical(*map(StatusTable, view.SECTIONS))
        self.filter = Input(placeholder="part of a task's name", compact=True)

    def compose(self) -> ComposeResult:
        """Return the widgets from top to bottom."""
        yield from (self.header, self.problem, self.tables, self.filter, Footer(compact=True))

    def on_mount(self) -> None:
        """Start reading, in a thread of its own: an answer may take a while."""
        threading.Thread(target=self._read_until_ended, name="top", daemon=True).start()

    def _read_until_ended(self) -> None:
        while self.is_running:
            status, problem = None, ""
            try:
                status = self._source.read()
            except NoAnswerError as error:
                problem = str(error)
            except Exception as error:  # noqa: BLE001  a bug costs this read, not the screen
                problem = f"this is a bug, please report it: {error!r}"
            self.call_later(self.show_status, status, problem)
            time.sleep(READ_INTERVAL_SECONDS)

    def show_status(self, status: Status | None, problem: str) -> None:
        """Show a new status, or a problem and the last status."""
        self.status = status or self.status
        self.problem.display = bool(problem)
        self.problem.update(Text(("not updated since: " if self.status else "") + visible(problem)))
        if self.status:
            self.header.update(Text.assemble(*view.header(self.status, outdated=bool(problem))))
        self._show()

    @on(Input.Changed)
    def _show(self) -> None:
        if self.status:
            with self.batch_update():
                for table in self.tables.query(StatusTable):
                    table.show(self.status, self.filter.value, self.size.width)

    def on_resize(self) -> None:
        """Use the new width, which `size` has after this event."""
        self.call_later(self._show)

    def action_filter(self) -> None:
        """Let the user type a part of a name."""
        self.tables.remove_class("alone")
        self.filter.display = True
        self.filter.focus()

    def action_reset(self) -> None:
        """Show all tables and all rows."""
        self.tables.remove_class("alone")
        self.filter.clear()
        self._leave_filter()

    @on(Input.Submitted)
    @on(Input.Blurred)
    def _leave_filter(self) -> None:
        self.filter.display = bool(self.filter.value)
        if self.filter.has_focus:
            self.tables.query_one(self.AUTO_FOCUS).focus()


def run(source: Source) -> int:
    """Show a source until the user quits; return the exit code."""
    app = Top(source)
    asyncio.run(_run_until_quit(app))
    return app.return_code or 0


async def _run_until_quit(app: Top) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # before the terminal is in another mode
        asyncio.get_running_loop().add_signal_handler(number, app.exit)
    await app.run_async(mouse=False)  # so that the terminal can select and copy
