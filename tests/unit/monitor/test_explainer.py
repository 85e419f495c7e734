"""Which queues are those of a task. The answers are tested in tests/integration/test_explain.py."""

from __future__ import annotations

from celery_exporter.core.cluster import Cluster
from celery_exporter.core.task_info import AttemptInfo, TaskInfo
from celery_exporter.core.types import OTHER
from celery_exporter.monitor.explainer import newest_queue, own_queues
from unit.core.cluster_driver import ClusterDriver


def cluster(*queues: str, show_queue=str) -> Cluster:
    cluster = ClusterDriver(show_queue=show_queue).cluster
    for queue in queues:
        cluster.queues.use(queue, 0.0)
    return cluster


def task(queue: str | None, *attempts: AttemptInfo) -> TaskInfo:
    return TaskInfo("u", "t", queue, "PENDING", 0.0, attempts=attempts)


def without_number(queue: str) -> str:
    """Show queues as `--queue-name-rule` does that removes numbers."""
    return queue.rstrip("-0123456789")


def test_a_queue_that_only_the_history_knows_is_looked_at():
    for known in (cluster(), cluster("other-queue")):
        assert own_queues(task("q"), known) == ["q"]
        assert newest_queue(task("q"), known) == "q"


def test_the_queue_of_the_open_attempt_comes_before_those_of_others():
    over, waiting = (
        AttemptInfo("RETRY", 0, queue_name="a", ended=1.0),
        AttemptInfo("PENDING", 1, queue_name="b"),
    )
    known = cluster("a", "b", "c")
    assert own_queues(task("c", over, waiting), known) == ["b", "c", "a"]
    assert newest_queue(task("c", over, waiting), known) == "b"


def test_all_queues_with_the_label_value_of_a_task_are_looked_at():
    known = cluster("q-1", "q-2", "other-queue", show_queue=without_number)
    assert own_queues(task("q"), known) == ["q", "q-1", "q-2"]  # q: it may be a name, too
    assert newest_queue(task("q"), known) is None
    assert newest_queue(task("q"), cluster("q-1", show_queue=without_number)) == "q-1"


def test_a_label_value_that_is_no_name_is_not_looked_at():
    for queue in (None, OTHER):
        assert own_queues(task(queue), cluster("a")) == []
        assert newest_queue(task(queue), cluster("a")) is None
    renamed = cluster("b-1", show_queue=lambda name: name.replace("b-", "a-"))
    assert own_queues(task("b-1"), renamed) == []  # by other rules than today's
    assert own_queues(None, renamed) == []
