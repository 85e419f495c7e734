"""PromQL expressions that several panels use, and functions that compose them."""

from __future__ import annotations


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""


def rate(counter: str, *by: str) -> str:
    """Return the rate of a counter per second, summed by these labels."""
    return f"sum{_by(by)}(rate({counter}[$__rate_interval]))"


def increase(counter: str, *by: str) -> str:
    """Return the increase of a counter over a step of the graph, summed by these labels."""
    return f"sum{_by(by)}(increase({counter}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """Return a share, which is absent instead of NaN if the whole is 0."""
    return f"{part} / ({whole} > 0)"


def quantile(fraction: float, histogram: str, *by: str) -> str:
    """Return a quantile over the last step of the graph."""
    return f"histogram_quantile({fraction}, {rate(f'{histogram}_bucket', 'le', *by)})"


def mean(histogram: str, *by: str) -> str:
    """Return the mean over the last step of the graph, of a histogram or a summary."""
    return share(rate(f"{histogram}_sum", *by), rate(f"{histogram}_count", *by))


def total(gauge: str, *by: str) -> str:
    """Return the sum of a gauge by these labels."""
    return f"sum{_by(by)}({gauge})"


def maximum(gauge: str, *by: str) -> str:
    """Return the maximum of a gauge by these labels; in most cases there is only one value."""
    return f"max{_by(by)}({gauge})"


def minimum(gauge: str, *by: str) -> str:
    """Return the minimum of a gauge by these labels: what holds in all replicas and shards."""
    return f"min{_by(by)}({gauge})"


def since_last(timestamp: str, *by: str) -> str:
    """Return the seconds since the latest timestamp, at least 0 despite clock skew."""
    return f"clamp_min(time() - {maximum(timestamp, *by)}, 0)"


def since_first(timestamp: str, *by: str) -> str:
    """Return the seconds since the earliest timestamp, at least 0 despite clock skew."""
    return f"clamp_min(time() - min{_by(by)}({timestamp}), 0)"


def or_zero(age: str, known: str = "") -> str:
    """Return an age that is 0 if there is no task, but only while the event subscription is open.

    `known` is a gauge without which it is unknown whether there is a task.
    """
    condition = f" and on () {maximum(known)}" if known else ""
    return f"{age} or 0 * max(celery_broker_up == 1){condition}"


FINISHED = rate('celery_tasks_total{state=~"SUCCESS|FAILURE"}')
SUCCESS_SHARE = share(rate('celery_tasks_total{state="SUCCESS"}'), FINISHED)
# The number of tasks that a worker can run at once: the maximum of its pool with --autoscale.
POOL_LIMIT = "(celery_worker_pool_max or celery_worker_pool_size)"
# Only workers that report both values.
SATURATION = share(
    f"sum(celery_worker_active_tasks and {POOL_LIMIT})",
    f"sum({POOL_LIMIT} and celery_worker_active_tasks)",
)
# Without task-sent events it is unknown whether a task waits, and PENDING has no sample.
OLDEST_WAITING = or_zero(
    since_first('celery_task_oldest_timestamp_seconds{state=~"PENDING|RECEIVED"}'),
    known='celery_tasks_in_flight{state="PENDING"}',
)
OLDEST_MESSAGE = (
    f"{since_first('celery_queue_oldest_timestamp_seconds', 'queue_name')}"
    f" or {maximum('celery_queue_length == 0', 'queue_name')}"
)
OLDEST_RUNNING = or_zero(since_first('celery_task_oldest_timestamp_seconds{state="STARTED"}'))
# The condition of the alert CeleryExporterBlind (silenceSeconds in alerts/mixin.libsonnet), and workers
# without -E. The silence is the first operand of `or`, so that it replaces celery_broker_up of the same
# exporter. An exporter without a subscription does not count if another one consumes its durable queue.
SILENCE_SECONDS = 120
RECEIVING = (
    "min(0 * (celery_workers_online > 0"
    f" unless time() - celery_exporter_last_event_timestamp_seconds < {SILENCE_SECONDS})"
    " or celery_broker_up unless on (job, instance)"
    " (celery_exporter_active == 0 and on (job, event_queue) celery_exporter_active == 1)"
    " or celery_worker_task_events_enabled)"
)
RECEIVING_DESCRIPTION = (
    "Whether the exporter receives all events. It does not if the event subscription is closed or no event "
    f"has arrived for {SILENCE_SECONDS} s while workers are up (alert CeleryExporterBlind, or "
    "CeleryStandbyDown if a replica receives them), or if a worker runs tasks without task events."
)
