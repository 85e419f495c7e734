"""The settings of the metrics: which ones are served, and how."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from celery_exporter.metrics.registry import Selection


class MetricsConfig(Struct, frozen=True, kw_only=True):
    """Which metrics are served, and how.

    `selection` is the result of --profile and the options of single metrics; the other fields are named after
    their options. `histogram_sample_rate` None observes every task.
    """

    selection: Selection
    metric_prefix: str
    static_label: Mapping[str, str]
    native_histograms: bool
    no_classic_histograms: bool
    exemplars: bool
    histogram_sample_rate: float | None
