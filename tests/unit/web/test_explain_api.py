"""/api/v1/explain/<uuid>: an answer, and what is answered if the broker is not looked at."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from celery_exporter.core.message_location import MessageLocation
from celery_exporter.status.explanation import AmbiguousIdError, BusyError, Explanation
from celery_exporter.web import explain_api
from celery_exporter.web.explain_api import pages
from celery_exporter.web.task_answers import Problem


def get(explain: Any, uuid: str = "u") -> Any:
    """Return the response to a request for a task."""
    (answer,) = pages(explain).values()
    request: Any = SimpleNamespace(path_params={"uuid": uuid})

    async def answered() -> Any:
        return await answer(request)

    return asyncio.run(answered())


def test_an_explanation_is_json_that_no_cache_keeps():
    location = MessageLocation("unknown", reason="x")
    response = get(lambda uuid: Explanation(uuid, 1.5, "waiting", "It waits.", ["a"], ["b"], location), "a/ü")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert msgspec.json.decode(response.body, type=Explanation).uuid == "a/ü"


@pytest.mark.parametrize(("seconds", "shown"), [(1.2, "2"), (0.004, "1"), (0.0, "1")])
def test_while_the_broker_is_not_looked_at_the_answer_says_when_to_ask_again(seconds, shown):
    def busy(_: str) -> Explanation:
        raise BusyError(seconds)

    response = get(busy)
    assert (response.status_code, response.headers["retry-after"]) == (429, shown)
    assert msgspec.json.decode(response.body, type=Problem).error == (
        "another task is being explained, or was just now: each look at the broker is followed by a pause; "
        f"ask again in {shown} s"
    )


def test_the_beginning_of_several_ids_is_answered_with_these():
    def ambiguous(given: str) -> Explanation:
        raise AmbiguousIdError(given, ["ab", "ac"])

    response = get(ambiguous, "a")
    assert response.status_code == 300
    problem = msgspec.json.decode(response.body, type=Problem)
    assert (problem.error, list(problem.tasks)) == ("several tasks begin with a", ["ab", "ac"])


@pytest.mark.parametrize("uuid", ["", "x" * 256])
def test_an_impossible_id_is_not_looked_for(uuid):
    asked: list[str] = []
    assert get(asked.append, uuid).status_code == 400
    assert asked == []


def test_an_answer_that_takes_too_long_is_an_error(monkeypatch):
    monkeypatch.setattr(explain_api, "MAX_ANSWER_SECONDS", 0.01)
    end = threading.Event()
    try:
        response = get(lambda _: end.wait(60))
    finally:
        end.set()
    assert response.status_code == 504
    assert msgspec.json.decode(response.body, type=Problem).error == "no answer of the broker in 0.01 s"


def test_an_unexpected_error_is_raised_where_the_server_logs_it():
    with pytest.raises(ZeroDivisionError):
        get(lambda _: 1 / 0)
