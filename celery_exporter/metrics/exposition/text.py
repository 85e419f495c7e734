"""Snapshot → page, in Prometheus' text format 0.0.4, in OpenMetrics 1.0, or in protobuf.

Formats: prometheus.io/docs/instrumenting/exposition_formats and the OpenMetrics 1.0 specification. The tests
compare both text formats with prometheus_client. There are no `_created` lines, because Prometheus stores
each of them as a series of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple

from msgspec import Struct
from prometheus_client import Metric, ProcessCollector
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString as number  # noqa: N813  a number in Go's notation

from celery_exporter.core.histogram import Histogram, bucket_indexes
from celery_exporter.core.measurements import NOTHING, Summary
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import OTHER, LabelSet, State
from celery_exporter.metrics.exposition import protobuf
from celery_exporter.metrics.exposition.protobuf import PROTOBUF
from celery_exporter.metrics.exposition.series_tracker import ScrapeSession, series_id
from celery_exporter.metrics.model import LABEL_SET_NAMES, PREFIX, TASK_NAME_LABELS, MetricFamily, Sample

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: Integers from here on are written with an exponent, as in Go; smaller ones with all their digits.
EXPONENT_FROM = 1_000_000
#: Samples that are joined at a time. Other threads wait for the interpreter meanwhile.
SAMPLES_PER_CHUNK = 500
#: Series that may be cached beyond twice those of the newest scrape.
MAX_SPARE_SERIES = 1_000


class Exposition:
    """Renders snapshots as pages: the rows, the metric prefix and the static labels. Thread-safe.

    `broker_labels` are not on the metrics of the process, which several brokers share.

    It caches the text of each series, which is the same on each page.
    """

    def __init__(
        self,
        rows: Sequence[MetricFamily],
        prefix: str = PREFIX,
        static_labels: Mapping[str, str] | None = None,
        broker_labels: Mapping[str, str] | None = None,
    ) -> None:
        self._process_labels = static_labels or {}
        static = {**self._process_labels, **(broker_labels or {})}
        self.families = [_Family(row, row.full_name(prefix), static) for row in rows]
        self._unlabelled = _template((), self._process_labels).format()
        self._process = ProcessCollector(registry=CollectorRegistry())
        names = {family.name for family in self.families}
        # OpenMetrics names a counter's family without _total. Then celery_tasks_total (a counter of the
        # native profile) and celery_tasks (a gauge of zerok) would be one family. Such a counter gets the
        # type unknown in OpenMetrics, which keeps the name of every sample.
        self._clashing = {name for name in names if name.removesuffix("_total") in names - {name}}

    def render(
        self, snapshot: Snapshot, content_type: str = TEXT, session: ScrapeSession | None = None
    ) -> bytes:
        """Return all families of the snapshot in `TEXT`, `OPENMETRICS` or `PROTOBUF`.

        `session` is that of a Prometheus server. Without one, no series is exposed at 0 before its value.
        """
        return render([Part(self, snapshot, session)], content_type)

    def texts(self, parts: Sequence[Part], *, openmetrics: bool) -> Iterator[bytes]:
        """Yield the chunks of a page in a text format."""
        for index, family in enumerate(self.families):
            yield _text(self._head(family.name, family.row.type, family.row.help, openmetrics))
            for exposition, snapshot, session in parts:
                lines = exposition.families[index].lines(snapshot, session, exemplars=openmetrics)
                while chunk := b"".join(islice(lines, SAMPLES_PER_CHUNK)):
                    yield chunk
        for name, metric in self._process_metrics():
            yield _text(self._head(name, metric.type, metric.documentation, openmetrics))
            yield _text(
                f"{sample.name}{self._unlabelled} {number(sample.value)}" for sample in metric.samples
            )
        if openmetrics:
            yield b"# EOF\n"

    def messages(self, parts: Sequence[Part], *, openmetrics: bool) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the chunks of a page in protobuf."""
        for index, family in enumerate(self.families):
            row = family.row
            metrics = (
                metric
                for exposition, snapshot, session in parts
                for metric in exposition.families[index].metrics(snapshot, session)
            )
            yield from protobuf.family(family.name, row.type, row.help, metrics)
        labels = protobuf.labels(self._process_labels)
        for name, metric in self._process_metrics():
            values = (protobuf.metric(metric.type, labels, sample.value) for sample in metric.samples)
            yield from protobuf.family(name, metric.type, metric.documentation, values)

    def _process_metrics(self) -> Iterator[tuple[str, Metric]]:
        for metric in self._process.collect():
            yield metric.name + ("_total" if metric.type == "counter" else ""), metric

    def _head(self, name: str, type_: str, help_: str, openmetrics: bool) -> tuple[str, str]:
        if openmetrics and type_ == "counter":
            if name in self._clashing:
                type_ = "unknown"
            else:
                name = name.removesuffix("_total")
        escapes = _ESCAPES if openmetrics else _HELP_ESCAPES
        return f"# HELP {name} {help_.translate(escapes)}", f"# TYPE {name} {type_}"


