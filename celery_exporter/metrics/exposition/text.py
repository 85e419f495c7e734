"""Snapshot → page. Prometheus text format 0.0.4, OpenMetrics 1.0, or protobuf, chosen by the Accept header.

Formats: prometheus.io/docs/instrumenting/exposition_formats and the OpenMetrics 1.0 specification. The
oracle for both is prometheus_client, in the tests. No `_created` lines: Prometheus stores each of them as a
series of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any

from msgspec import Struct
from prometheus_client import Metric, ProcessCollector
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString as number  # noqa: N813  what it makes

from celery_exporter.core.histogram import EXEMPLAR_LABEL, Histogram, bucket_indexes
from celery_exporter.core.snapshot import Snapshot
from celery_exporter.core.types import OTHER, LabelSet
from celery_exporter.metrics.exposition import protobuf
from celery_exporter.metrics.exposition.protobuf import PROTOBUF
from celery_exporter.metrics.exposition.series_tracker import ScrapeSession, series_id
from celery_exporter.metrics.model import KEY_LABELS, PREFIX, TASK_NAMES, MetricFamily, Sample

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: Whole numbers below it are written as they are; larger ones with an exponent, as Go does.
SHORT = 1_000_000
#: Lines, or histograms, that are put together in one go: other threads wait meanwhile.
AT_ONCE = 500
#: Series whose text is kept though they were not in the newest scrape.
SPARE = 1_000


class Exposition:
    """Rows and their settings, made once; `render` is called for each scrape."""

    def __init__(
        self,
        rows: Sequence[MetricFamily],
        prefix: str = PREFIX,
        static_labels: Mapping[str, str] | None = None,
    ) -> None:
        static = self._static = static_labels or {}
        self._families = [_Family(row, row.full_name(prefix), static) for row in rows]
        self._unlabelled = _template((), static).format()
        self._process = ProcessCollector(registry=CollectorRegistry())
        names = {family.name for family in self._families}
        # OpenMetrics names a counter without its _total, and then celery_tasks_total (a counter of the native
        # profile) and celery_tasks (a gauge of zerok's) would be one family. Where that happens the counter
        # is of type unknown there, which keeps the name of every sample.
        self._clashing = {name for name in names if name.removesuffix("_total") in names - {name}}

    def render(
        self, snapshot: Snapshot, content_type: str = TEXT, session: ScrapeSession | None = None
    ) -> bytes:
        """Return all families of the snapshot in `TEXT`, `OPENMETRICS` or `PROTOBUF`.

        `session` is that of a Prometheus server, None for somebody who reads numbers, once.
        """
        parts = self._messages if content_type == PROTOBUF else self._texts
        return b"".join(parts(snapshot, session, content_type == OPENMETRICS))

    def _texts(self, snapshot: Snapshot, session: ScrapeSession | None, openmetrics: bool) -> Iterator[bytes]:
        for family in self._families:
            yield _text(self._head(family.name, family.row.type, family.row.help, openmetrics))
            lines = family.lines(snapshot, session, exemplars=openmetrics)
            while some := b"".join(islice(lines, AT_ONCE)):
                yield some
        for name, metric in self._of_process():
            yield _text(self._head(name, metric.type, metric.documentation, openmetrics))
            yield _text(f"{each.name}{self._unlabelled} {number(each.value)}" for each in metric.samples)
        if openmetrics:
            yield b"# EOF\n"

    def _messages(self, snapshot: Snapshot, session: ScrapeSession | None, _: bool) -> Iterator[bytes]:
        for family in self._families:
            row = family.row
            yield from protobuf.family(family.name, row.type, row.help, family.metrics(snapshot, session))
        labelled = protobuf.labels(self._static)
        for name, metric in self._of_process():
            values = (protobuf.metric(metric.type, labelled, each.value) for each in metric.samples)
            yield from protobuf.family(name, metric.type, metric.documentation, values)

    def _of_process(self) -> Iterator[tuple[str, Metric]]:
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


def _text(lines: Iterable[str]) -> bytes:
    return _encoded("".join(f"{line}\n" for line in lines))


def _encoded(text: str) -> bytes:
    # Nothing that cannot be encoded gets this far; if it did, it must not cost the whole page.
    return text.encode("utf-8", "replace")


class _Series(Struct, frozen=True, gc=False):
    """What of a series is the same in each scrape."""

    id: int
    values: tuple[str, ...]  # of its labels
    lines: bytes  # of a histogram all of them; %d.0 stands for a number, %b for a histogram's sum


class _Family:
    """A row with its full name, and the text of its series, made once for each."""

    def __init__(self, row: MetricFamily, name: str, static: Mapping[str, str]) -> None:
        self.row = row
        self.name = name
        self._static = static
        self._braces = _template(row.labels, static)
        self._bucket_braces = _template((*row.labels, "le"), static)
        self._series: dict[tuple[str, ...], _Series] = {}
        self._bounds: tuple[float, ...] = ()
        self._labels: dict[tuple[str, ...], bytes] = {}  # in protobuf

    def lines(self, snapshot: Snapshot, session: ScrapeSession | None, *, exemplars: bool) -> Iterator[bytes]:
        """Yield the family's lines, those of one histogram together."""
        of_histogram = _with_exemplars if exemplars else _histogram_lines
        line = _number_line if self.row.bounds is None else of_histogram
        for series, value in self._shown(snapshot, session):
            yield line(series.lines, value)

    def metrics(self, snapshot: Snapshot, session: ScrapeSession | None) -> Iterator[bytes]:
        """Yield the family's metrics in protobuf, to a visitor with the time at which they were at 0."""
        row, known = self.row, self._labels
        created = (
            None if session is None or row.type == "gauge" or row.has_external_baseline else session.created
        )
        any_inherits = any(cell.inherited for cell in snapshot.aggregates.values())
        count = 0
        for count, (series, value) in enumerate(self._shown(snapshot, session), 1):  # noqa: B007
            labelled = known.get(series.values) or self._learn_labels(series.values)
            may_inherit = any_inherits or OTHER in series.values
            at = None if may_inherit and _inherits(row, series.values, snapshot) else created
            if row.bounds is None:
                yield protobuf.metric(row.type, labelled, value, at)
            else:
                yield protobuf.histogram(labelled, self._bounds, value, at)
        if len(known) > 2 * count + SPARE:
            known.clear()

    def _learn_labels(self, values: tuple[str, ...]) -> bytes:
        pairs = {**self._static, **dict(zip(self.row.labels, values, strict=True))}
        labelled = self._labels[values] = protobuf.labels(pairs)
        return labelled

    def _shown(self, snapshot: Snapshot, session: ScrapeSession | None) -> Iterator[tuple[_Series, Any]]:
        """Yield each series with its value; to a visitor, a counting series that is new is shown at 0."""
        row, known = self.row, self._series
        samples = row.samples(snapshot)
        if row.merge is not None:
            samples = _merged(row.merge, samples)
        if row.type == "gauge" or row.has_external_baseline:
            session = None
        if row.bounds is not None:
            samples = self._thinned(samples, tuple(row.bounds(snapshot)))
        count = 0
        for count, (values, value) in enumerate(samples, 1):  # noqa: B007
            series = known.get(values) or self._learn(values)
            if session is None or session.shows(series.id):
                yield series, value
            elif _inherits(row, values, snapshot):
                session.show(series.id)
                yield series, value
            else:
                yield series, _nothing(value)
        if len(known) > 2 * count + SPARE:  # most of them are gone
            known.clear()

    def _thinned(self, samples: Iterable[Sample], bounds: tuple[float, ...]) -> Iterable[Sample]:
        """Return histograms with no bounds but those of the row."""
        buckets = self.row.buckets
        self._bounds = bounds if buckets is None else tuple(bound for bound in bounds if bound in buckets)
        if self._bounds == bounds:
            return samples
        into = bucket_indexes(bounds, self._bounds)
        return ((values, histogram.rebucketed(into)) for values, histogram in samples)

    def _learn(self, values: tuple[str, ...]) -> _Series:
        escaped = [_escape(value) for value in values]
        braces = self._braces.format(*escaped)
        if self.row.bounds is None:
            lines = _percents(f"{self.name}{braces}") + _COUNT
        else:
            counted = [*self._buckets(escaped), f"{self.name}_count{braces}"]
            lines = b"".join(_percents(each) + _COUNT for each in counted)
            lines += _percents(f"{self.name}_sum{braces}") + b" %b\n"
        series = self._series[values] = _Series(series_id(self.name, values), values, lines)
        return series

    def _buckets(self, escaped: list[str]) -> Iterable[str]:
        bounds = [number(bound) for bound in (*self._bounds, math.inf)]
        if not self.row.decimal:  # as Go writes them and as people ask for them: le="30", not le="30.0"
            bounds = [bound.removesuffix(".0") for bound in bounds]
        return (f"{self.name}_bucket{self._bucket_braces.format(*escaped, bound)}" for bound in bounds)


