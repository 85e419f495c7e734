"""Single tasks as JSON: what is found, and what is answered if nothing or too much is."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from celery_exporter.config.loader import load
from celery_exporter.core.limits import Limits
from celery_exporter.monitor.cluster_state import ClusterState
from celery_exporter.monitor.task_finder import TaskFinder
from celery_exporter.status.explain import NEVER_SEEN
from celery_exporter.web.task_api import STANDBY, Problem, TaskAnswer, TaskList, Tasks, pages
from unit.core.cluster_driver import ClusterDriver, failed, received, sent, started, succeeded
from unit.core.test_task_info import driver_with_details

IDS = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(5)]


def cluster() -> ClusterDriver:
    """Return a cluster with a workflow of three tasks, a task of its own, and one that runs."""
    driver = driver_with_details(Limits(task_ttl=1e6))
    family = {"root_id": IDS[0]}
    driver.apply(sent(IDS[0], **family), received(IDS[0], **family), started(IDS[0]))
    for number, uuid in enumerate(IDS[1:3], 1):
        origin = {**family, "parent_id": IDS[0]}
        driver.apply(
            sent(uuid, at=number, **origin),
            received(uuid, at=number + 0.1, **origin),
            started(uuid, at=number + 0.2),
            failed(uuid, at=number + 0.3),
        )
    driver.apply(succeeded(IDS[0], at=9), sent(IDS[3], at=20, queue="x"), sent(IDS[4], at=30))
    return driver


def get(path: str, *, is_standby: bool = False, **query: str) -> tuple[int, bytes]:
    """Return the status and the body of an answer about this cluster."""
    config = load({"broker_url": "redis://"}, {}).monitor
    finder = TaskFinder(ClusterState(cluster().cluster, config), None)
    routes = pages(Tasks(finder, "https://traces/{trace_id}?tab=1", lambda: is_standby))
    name, _, uuid = path.partition("/")
    route = routes["/api/v1/tasks/{uuid:path}" if uuid else "/api/v1/tasks"]
    request: Any = SimpleNamespace(query_params=query, path_params={"uuid": uuid})

    async def answer() -> Any:
        return await route(request)

    response = asyncio.run(answer())
    assert name == "tasks"
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    return response.status_code, response.body


def listed(**query: str) -> TaskList:
    status, body = get("tasks", **query)
    assert status == 200
    return msgspec.json.decode(body, type=TaskList)


def test_a_list_has_the_newest_tasks_first():
    assert [task.uuid for task in listed().tasks] == [IDS[4], IDS[3], IDS[0], IDS[2], IDS[1]]
    assert [task.uuid for task in listed(state="failure", limit="1").tasks] == [IDS[2]]
    assert [task.uuid for task in listed(queue="x").tasks] == [IDS[3]]


def test_a_standby_says_that_the_active_one_has_tasks_too():
    bodies = [get(path, is_standby=True)[1] for path in ("tasks", f"tasks/{IDS[3]}")]
    assert [msgspec.json.decode(body)["problem"] for body in bodies] == [STANDBY] * 2
    status, body = get("tasks/none", is_standby=True)
    problem = msgspec.json.decode(body, type=Problem)
    assert (status, tuple(problem.hints)) == (404, (STANDBY, *NEVER_SEEN))
    assert listed().problem == ""


def test_the_next_page_begins_where_the_last_one_ended():
    first = listed(limit="2")
    assert first.next is not None
    second = listed(limit="2", cursor=first.next)
    assert [task.uuid for task in second.tasks] == [IDS[0], IDS[2]]
    last = listed(limit="2", cursor=second.next)
    assert ([task.uuid for task in last.tasks], last.next) == ([IDS[1]], None)


@pytest.mark.parametrize("text", [IDS[1], IDS[1][:8]])
def test_a_task_comes_with_its_workflow(text):
    status, body = get(f"tasks/{text}")
    answer = msgspec.json.decode(body, type=TaskAnswer)
    assert (status, answer.task.uuid, answer.task.exception) == (200, IDS[1], "ValueError")
    assert sorted(task.uuid for task in answer.workflow) == IDS[:3]
    assert answer.trace_url == f"https://traces/{IDS[0].replace('-', '')}?tab=1"


def test_a_task_without_a_workflow_is_alone_in_it():
    answer = msgspec.json.decode(get(f"tasks/{IDS[3]}")[1], type=TaskAnswer)
    assert [task.uuid for task in answer.workflow] == [IDS[3]]


def test_an_unknown_id_is_answered_with_what_that_can_mean():
    status, body = get("tasks/f00")
    problem = msgspec.json.decode(body, type=Problem)
    assert (status, problem.error, tuple(problem.hints)) == (
        404,
        "no task with the id f00 is known",
        NEVER_SEEN,
    )


def test_a_beginning_of_several_ids_is_answered_with_all_of_them():
    status, body = get("tasks/0000000")
    assert (status, sorted(msgspec.json.decode(body, type=Problem).tasks)) == (300, IDS)


def test_a_wrong_parameter_is_answered_with_what_it_takes():
    status, body = get("tasks", limit="many")
    assert status == 400
    assert "limit: got 'many'; it takes a number from 1 to 500" in body.decode()
