"""The terminal, with Textual: a header, a table per section, a filter and a footer."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.geometry import Region, Spacing
from textual.widgets import DataTable, Footer, Input, Static

from celery_exporter.status.columns import Table
from celery_exporter.status.model import Status
from celery_exporter.top import view
from celery_exporter.top.cells import cell, clean, shorten
from celery_exporter.top.status_source import Source
from celery_exporter.web.client import NoAnswerError

#: Seconds between two reads: as the status page, and as often as the exporter renews its status.
READ_INTERVAL_SECONDS = 2.0
ENDING_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
#: Terminal cells of a text at most; in the first column of a narrow terminal fewer.
MAX_TEXT_CELLS = 48
#: Terminal cells of one step sideways: about one column.
SCROLLED_CELLS = 8
MAX_FILTER_LENGTH = 255


def _text(*parts: view.Part, right: bool = False) -> Text:
    return Text.assemble(*parts, justify="right" if right else "left", overflow="ellipsis")


class StatusTable(DataTable[Text]):
    """One table of the status. Its cursor stays on its row while rows move, or on the first one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", f"scroll_columns({-SCROLLED_CELLS})", show=False),
        Binding("right", f"scroll_columns({SCROLLED_CELLS})", "Columns", key_display="←→"),
        Binding("tab", "app.focus_next", "Next", key_display="tab"),
        Binding("enter", "app.toggle_class('Vertical', 'alone')", "Alone", key_display="enter"),
        Binding("home", "scroll_top", show=False),
        Binding("end", "scroll_bottom", show=False),
    ]

    def __init__(self, table: Table) -> None:
        super().__init__(
            id=table.name, cursor_type="row", cursor_foreground_priority="renderable", fixed_columns=1
        )
        self.table = table
        self.order = view.first_sort(table.columns[0]) if table.columns else ""
        self._keys: list[str] = []

    def show(self, status: Status, contains: str, cells: int) -> None:
        """Show the rows of a status in a terminal of so many cells."""
        shown = view.rows_of(status, self.table, self.order, contains)
        row, scrolled = self.cursor_row, self.scroll_offset
        key = self._keys[row] if 0 < row < len(self._keys) else ""
        self._keys = [view.key_of(row) for row in shown.rows]
        self.clear(columns=True)
        if shown.rows and self.table.columns:
            self._fill(shown, status.at, cells)
        else:
            self._fill_one_column(shown, cells - 3)
        self.styles.max_height = 1 + sum(row.height for row in self.ordered_rows)
        self.scroll_to(*scrolled, animate=False, force=True, immediate=True)
        self.move_cursor(row=self._keys.index(key) if key in self._keys else row)

    def _fill_one_column(self, shown: view.Rows, cells: int) -> None:
        self.add_column(Text(shown.title), width=cells)
        texts = [_text(*view.finding_parts(finding, cells)) for finding in shown.rows]
        for text in texts or [Text(shown.empty, "dim")]:
            self.add_row(text, height=text.plain.count("\n") + 1)

    def _fill(self, shown: view.Rows, now: float, cells: int) -> None:
        first_cells = min(MAX_TEXT_CELLS, cells // 5 + 4)  # the same in each table, so that they align
        columns: list[list[Text]] = []
        for column in self.table.columns:
            right, limit = view.is_right(column), MAX_TEXT_CELLS if columns else first_cells
            arrow = {column.field: " ▲", f"-{column.field}": " ▼"}.get(self.order, "")
            label = _text(((column.title if columns else shown.title) + arrow, ""), right=right)
            parts = [cell(column, row, now) for row in shown.rows]
            texts = [_text((shorten(content, limit), style), right=right) for content, style in parts]
            self.add_column(
                label, width=max(0 if columns else first_cells, *(text.cell_len for text in (label, *texts)))
            )
            columns.append(texts)
        for row in zip(*columns, strict=True):
            self.add_row(*row)

    def action_scroll_columns(self, cells: int) -> None:
        """Scroll sideways by so many terminal cells."""
        self.scroll_relative(x=cells, animate=False)

    def sort_by(self, step: int) -> None:
        """Sort by the column that is so many columns after the present one; 0 reverses the order."""
        if self.order:
            self.order = view.sort_after(self.table, self.order, step)
            self.call_after_refresh(self._scroll_to_sort_column)

    def _scroll_to_sort_column(self) -> None:
        widths = [column.get_render_width(self) for column in self.ordered_columns]
        index = [column.field for column in self.table.columns].index(self.order.removeprefix("-"))
        if 0 < index < len(widths):
            region = Region(sum(widths[:index]), self.scroll_offset.y + 1, widths[index], 1)
            self.scroll_to_region(region, spacing=Spacing(top=1, left=widths[0]), animate=False)


class Top(App[None]):
    """Reads a source every `READ_INTERVAL_SECONDS` until the user quits."""

    TITLE = "celery-exporter top"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = f"#{view.FILTERED}"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("greater_than_sign,s", "sort_by(1)", "Sort", key_display="< >"),
        Binding("less_than_sign", "sort_by(-1)", show=False),
        Binding("r", "sort_by(0)", "Reverse"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "reset", "Reset", key_display="esc"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]
    CSS = """
    * { background: ansi_default; color: ansi_default; }
    #header { padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #problem { padding: 0 1; max-height: 4; color: ansi_red; text-style: bold; }
    Footer { padding: 0 1; }
    .footer-key--key, .footer-key--description { background: ansi_default; color: ansi_default; }
    #problem, Input { display: none; }
    Input, Input:focus { border: none; height: 1; padding: 0 1; }
    Input > .input--cursor { text-style: reverse; }
    StatusTable { height: 1fr; scrollbar-size: 0 1; }
    StatusTable { scrollbar-color: ansi_bright_black; scrollbar-background: ansi_default; }
    .alone StatusTable { height: 0; }
    .alone StatusTable:focus { height: 1fr; }
    StatusTable > .datatable--header { text-style: bold underline; }
    StatusTable > .datatable--cursor { text-style: none; }
    StatusTable:focus > .datatable--cursor { text-style: reverse; }
    """

    def __init__(self, source: Source) -> None:
        super().__init__(ansi_color=True)  # the terminal's own colours, which suit its background
        self._source = source
        self._ended = threading.Event()
        self.status: Status | None = None
        # Not queried: messages still arrive while the app ends and the widgets are removed.
        self.header = Static(Text(f"{self.TITLE}  {clean(source.name)}\n…"), id="header")
        self.problem = Static(id="problem")
        self.tables = Vertical(*map(StatusTable, view.SECTIONS))
        self.filter = Input(placeholder="part of a task's name", max_length=MAX_FILTER_LENGTH)

    def compose(self) -> ComposeResult:
        """Return the widgets from top to bottom."""
        yield from (self.header, self.problem, self.tables, self.filter)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Start reading, in a thread of its own: an answer may take a while."""
        for number in ENDING_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.exit)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        threading.Thread(target=self._read_until_ended, name="top", daemon=True).start()

    def on_unmount(self) -> None:
        """Stop reading."""
        self._ended.set()

    def _read_until_ended(self) -> None:
        while not self._ended.is_set():
            self.call_later(self.show_status, *_read(self._source))
            self._ended.wait(READ_INTERVAL_SECONDS)

    def show_status(self, status: Status | None, problem: str) -> None:
        """Show a new status, or a problem and the last status."""
        self.status = status or self.status
        self.problem.display = bool(problem)
        self.problem.update(Text(("not updated since: " if self.status else "") + clean(problem)))
        if self.status:
            self.header.update(_text(*view.header(self.status, outdated=bool(problem))))
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

    def action_sort_by(self, step: int) -> None:
        """Sort the table that has the focus by another column, or in the opposite order."""
        if isinstance(self.focused, StatusTable):
            self.focused.sort_by(step)
            self._show()

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


def _read(source: Source) -> tuple[Status | None, str]:
    try:
        return source.read(), ""
    except NoAnswerError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001  a bug costs this read, not the screen
        return None, f"this is a bug, please report it: {error!r}"


def run(source: Source) -> int:
    """Show a source until the user quits; return the exit code."""
    app = Top(source)
    # Until the app handles these signals: an earlier one would leave the terminal in its mode.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    app.run(mouse=False)  # so that the terminal can select and copy
    return app.return_code or 0