def render(parts: Sequence[Part], content_type: str = TEXT) -> bytes:
    """Return a page of several snapshots; see `Exposition.render`.

    Their expositions have the same rows and different static labels.
    """
    first = parts[0].exposition
    chunks = first.messages if content_type == PROTOBUF else first.texts
    return b"".join(chunks(parts, openmetrics=content_type == OPENMETRICS))


def _text(lines: Iterable[str]) -> bytes:
    return _encoded("".join(f"{line}\n" for line in lines))


def _encoded(text: str) -> bytes:
    # Texts from events can always be encoded. Should one be invalid, it must not prevent the whole page.
    return text.encode("utf-8", "replace")


class Part(NamedTuple):
    """A part of a page: a snapshot, and the exposition that renders it."""

    exposition: Exposition
    snapshot: Snapshot
    session: ScrapeSession | None = None


class _Series(Struct, frozen=True, gc=False):
    """The parts of a series that are the same in each scrape."""

    id: int
    label_values: tuple[str, ...]
    lines: bytes  # all lines, with the placeholders %d.0 for a number and %b for a sum


class _Family:
    """A row with its full name, and a cache of its series."""

    def __init__(self, row: MetricFamily, name: str, static: Mapping[str, str]) -> None:
        self.row = row
        self.name = name
        self._static = static
        self._braces = _template(row.labels, static)
        self._bucket_braces = _template((*row.labels, "le"), static)
        self._series: dict[tuple[str, ...], _Series] = {}
        self._bounds: tuple[float, ...] = ()
        self._labels: dict[tuple[str, ...], bytes] = {}  # label values → labels in protobuf

    def lines(self, snapshot: Snapshot, session: ScrapeSession | None, *, exemplars: bool) -> Iterator[bytes]:
        """Yield the family's lines; those of one histogram together."""
        format_lines: Callable[[bytes, Any], bytes] = _number_line
        if self.row.bounds is not None:
            format_lines = _with_exemplars if exemplars else _histogram_lines
        elif self.row.type == "summary":
            format_lines = _summary_lines
        for series, value in self._exposed(snapshot, session):
            yield format_lines(series.lines, value)

    def metrics(self, snapshot: Snapshot, session: ScrapeSession | None) -> Iterator[bytes]:
        """Yield the family's metrics in protobuf; with a session, counting ones have a created timestamp."""
        row, cache = self.row, self._labels
        created = (
            None if session is None or row.type == "gauge" or row.has_external_baseline else session.created
        )
        any_inherits = any(aggregate.inherited for aggregate in snapshot.aggregates.values())
        count = 0
        for count, (series, value) in enumerate(self._exposed(snapshot, session), 1):  # noqa: B007
            labels = cache.get(series.label_values) or self._add_labels(series.label_values)
            may_inherit = any_inherits or OTHER in series.label_values
            at = None if may_inherit and _inherits(row, series.label_values, snapshot) else created
            if row.bounds is not None:
                yield protobuf.histogram(labels, self._bounds, value, at)
            elif row.type == "summary":
                yield protobuf.summary(labels, value, at)
            else:
                yield protobuf.metric(row.type, labels, value, at)
        if len(cache) > 2 * count + MAX_SPARE_SERIES:
            cache.clear()

    def _add_labels(self, values: tuple[str, ...]) -> bytes:
        pairs = {**self._static, **dict(zip(self.row.labels, values, strict=True))}
        labels = self._labels[values] = protobuf.labels(pairs)
        return labels

    def _exposed(self, snapshot: Snapshot, session: ScrapeSession | None) -> Iterator[tuple[_Series, Any]]:
        """Yield each series with its value; with a session, 0 for a new one that counts."""
        row, cache = self.row, self._series
        samples = row.samples(snapshot)
        if row.merge is not None:
            samples = _merged(row.merge, samples)
        if row.type == "gauge" or row.has_external_baseline:
            session = None
        if row.bounds is not None:
            samples = self._thinned(samples, tuple(row.bounds(snapshot)))
        count = 0
        for count, (values, value) in enumerate(samples, 1):  # noqa: B007
            series = cache.get(values) or self._add_series(values)
            if session is None or not session.needs_zero(series.id):
                yield series, value
            elif _inherits(row, values, snapshot):
                session.skip_zero(series.id)
                yield series, value
            else:
                yield series, _zero(value)
        if len(cache) > 2 * count + MAX_SPARE_SERIES:  # most of them are gone
            cache.clear()

    def _thinned(self, samples: Iterable[Sample], bounds: tuple[float, ...]) -> Iterable[Sample]:
        """Return histograms with only the bounds of the row."""
        buckets = self.row.buckets
        self._bounds = bounds if buckets is None else tuple(bound for bound in bounds if bound in buckets)
        if self._bounds == bounds:
            return samples
        into = bucket_indexes(bounds, self._bounds)
        return ((values, histogram.rebucketed(into)) for values, histogram in samples)

    def _add_series(self, values: tuple[str, ...]) -> _Series:
        escaped = [_escape(value) for value in values]
        braces = self._braces.format(*escaped)
        if self.row.bounds is None and self.row.type != "summary":
            lines = _percents(f"{self.name}{braces}") + _COUNT
        else:
            buckets = self._buckets(escaped) if self.row.bounds is not None else ()
            counts = [*buckets, f"{self.name}_count{braces}"]
            lines = b"".join(_percents(sample) + _COUNT for sample in counts)
            lines += _percents(f"{self.name}_sum{braces}") + b" %b\n"
        series = self._series[values] = _Series(series_id(self.name, values), values, lines)
        return series

    def _buckets(self, escaped: list[str]) -> Iterable[str]:
        bounds = [number(bound) for bound in (*self._bounds, math.inf)]
        if not self.row.decimal:  # as Go writes them: le="30"
            bounds = [bound.removesuffix(".0") for bound in bounds]
        return (f"{self.name}_bucket{self._bucket_braces.format(*escaped, bound)}" for bound in bounds)


