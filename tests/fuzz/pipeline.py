"""Passes a body through the pipeline, up to the page."""

from __future__ import annotations

from collections import Counter

import msgspec
from harness.exporter import Samples, parse_openmetrics, parse_text
from unit.core.cluster_driver import ClusterDriver

from celery_exporter.core.events import REASONS, Event, Malformed, decode
from celery_exporter.metrics.exposition.text import OPENMETRICS, TEXT, Exposition
from celery_exporter.metrics.model import MetricOptions
from celery_exporter.metrics.registry import select

_PARSE = {TEXT: parse_text, OPENMETRICS: parse_openmetrics}


class Pipeline(ClusterDriver):
    """A cluster driver that accepts bodies, including invalid ones."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.malformed: Counter[str] = Counter()
        self.exposition = Exposition(select(("native",), MetricOptions(task_labels=self.labels)).rows)

    def feed(self, body: bytes) -> list[Event | Malformed]:
        """Decode a body, apply its events, and return them."""
        return self.take(decode(body))

    def take(self, decoded: list[Event | Malformed]) -> list[Event | Malformed]:
        """Apply decoded events, count malformed ones, and return all."""
        for event in decoded:
            if isinstance(event, Malformed):
                assert event.reason in REASONS
                self.malformed[event.reason] += 1
            else:
                self.cluster.apply(event, self.timestamp())
        self.check_deferred()
        return decoded

    def check_deferred(self) -> None:
        """Assert that deferred events have no text of unlimited length."""
        for events in self.cluster.tasks.deferred.values():
            for event in events:
                texts = [value for value in msgspec.structs.astuple(event) if isinstance(value, str)]
                assert max(map(len, texts)) <= 512, event

    def pages(self) -> list[Samples]:
        """Return the samples of both formats; `Samples` asserts that each series occurs once."""
        shown = self.shown()
        return [
            Samples.of(parse(self.exposition.render(shown, content_type).decode()))
            for content_type, parse in _PARSE.items()
        ]
