"""The terminal itself, which is textual's: the screen as it is, keys, sizes, and a good end."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from typing import ClassVar

from msgspec.structs import replace
from rich.segment import Segment
from rich.style import Style
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Key, Paste
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from celery_exporter.status.model import Status
from celery_exporter.top.status_source import NoStatusError, Source
from celery_exporter.top.view import News, Screen, View, pasted, pressed, screen

#: Seconds between two looks: as the status page, and what the exporter makes anew.
EVERY = 2.0
#: The signals that end it.
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
#: The terminal's own colours, which suit its background.
STYLES = {
    "": Style(),
    "title": Style(bold=True),
    "selected": Style(bold=True, reverse=True),
    "head": Style(underline=True),
    "good": Style(color="green"),
    "warn": Style(color="yellow"),
    "bad": Style(color="red", bold=True),
    "dim": Style(dim=True),
}


class Told(Message):
    """There is news."""

    def __init__(self, status: Status | None, problem: str) -> None:
        super().__init__()
        self.status, self.problem = status, problem


class Canvas(Widget, can_focus=True):
    """Shows the screen's lines, and passes keys on."""

    DEFAULT_CSS = "Canvas { width: 100%; height: 100%; background: ansi_default; color: ansi_default; }"

    def __init__(self, news: News) -> None:
        super().__init__()
        self.news, self.view, self.seen = news, View(), Screen([])

    def draw(self) -> None:
        """Draw it anew, as it is and as large as it is now."""
        self.seen = screen(self.news, self.view, self.size.width, self.size.height)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return a line of it."""
        line = self.seen.lines[y] if y < len(self.seen.lines) else []
        strip = Strip([Segment(part, STYLES[style]) for part, style in line])
        return strip.adjust_cell_length(self.size.width, STYLES[""])

    def on_resize(self) -> None:
        """Draw it for the new size."""
        self.draw()

    def on_key(self, event: Key) -> None:
        """Look at it in another way, or end."""
        event.stop()
        event.prevent_default()
        if event.key == "q" and not self.view.typing:
            self.app.exit(0)
        self.view = pressed(self.view, self.seen, event.key, event.character or "")
        self.draw()

    def on_paste(self, event: Paste) -> None:
        """Take it as typed."""
        self.view = pasted(self.view, event.text)
        self.draw()


class Top(App[int]):
    """`run` it; it looks at its source until somebody ends it."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "quit", priority=True)]
    CSS = "Screen { background: ansi_default; color: ansi_default; }"
    TITLE = "celery-exporter top"

    def __init__(self, source: Source) -> None:
        super().__init__(ansi_color=True)
        self._source = source
        self._ended = threading.Event()
        self.canvas = Canvas(News(source.name))

    def compose(self) -> ComposeResult:
        """Return what it is made of."""
        yield self.canvas

    def on_mount(self) -> None:
        """Begin to look. By a thread that nobody waits for: an answer may take its time."""
        self.canvas.focus()
        for number in ENDING:
            asyncio.get_running_loop().add_signal_handler(number, self.exit, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        threading.Thread(target=self._watch, name="top", daemon=True).start()

    def on_unmount(self) -> None:
        """Look no more."""
        self._ended.set()

    def on_told(self, told: Told) -> None:
        """Show the news; where there is none but a problem, what was last known stays."""
        news = self.canvas.news
        self.canvas.news = replace(news, status=told.status or news.status, problem=told.problem)
        self.canvas.draw()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.post_message(looked(self._source.look))
            self._ended.wait(EVERY)


def looked(look: Callable[[], Status]) -> Told:
    """Return what came of a look."""
    try:
        return Told(look(), "")
    except NoStatusError as error:
        return Told(None, str(error))
    except Exception as error:  # noqa: BLE001  a fault of ours; it costs this look, not the screen
        return Told(None, f"this should not happen, please report it: {error!r}")


def run(source: Source) -> int:
    """Show it until q; return the exit code."""
    app = Top(source)
    # Until it listens to them: one that came earlier would leave the terminal as it is drawn on.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    app.run(mouse=False)  # so that the terminal can mark and copy
    return app.return_code or 0