#: Where a whole number goes. No label can hold it, for their line ends are escaped.
_COUNT = b" %d.0\n"


def _percents(text: str) -> bytes:
    return _encoded(text.replace("%", "%%"))


def _number_line(line: bytes, value: float) -> bytes:
    if type(value) is int and -SHORT < value < SHORT:
        return line % value
    return line.replace(_COUNT, b" %b\n") % _number(value)


def _number(value: float) -> bytes:
    text: str = number(value)
    return text.encode()


def _histogram_lines(lines: bytes, histogram: Histogram) -> bytes:
    counts = list(accumulate(histogram.counts))
    total = _number(histogram.total)
    if counts[-1] < SHORT:
        return lines % (*counts, counts[-1], total)
    counted = map(_number, (*counts, counts[-1]))
    return lines.replace(_COUNT, b" %b\n") % (*counted, total)


def _with_exemplars(lines: bytes, histogram: Histogram) -> bytes:
    found = _histogram_lines(lines, histogram)
    if not histogram.exemplars:
        return found
    each = found.split(b"\n")
    for bucket, one in histogram.exemplars.items():
        text = f' # {{{EXEMPLAR_LABEL}="{_escape(one.uuid)}"}} {number(one.seconds)}'
        each[bucket] += _encoded(text)
    return b"\n".join(each)


