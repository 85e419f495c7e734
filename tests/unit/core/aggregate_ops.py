"""The operations of `Aggregates` as values, so that a test can apply a list of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import methodcaller

from celery_exporter.core.aggregates import Aggregates, Failure
from celery_exporter.core.types import LabelSet

Operation = Callable[[Aggregates], None]

count_transition = partial(methodcaller, "count_transition")
count_sender = partial(methodcaller, "count_sender")
count_redelivery = partial(methodcaller, "count_redelivery")
observe_runtime = partial(methodcaller, "observe_runtime")
observe_queue_wait = partial(methodcaller, "observe_queue_wait")
observe_prefetch_wait = partial(methodcaller, "observe_prefetch_wait")
merge = partial(methodcaller, "merge")


def count_failure(label_set: LabelSet, exception: str, uuid: str = "u1") -> Operation:
    return methodcaller("count_failure", Failure(1.0, label_set, "w@h", exception, uuid))


def exceed_retries(label_set: LabelSet) -> Operation:
    return methodcaller("count_failure", Failure(1.0, label_set, "w@h", "Error0", "u1", True))


def apply_all(aggregates: Aggregates, operations: Iterable[Operation]) -> None:
    for operation in operations:
        operation(aggregates)