#: The placeholder of an integer. No label value contains it, because line ends are escaped there.
_COUNT = b" %d.0\n"


def _percents(text: str) -> bytes:
    return _encoded(text.replace("%", "%%"))


def _number_line(line: bytes, value: float) -> bytes:
    if type(value) is int and -EXPONENT_FROM < value < EXPONENT_FROM:
        return line % value
    return line.replace(_COUNT, b" %b\n") % _number(value)


def _number(value: float) -> bytes:
    text: str = number(value)
    return text.encode()


def _histogram_lines(lines: bytes, histogram: Histogram) -> bytes:
    counts = list(accumulate(histogram.counts))
    total = _number(histogram.total)
    if counts[-1] < EXPONENT_FROM:
        return lines % (*counts, counts[-1], total)
    numbers = map(_number, (*counts, counts[-1]))
    return lines.replace(_COUNT, b" %b\n") % (*numbers, total)


def _summary_lines(lines: bytes, summary: Summary) -> bytes:
    total = _number(summary.total)
    if summary.count < EXPONENT_FROM:
        return lines % (summary.count, total)
    return lines.replace(_COUNT, b" %b\n") % (_number(summary.count), total)


def _with_exemplars(lines: bytes, histogram: Histogram) -> bytes:
    text = _histogram_lines(lines, histogram)
    if not histogram.exemplars:
        return text
    buckets = text.split(b"\n")
    for index, exemplar in histogram.exemplars.items():
        labels = ",".join(f'{name}="{_escape(value)}"' for name, value in exemplar.labels().items())
        suffix = f" # {{{labels}}} {number(exemplar.seconds)}"
        buckets[index] += _encoded(suffix)
    return b"\n".join(buckets)


def _zero(value: float | Histogram | Summary) -> float | Histogram | Summary:
    if isinstance(value, Summary):
        return NOTHING
    return value.empty() if isinstance(value, Histogram) else 0


def _template(labels: Sequence[str], static: Mapping[str, str]) -> str:
    """Return the braces of a sample as a str.format template, labels sorted as prometheus_client does."""
    placeholders = {label: f"{{{index}}}" for index, label in enumerate(labels)}
    texts = {label: _escape(text).replace("{", "{{").replace("}", "}}") for label, text in static.items()}
    pairs = ",".join(f'{label}="{text}"' for label, text in sorted((texts | placeholders).items()))
    return f"{{{{{pairs}}}}}" if pairs else ""


def _inherits(row: MetricFamily, values: Sequence[str], snapshot: Snapshot) -> bool:
    """Return whether the value of a sample includes counts of other label sets from before."""
    labels = dict(zip(row.labels, values, strict=True))
    if any(labels.get(name) == OTHER for name in TASK_NAME_LABELS):
        return True
    if row.type == "summary":  # these sums have label sets of their own, and move to `other` only
        return False
    if labels.get("state") == State.PENDING.name:  # clients send, and the sums that moved are of workers
        return False
    aggregate = snapshot.aggregates.get(LabelSet(*(labels.get(label, "") for label in LABEL_SET_NAMES)))
    # A row that adds up label sets has the same sum before and after one is merged into another.
    return row.merge is None and aggregate is not None and aggregate.inherited


def _merged(merge: Callable[[Any, Any], Any], samples: Iterable[Sample]) -> Iterable[Sample]:
    merged: dict[tuple[str, ...], Any] = {}
    copied: set[tuple[str, ...]] = set()  # the histograms that are not those of the snapshot
    for values, value in samples:
        if values not in merged:
            merged[values] = value
        elif not isinstance(value, Histogram):
            merged[values] = merge(merged[values], value)
        else:
            if values not in copied:
                merged[values] = merged[values].copy()
                copied.add(values)
            merged[values].merge(value)
    return merged.items()


_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def _escape(text: str) -> str:
    return text.translate(_ESCAPES)
