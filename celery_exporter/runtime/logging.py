"""Log lines in logfmt or JSON on stderr, with the time in UTC."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable

from celery_exporter.quoting import printable_json
from celery_exporter.runtime.threads import BROKER


class LineFormatter(logging.Formatter):
    """Formats a record as one line; a traceback is one of its fields.

    `log_format` is "logfmt" or "json".
    """

    def __init__(self, log_format: str) -> None:
        super().__init__()
        self._render = _RENDERERS[log_format]

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **({"broker": broker} if (broker := BROKER.get()) else {}),
            "msg": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return self._render(fields)


def _logfmt(fields: dict[str, str]) -> str:
    return " ".join(f"{name}={_quoted(text)}" for name, text in fields.items())


def _quoted(text: str) -> str:
    plain = text.isprintable() and text and not any(character in ' "=\\' for character in text)
    return text if plain else _json(text)


def _json(value: object) -> str:
    return printable_json(json.dumps(value, ensure_ascii=False))


_RENDERERS: dict[str, Callable[[dict[str, str]], str]] = {
    "logfmt": _logfmt,
    "json": _json,
}


class _Forwarder(logging.Handler):
    def __init__(self, callback: Callable[[str], None], ignored: str) -> None:
        super().__init__(logging.WARNING)
        self._callback, self._ignored = callback, ignored

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != self._ignored:
            self._callback(record.getMessage())


def forward(callback: Callable[[str], None], *, ignored: str) -> None:
    """Pass the messages of warnings and errors to a callback, except those of the logger `ignored`."""
    logger = logging.getLogger("celery_exporter")
    logger.addHandler(_Forwarder(callback, ignored))
    logger.propagate = False  # so that no handler of the root logger prints them, too


def configure(level: str, log_format: str) -> None:
    """Log to stderr from this level on. Other libraries log from "warning" on, except with "debug"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(log_format))
    own_level = logging.getLevelName(level.upper())
    library_level = own_level if level == "debug" else max(own_level, logging.WARNING)
    logging.basicConfig(level=library_level, handlers=[handler], force=True)
    logging.getLogger("celery_exporter").setLevel(own_level)
    if level != "debug":  # uvicorn warns of each invalid request, and clients may send any number of them
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
