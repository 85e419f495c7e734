"""/api/v1/explain/<uuid>: why a task is where it is. It looks at the broker: for people, not for scrapes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from celery_exporter.status.explanation import AmbiguousIdError, BusyError, Explanation
from celery_exporter.web.answers import Page, plain_json
from celery_exporter.web.task_answers import Problem

#: Seconds for an answer: a broker that does not answer takes 13 for one URL.
MAX_ANSWER_SECONDS = 20.0
#: Characters of an id, as in events.
MAX_ID_LENGTH = 255


def pages(explain: Callable[[str], Explanation]) -> dict[str, Page]:
    """Return the pages by path. `explain` may wait for the broker."""

    async def answer(request: Request) -> Response:
        return plain_json(*await explained(explain, request.path_params["uuid"]))

    return {"/api/v1/explain/{uuid:path}": answer}


async def explained(
    explain: Callable[[str], Explanation], uuid: str
) -> tuple[Explanation | Problem, int, dict[str, str]]:
    """Return why a task is where it is, or why that is unknown; with status and headers of the answer."""
    if not 0 < len(uuid) <= MAX_ID_LENGTH:
        return Problem(f"the id of a task has 1 to {MAX_ID_LENGTH} characters"), 400, {}
    try:
        explanation = await asyncio.wait_for(_in_thread(lambda: explain(uuid)), MAX_ANSWER_SECONDS)
    except AmbiguousIdError as error:
        return Problem(str(error), (), error.uuids), 300, {}
    except BusyError as error:
        return Problem(str(error)), 429, {"Retry-After": str(error.seconds)}
    except TimeoutError:
        return Problem(f"no answer of the broker in {MAX_ANSWER_SECONDS:g} s"), 504, {}
    return explanation, 200, {}


async def _in_thread(function: Callable[[], Explanation]) -> Explanation:
    """Return the result of a function that runs in a thread, which does not delay the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Explanation] = loop.create_future()

    def finish(set_: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_(value)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = future.set_result, function()
        except Exception as error:  # noqa: BLE001  it is raised again where the answer is awaited
            outcome = future.set_exception, error
        with suppress(RuntimeError):  # the server has stopped
            loop.call_soon_threadsafe(finish, *outcome)

    threading.Thread(target=run, name="explain", daemon=True).start()
    return await future
