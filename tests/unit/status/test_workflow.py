"""The tree of a workflow."""

from __future__ import annotations

from celery_exporter.core.task_info import TaskInfo
from celery_exporter.status.workflow import in_tree_order, levels


def sent(uuid: str, parent: str | None = None, at: float = 0.0) -> TaskInfo:
    return TaskInfo(uuid, "t", "q", "PENDING", 100.0 + at, parent_id=parent, first_sent=at or None)


def tree(*tasks: TaskInfo) -> list[tuple[int, str]]:
    ordered = in_tree_order(tasks)
    assert {task.uuid for task in ordered} == {task.uuid for task in tasks}
    return list(zip(levels(ordered), (task.uuid for task in ordered), strict=True))


def test_each_task_is_below_the_one_that_sent_it_the_oldest_first():
    tasks = (
        sent("b", "root", 3), sent("a2", "a", 9), sent("root", at=1), sent("a", "root", 2),
        sent("b1", "b", 4), sent("a1", "a", 8),
    )  # fmt: skip
    assert tree(*tasks) == [(0, "root"), (1, "a"), (2, "a1"), (2, "a2"), (1, "b"), (2, "b1")]


def test_a_task_whose_sender_is_unknown_is_a_root():
    assert tree(sent("a", "gone", 2), sent("b", "a", 3), sent("c", "gone", 1)) == [
        (0, "c"),
        (0, "a"),
        (1, "b"),
    ]


def test_a_retry_that_names_itself_as_its_sender_is_a_root():
    assert tree(sent("a", "a", 1), sent("b", "a", 2)) == [(0, "a"), (1, "b")]


def test_a_chain_of_any_length_is_a_tree():
    chain = [sent(f"{number:04}", f"{number - 1:04}", number) for number in range(1, 3_000)]
    assert [depth for depth, _ in tree(*chain[::-1])] == list(range(len(chain)))


def test_a_circle_ends():
    """Only a hostile client can send one."""
    assert tree(sent("x", at=1), sent("a", "b", 2), sent("b", "a", 3)) == [(0, "x"), (0, "a"), (1, "b")]
