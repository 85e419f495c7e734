"""Tables that show a snapshot under one family of metric names. No state, no I/O: one `Row`, one metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from msgspec import Struct

from celery_exporter.core.snapshot import Snapshot

#: One sample: its label values, in the order of the row's labels, and its value: a number, or a `Histogram`
#: where the row has bounds.
Sample = tuple[tuple[str, ...], Any]


#: The labels of rows about tasks, in the order of `Key`.
KEY_LABELS = ("task_name", "queue_name", "worker")


class Row(Struct, frozen=True):
    """One metric family: what it is called and how a snapshot tells its samples.

    Names begin with `celery_`, which `--metric-prefix` replaces. A counter's name ends in `_total`.
    `merge` joins the values of samples with equal labels, where the snapshot is finer than the row.
    `bounds` tells a histogram's upper bucket bounds, without +Inf. A counter that somebody else counts
    `began_before` we heard of it: a 0 before its first value would make all of that an increase.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    samples: Callable[[Snapshot], Iterable[Sample]]
    merge: Callable[[float, float], float] | None = None
    bounds: Callable[[Snapshot], Iterable[float]] | None = None
    began_before: bool = False
