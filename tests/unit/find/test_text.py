"""What `find` prints of tasks."""

from __future__ import annotations

import re

from celery_exporter.core.message_location import MessageLocation
from celery_exporter.core.task_info import TaskInfo
from celery_exporter.find.text import explanation_text, problem_text, task_list_text, task_text
from celery_exporter.status.columns import UNKNOWN
from celery_exporter.status.explanation import Explanation
from celery_exporter.web.task_answers import Problem, TaskAnswer, TaskList
from unit.core.cluster_driver import T0, failed, received, retried, sent, started, succeeded
from unit.core.test_task_info import info_of

NOW = T0 + 60


def pending(uuid: str, parent: str | None = None, **fields) -> TaskInfo:
    return TaskInfo(uuid, "add", "q", "PENDING", T0, parent_id=parent, **fields)


def lines_of(task: TaskInfo, *others: TaskInfo) -> list[str]:
    return task_text(TaskAnswer(task, [task, *others] if others else [task]), NOW).splitlines()


def test_a_task_is_shown_with_each_attempt():
    lines = lines_of(info_of(sent(), received(), started(), retried(at=1), sent(at=1.5, retries=1)))
    assert lines[-2:] == ["", "Why is it there: celery-exporter find --why u1"]
    del lines[-2:]
    assert lines[:7] == [
        "u1",
        "  task       add",
        "  state      RETRY, 59.0 s ago",
        "  queue      q",
        "  sent by    client@h",
        "  first sent 2023-11-14 22:13:20.000",
        "",
    ]
    titles, first, second = (re.split("  +", line.replace(UNKNOWN, "?")) for line in lines[7:])
    assert titles[:5] == ["Attempt", "State", "Queue", "Worker", "Sent (UTC)"]
    assert titles[5:] == ["Due", "Received", "Started", "Ended", "Wait", "Run time", "Exception"]
    assert first[:5] == ["0", "RETRY", "q", "w@h", "2023-11-14 22:13:20.000"]
    assert first[5:] == ["?", "+100 ms", "+200 ms", "+1.0 s", "200 ms", "800 ms", "ValueError"]
    assert second == ["1", "PENDING", "q", "?", "2023-11-14 22:13:21.500", *("?" * 7)]


def test_a_task_that_was_not_seen_since_a_restart_says_so():
    note = "It was open when the exporter stopped, and nothing was seen of it since the exporter started."
    unseen = pending("a", unseen_since=NOW - 30)
    lines = lines_of(unseen, pending("b", "a"))
    assert f"{note} It may be over. The exporter started at 2023-11-14 22:13:50.000 UTC, 30.0 s ago." in lines
    assert lines[lines.index("Workflow") + 1 : -2] == ["  a  add  PENDING (unseen) <-", "    b  add  PENDING"]
    _, row, _, last = task_list_text(TaskList([unseen], None, is_complete=True), {}, NOW).splitlines()
    assert (row.startswith("PENDING (unseen)  "), last) == (True, f"unseen: {note}")


def test_a_workflow_is_a_tree_below_the_task_that_sent_the_others():
    root, child = pending("root"), pending("child", "root")
    lines = lines_of(child, root, pending("grandchild", "child"), pending("other", "gone"))
    assert lines[lines.index("Workflow") + 1 : -2] == [
        "  other  add  PENDING",
        "  root  add  PENDING",
        "    child  add  PENDING <-",
        "      grandchild  add  PENDING",
    ]


def test_a_circle_of_hostile_parents_ends():
    lines = lines_of(pending("a", "b"), pending("b", "a"), pending("c", "c"))
    assert sorted(line.split()[0] for line in lines[lines.index("Workflow") + 1 : -2]) == ["a", "b", "c"]


def test_a_workflow_that_is_cut_off_says_so():
    answer = TaskAnswer(pending("a"), [pending("a"), pending("b")], is_complete=False)
    *_, last, _, _ = task_text(answer, NOW).splitlines()
    assert last == "  The workflow has more tasks; these are the newest 2."


def test_a_list_ends_with_the_command_for_the_next_tasks_which_can_be_pasted():
    answer = TaskList([info_of(sent(), received(), started(), failed())], "12.5~it's", is_complete=False)
    *_, more, hint = task_list_text(answer, {"min_runtime": "2m", "name": "a b"}, NOW).splitlines()
    assert more == "More: celery-exporter find --min-runtime 2m --name 'a b' --cursor '12.5~it'\"'\"'s'"
    assert "There are more tasks than were searched" in hint
    *_, more, _ = task_list_text(answer, {}, NOW, "https://x:9808").splitlines()
    assert more.startswith("More: celery-exporter find --url https://x:9808 --cursor ")


def test_a_list_has_a_line_for_each_task():
    answer = TaskList([info_of(sent(), received(), started(), succeeded())], None, is_complete=True)
    titles, line = task_list_text(answer, {}, NOW).splitlines()
    assert titles.split()[0] == "State"
    cells = ["SUCCESS", "2023-11-14 22:13:20 (59.7 s ago)", "add", "q", "w@h", "100 ms", UNKNOWN, "u1"]
    assert re.split("  +", line) == cells


def test_an_explanation_is_its_sentence_with_evidence_and_what_is_unknown():
    location = MessageLocation("unknown", reason="x")
    explanation = Explanation("u1", NOW, "running", "It runs.", ["a start"], [], location)
    assert explanation_text(explanation) == "It runs.\nEvidence:\n  - a start"


def test_hostile_texts_do_not_control_the_terminal():
    hostile = TaskInfo("u\x1b[2J", "n\x9b", "q\n", "PENDING", T0)
    for text in (
        task_text(TaskAnswer(hostile, [hostile, pending("x\r")]), NOW),
        task_list_text(TaskList([hostile], "1~\x1b", is_complete=True), {"name": "\x1b"}, NOW),
        explanation_text(Explanation("u", NOW, "x", "\x1b", ["\r"], ["\x9b"], MessageLocation("unknown"))),
        problem_text(Problem("\x1b", ["\x9b"], ["\r"])),
    ):
        assert text.replace("\n", "").isprintable()
