"""The settings that decide the names and label values of series, as the state file holds them."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from celery_exporter.core.task_names import Pattern
from celery_exporter.monitor.config import MonitorConfig


class NameRules(Struct, frozen=True):
    """Which names are shown, and as what. Regular expressions as text; None: no such option."""

    include: str | None = None
    exclude: str | None = None
    rules: tuple[tuple[str, str], ...] = ()  # pattern, replacement


class Naming(Struct, frozen=True):
    """All that the names and label values of series depend on. Equal values name series alike."""

    tasks: NameRules = NameRules()
    queues: NameRules = NameRules()
    metric_prefix: str = ""
    static_labels: dict[str, str] = {}
    profiles: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    default_queue_name: str | None = None
    namespace: str | None = None
    generic_hostname_task_sent_metric: bool = False
    generic_hostname_worker_task_metric: bool = False


def naming_of(config: MonitorConfig) -> Naming:
    """Return the naming settings of a config."""
    metrics, selection = config.metrics, config.metrics.selection
    options = selection.options
    return Naming(
        tasks=_rules(config.task_include, config.task_exclude, config.task_name_rule),
        queues=_rules(config.queue_include, config.queue_exclude, config.queue_name_rule),
        metric_prefix=metrics.metric_prefix,
        static_labels=dict(metrics.static_label),
        profiles=tuple(sorted(set(selection.names))),
        labels=selection.labels,
        default_queue_name=options.default_queue_name,
        namespace=options.namespace,
        generic_hostname_task_sent_metric=options.generic_hostname_task_sent_metric,
        generic_hostname_worker_task_metric=options.generic_hostname_worker_task_metric,
    )


def _rules(
    include: Pattern | None, exclude: Pattern | None, rules: Sequence[tuple[Pattern, str]]
) -> NameRules:
    return NameRules(
        include.pattern if include else None,
        exclude.pattern if exclude else None,
        tuple((pattern.pattern, replacement) for pattern, replacement in rules),
    )
