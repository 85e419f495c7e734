"""The expressions that stand on more than one panel, and what they are made of."""

from __future__ import annotations


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""


def rate(counter: str, *by: str) -> str:
    """Return its growth a second, summed up by these labels."""
    return f"sum{_by(by)}(rate({counter}[$__rate_interval]))"


def growth(counter: str, *by: str) -> str:
    """Return by how much it grew over a step of the graph."""
    return f"sum{_by(by)}(increase({counter}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """Return a share that is absent, not NaN, of nothing."""
    return f"{part} / ({whole} > 0)"


def quantile(fraction: float, histogram: str, *by: str) -> str:
    """Return a quantile over the last step of the graph."""
    return f"histogram_quantile({fraction}, {rate(f'{histogram}_bucket', 'le', *by)})"


def mean(histogram: str) -> str:
    """Return the mean over the last step of the graph."""
    return share(rate(f"{histogram}_sum"), rate(f"{histogram}_count"))


def total(gauge: str, *by: str) -> str:
    """Return the sum by these labels."""
    return f"sum{_by(by)}({gauge})"


def most(gauge: str, *by: str) -> str:
    """Return the largest by these labels; mostly there is one."""
    return f"max{_by(by)}({gauge})"


def since(timestamp: str, *by: str) -> str:
    """Return the seconds since the latest of these moments; two clocks never make them negative."""
    return f"clamp_min(time() - {most(timestamp, *by)}, 0)"


def since_first(timestamp: str, *by: str) -> str:
    """Return the seconds since the earliest of them."""
    return f"clamp_min(time() - min{_by(by)}({timestamp}), 0)"


def or_none(age: str) -> str:
    """Return an age of the oldest that is 0 s where there is none, but only while the exporter hears."""
    return f"{age} or 0 * max(celery_broker_up == 1)"


FINISHED = rate('celery_tasks_total{state=~"SUCCESS|FAILURE"}')
SUCCESS_SHARE = share(rate('celery_tasks_total{state="SUCCESS"}'), FINISHED)
# What a worker can execute at once when it has grown its pool as far as it may (--autoscale).
POOL_LIMIT = "(celery_worker_pool_max or celery_worker_pool_size)"
# Of those workers only that say both.
SATURATION = share(
    f"sum(celery_worker_active_tasks and {POOL_LIMIT})",
    f"sum({POOL_LIMIT} and celery_worker_active_tasks)",
)
OLDEST_WAITING = or_none(since_first('celery_task_oldest_timestamp_seconds{state=~"PENDING|RECEIVED"}'))
OLDEST_MESSAGE = (
    f"{since_first('celery_queue_oldest_timestamp_seconds', 'queue_name')}"
    f" or {most('celery_queue_length == 0', 'queue_name')}"
)
OLDEST_RUNNING = or_none(since_first('celery_task_oldest_timestamp_seconds{state="STARTED"}'))
# As the alert CeleryExporterBlind has it (silenceSeconds in alerts/mixin.libsonnet), and workers without -E.
# The silence first: it stands in the place of a subscription that is open.
SILENCE = 120
HEARING = (
    "min(0 * (celery_workers_online > 0"
    f" unless time() - celery_exporter_last_event_timestamp_seconds < {SILENCE})"
    " or celery_broker_up or celery_worker_task_events_enabled)"
)
HEARING_MEANS = (
    f"Hears, or is blind: its event subscription is closed, no event came for {SILENCE} s though workers "
    "are up, or a worker runs tasks without sending events."
)
