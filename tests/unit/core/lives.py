"""Sequences of events that several tests apply."""

from __future__ import annotations

from hypothesis import strategies as st

from .cluster_driver import received, retried, sent, started, succeeded, task_event

#: Fields of the events of some workers, and of a `task-sent` by the worker "w@h".
A, B, V = {"host": "a@h", "pid": 7}, {"host": "b@h", "pid": 8}, {"host": "v@h"}
HERE = {"hostname": "w@h"}

#: The events of a task that succeeds.
LIFE = [sent(), received(), started(), succeeded()]
# The order of events of a real worker: the pool process sends the retry before the worker reports the end.
RETRY_LIFE = [
    sent(at=0),
    received(at=1),
    sent(at=3, retries=1),
    received(at=4, retries=1),
    started(at=2),
    retried(at=3),
    started(at=6),
    succeeded(at=7),
]
#: The worker sends and receives the next attempt before it reports the end of the one before.
OVERLAPPING_RETRY = [
    *(sent(), received(), started()),
    *(sent(at=0.8, retries=1), received(at=0.9, retries=1), retried(at=1)),
    *(started(at=2), succeeded(at=5)),
]
RETRY_ELSEWHERE = [
    sent(),
    received(),
    started(),
    sent(at=0.9, retries=1, queue="right"),
    retried(at=1.0),
    task_event("received", at=1.0, host="r@h", name="add", retries=1),
    task_event("started", at=1.1, host="r@h"),
    task_event("succeeded", at=1.2, host="r@h", runtime=0.1),
]

KINDS = ["sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "cancelled"]
any_task_event = st.builds(
    task_event,
    st.sampled_from(KINDS),
    st.sampled_from(["u1", "u2"]),
    st.floats(-1e3, 1e3),
    st.sampled_from(["a@h", "b@h"]),
    name=st.sampled_from(["add", "mul", None]),
    queue=st.sampled_from(["q", "r", None]),
    retries=st.integers(0, 3) | st.none(),
    pid=st.integers(1, 2),
    requeue=st.booleans() | st.none(),
)