def _nothing(value: float | Histogram) -> float | Histogram:
    return value.empty() if isinstance(value, Histogram) else 0


def _template(labels: Sequence[str], static: Mapping[str, str]) -> str:
    """Return the braces of a sample as a str.format template, labels sorted as prometheus_client does."""
    gaps = {label: f"{{{index}}}" for index, label in enumerate(labels)}
    texts = {label: _escape(text).replace("{", "{{").replace("}", "}}") for label, text in static.items()}
    pairs = ",".join(f'{label}="{text}"' for label, text in sorted((texts | gaps).items()))
    return f"{{{{{pairs}}}}}" if pairs else ""


def _inherits(row: MetricFamily, values: Sequence[str], snapshot: Snapshot) -> bool:
    """Tell whether what a sample says was counted, in part, under other labels before."""
    labels = dict(zip(row.labels, values, strict=True))
    if any(labels.get(name) == OTHER for name in TASK_NAMES):
        return True
    cell = snapshot.aggregates.get(LabelSet(*(labels.get(label, "") for label in KEY_LABELS)))
    # A row that adds label sets up has the same sum before and after one goes over to another.
    return row.merge is None and cell is not None and cell.inherited


def _merged(merge: Callable[[Any, Any], Any], samples: Iterable[Sample]) -> Iterable[Sample]:
    merged: dict[tuple[str, ...], Any] = {}
    own: set[tuple[str, ...]] = set()  # histograms that nobody else has
    for values, value in samples:
        if values not in merged:
            merged[values] = value
        elif not isinstance(value, Histogram):
            merged[values] = merge(merged[values], value)
        else:
            if values not in own:
                merged[values] = merged[values].copy()
                own.add(values)
            merged[values].merge(value)
    return merged.items()


_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def _escape(text: str) -> str:
    return text.translate(_ESCAPES)


_PROTOBUF = "application/vnd.google.protobuf"
_DELIMITED = ("io.prometheus.client.metricfamily", "delimited")
_CONTENT_TYPES = {
    **dict.fromkeys(("text/plain", "text/*", "*/*"), TEXT),
    "application/openmetrics-text": OPENMETRICS,
    _PROTOBUF: PROTOBUF,
}


class _Wish(Struct, frozen=True):
    content_type: str  # empty for one that we do not speak
    quality: float


def negotiate(accept: str | None) -> str:
    """Return the content type for an Accept header: the best of those that are asked for, or else text.

    The quality values decide; among equals protobuf, then OpenMetrics: they say more. OpenMetrics' version
    is clamped to what we speak, 1.0.0, whichever one is asked for.
    """
    wishes = [_wish(part) for part in (accept or "").split(",")]
    order = (TEXT, OPENMETRICS, PROTOBUF)
    known = [wish for wish in wishes if wish.quality > 0 and wish.content_type in order]
    best = max(known, key=lambda wish: (wish.quality, order.index(wish.content_type)), default=None)
    return best.content_type if best else TEXT


def _wish(part: str) -> _Wish:
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    given = dict(piece.partition("=")[::2] for piece in parameters)
    try:
        quality = float(given.get("q", "1"))
    except ValueError:
        quality = 0.0
    if media == _PROTOBUF and (given.get("proto"), given.get("encoding")) != _DELIMITED:
        media = ""
    return _Wish(_CONTENT_TYPES.get(media, ""), quality)
