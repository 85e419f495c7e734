"""The way of a body through the pipeline, and what is on the page then."""

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
    """A story that takes bodies, bad ones too."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.malformed: Counter[str] = Counter()
        self.exposition = Exposition(select(("native",), MetricOptions(task_labels=self.labels)).rows)

    def feed(self, body: bytes) -> list[Event | Malformed]:
        return self.take(decode(body))

    def take(self, found: list[Event | Malformed]) -> list[Event | Malformed]:
        for each in found:
            if isinstance(each, Malformed):
                assert each.reason in REASONS
                self.malformed[each.reason] += 1
            else:
                self.cluster.apply(each, self.timestamp())
        self.keeps_little()
        return found

    def keeps_little(self) -> None:
        """No event that waits for its task-sent keeps a text that has no bound."""
        for events in self.cluster.tasks.deferred.values():
            for event in events:
                texts = [value for value in msgspec.structs.astuple(event) if isinstance(value, str)]
                assert max(map(len, texts)) <= 512, event

    def pages(self) -> list[Samples]:
        """What Prometheus reads, in either format; `Samples` holds that each series stands there once."""
        shown = self.shown()
        return [
            Samples.of(parse(self.exposition.render(shown, content_type).decode()))
            for content_type, parse in _PARSE.items()
        ]
