"""Removes from recorded messages what identifies an application."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

import msgspec
from msgspec import structs

from celery_exporter.broker.codecs import JSON
from celery_exporter.broker.message import Message, events_of
from celery_exporter.core.events import KNOWN_TYPES, MEASURED, WORKER_TYPES, Event
from celery_exporter.core.task_exceptions import exception_class, read_traceback, unregistered_name

#: Fields that are dropped, or handled on their own.
_DROPPED = frozenset({"tags", "fields"})
#: What a worker reports about its software and system, unless an application changed it.
_SOFTWARE = {
    "sw_ident": re.compile("py-celery"),
    "sw_ver": re.compile(r"\d+(\.\d+){0,3}((a|b|rc|\.dev|\.post)\d+)?", re.ASCII),
    "sw_sys": re.compile("Linux|Darwin|Windows|FreeBSD|OpenBSD|NetBSD|SunOS|AIX|Java"),
}
#: Celery's own names of native delayed delivery, which are the same everywhere; see core/routing.py.
_DELAY_EXCHANGE = re.compile(r"(?:.+_)?(celery_delayed_\d{1,2})")
_DELAY_BITS = re.compile(r"(?:[01]\.){28}")


class Scrubber:
    """Replaces names, each by the same substitute, and drops what the exporter does not read.

    Names are those of tasks, queues, nodes and hosts, event types of an application, and ids other than those
    that Celery generates (uuid4). Dropped are args, kwargs, results and tracebacks; the class of an exception
    stays, and whether retries were exceeded. Of what tasks measured, only how many numbers there were stays.
    `accept` are the content types that may be deserialized.
    """

    def __init__(self, accept: Collection[str]) -> None:
        self._accept = accept
        self._names: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._salt = uuid4()  # so that ids cannot be guessed

    def scrub(self, message: Message) -> Message | None:
        """Return the scrubbed message, None if no event in it can be read."""
        events = [
            self._scrubbed(event) for event in events_of(message, self._accept) if isinstance(event, Event)
        ]
        return Message(msgspec.json.encode(events), JSON, "utf-8") if events else None

    def _scrubbed(self, event: Event) -> dict[str, object]:
        read_traceback(event)  # it leaves no text of the application
        values = structs.asdict(event).items()
        fields = {name: value for name, value in values if value is not None and name not in _DROPPED}
        if event.type not in KNOWN_TYPES:
            fields["type"] = self._substitute("type", event.type)
        for field, pattern in _SOFTWARE.items():
            if event.type not in WORKER_TYPES or not pattern.fullmatch(str(fields.get(field))):
                fields.pop(field, None)
        for field in ("eta", "expires"):
            if not _is_time(getattr(event, field)):
                fields.pop(field, None)
        if event.uuid is not None and not _is_random(event.uuid):
            fields["uuid"] = str(uuid5(self._salt, event.uuid))
        for field, kind in (("name", "task"), ("queue", "queue")):
            if field in fields:
                fields[field] = self._substitute(kind, fields[field])
        fields |= self._route(event) | self._measured(event)
        process, at, host = event.hostname.partition("@")
        fields["hostname"] = self._substitute("node", process) + (at and at + self._substitute("host", host))
        if "exception" in fields:
            task = unregistered_name(event.exception)
            argument = repr(self._substitute("task", task)) if task else ""
            fields["exception"] = f"{exception_class(event.exception) or 'Exception'}({argument})"
        return fields

    def _route(self, event: Event) -> dict[str, Any]:
        """Return exchange and routing key with substitutes of queues, because the core compares them."""
        route: dict[str, Any] = {}
        if event.exchange:
            delayed = _DELAY_EXCHANGE.fullmatch(event.exchange)
            route["exchange"] = delayed[1] if delayed else self._substitute("queue", event.exchange)
        if event.routing_key:
            bits = _DELAY_BITS.match(event.routing_key)
            prefix = bits[0] if bits else ""
            name = event.routing_key.removeprefix(prefix)
            route["routing_key"] = prefix + self._substitute("queue", name)
        return route

    def _measured(self, event: Event) -> dict[str, Any]:
        """Return 1 or -1 for each number that a task measured: the sign decides whether it is counted."""
        if event.type != MEASURED or event.fields is None:
            return {}
        numbers = {name: value for name, value in event.fields.items() if isinstance(value, float)}
        signs = {self._substitute("field", name): 1.0 if numbers[name] >= 0 else -1.0 for name in numbers}
        return {"fields": signs}

    def _substitute(self, kind: str, name: str) -> str:
        names = self._names[kind]
        return names.setdefault(name, f"{kind}-{len(names) + 1}")


def _is_random(id_: str) -> bool:
    """Return whether an id is a uuid4 as Celery's are; any other may contain a time, a host or a name."""
    try:
        return UUID(id_).version == 4 and str(UUID(id_)) == id_
    except ValueError:
        return False


def _is_time(text: str | None) -> bool:
    try:
        return text is not None and bool(datetime.fromisoformat(text))
    except ValueError:
        return False
