"""The pages of single tasks: a search, one task, and what is shown if there is none."""

from __future__ import annotations

import asyncio
from html import escape
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from harness import clusters, statuses
from harness.statuses import HOSTILE_NAMES, no_snapshot
from msgspec.structs import replace

from celery_exporter.core.message_location import MessageLocation
from celery_exporter.core.task_info import OPEN_STATE_NAMES, STATE_NAMES, TaskInfo
from celery_exporter.metrics.exposition.series_tracker import SeriesTracker
from celery_exporter.metrics.exposition.text import Exposition
from celery_exporter.monitor import task_finder
from celery_exporter.status.columns import UNKNOWN
from celery_exporter.status.explain import NEVER_SEEN
from celery_exporter.status.explanation import BusyError, Explanation
from celery_exporter.status.task_columns import ATTEMPTS, FOUND, TASK_FACTS, WORKFLOW
from celery_exporter.web.app import build
from celery_exporter.web.pages import layout
from celery_exporter.web.render import MetricsPage, PageSource
from celery_exporter.web.status_routes import Sources
from celery_exporter.web.task_api import Tasks
from celery_exporter.web.task_query import LIMIT, PARAMETERS
from unit.web.pages.test_site import FOREIGN, Parsed

CLUSTER = clusters.cluster(4, 2)
FINDER = clusters.MadeUpTasks(CLUSTER)
TASK = FINDER.tasks[3]


def get(
    path: str, finder: Any = FINDER, status: Any = CLUSTER, query: str = "", **options: Any
) -> tuple[int, str, dict[str, str]]:
    """Return the status, the text and the headers of an answer."""
    tasks = finder and Tasks(finder, options.pop("trace_url", None))

    async def request() -> list[dict[str, Any]]:
        page = MetricsPage(lambda: [PageSource(no_snapshot, Exposition([]), SeriesTracker(0.0, 0.0))])
        app = build(
            page,
            lambda: True,
            str,
            sources=Sources(lambda: status, clusters.charts),
            tasks=tasks,
            **options,
        )
        messages: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": []}
        await app(
            {**scope, "raw_path": b"/task/x" if path.startswith("/task/") else path.encode()}, None, send
        )
        return messages

    start, *bodies = asyncio.run(request())
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], b"".join(body["body"] for body in bodies).decode(), headers


# -- a search -----------------------------------------------------------------------------------------------


def test_tasks_are_listed_the_newest_first_and_pages_follow_each_other():
    uuids, query = [], ""
    while True:
        code, text, _ = get("/tasks", query=query)
        assert code == 200
        parsed = Parsed(text)
        uuids += parsed.column("tasks", "Id")
        older = [attributes["href"] for tag, attributes in parsed.elements if attributes.get("id") == "older"]
        if not older:
            break
        query = urlsplit(older[0] or "").query
    assert uuids == [task.uuid for task in FINDER.tasks]
    assert len(uuids) > 2 * LIMIT
    assert ">newest tasks</a>" in text


def test_the_form_has_what_was_searched():
    code, text, _ = get("/tasks", query="name=x%26%22y&state=failure&until=1h&nosuch=1")
    assert code == 200
    parsed = Parsed(text)
    values = {
        attributes.get("name"): attributes.get("value")
        for tag, attributes in parsed.elements
        if tag == "input"
    }
    assert (values["name"], values["until"], values["worker"]) == ('x&"y', "1h", "")
    selected = [attributes["value"] for tag, attributes in parsed.elements if "selected" in attributes]
    assert selected == ["FAILURE"]
    assert ("details", {"open": None}) in parsed.elements, "a field in it has a value"
    assert "nosuch" not in text
    names = {attributes.get("name") for tag, attributes in parsed.elements if tag in {"input", "select"}}
    assert names - {"id"} == PARAMETERS.keys() - {"limit", "cursor"}


def test_several_states_stay_chosen():
    parsed = Parsed(get("/tasks", query="state=FAILURE,RETRY")[1])
    options = [
        attributes["value"]
        for tag, attributes in parsed.elements
        if tag == "option" and "selected" in attributes
    ]
    assert options == ["FAILURE,RETRY"]
    assert set(parsed.column("tasks", "State")) == {"FAILURE", "RETRY"}


@pytest.mark.parametrize("query", ["state=nosuch", "since=yesterday", "min_runtime=x", "limit=0", "cursor=x"])
def test_a_bad_parameter_is_an_error_on_the_page(query):
    code, text, _ = get("/tasks", query=query)
    assert code == 400
    assert 'role="alert"' in text
    assert 'name="exception"' in text, "the form"
    assert Parsed(text).tables == {}


def test_an_incomplete_search_says_so():
    class Finder(clusters.MadeUpTasks):
        def search(self, *arguments: Any) -> Any:
            return replace(super().search(*arguments), is_complete=False)

    assert "more tasks than were searched" in get("/tasks", Finder(CLUSTER))[1]
    assert "more tasks than were searched" not in get("/tasks")[1]


# -- one task ----------------------------------------------------------------------------------------------


def test_a_task_is_shown_with_its_attempts_and_workflow():
    code, text, _ = get(f"/task/{TASK.uuid}")
    assert code == 200
    parsed = Parsed(text)
    assert parsed.column("attempts", "Attempt") == ["0", "1"]
    assert parsed.column("attempts", "State") == ["RETRY", TASK.state]
    assert f"<h1>{TASK.task_name}</h1>" in text
    links = {attributes.get("href") for tag, attributes in parsed.elements if tag == "a"}
    worker, queue = (TASK.worker or "").replace("@", "%40"), TASK.queue_name
    assert {f"../tasks?name={TASK.task_name}", f"../workers/{worker}", f"../queues/{queue}"} <= links


def test_a_task_that_was_not_seen_since_a_restart_has_the_time_of_the_start():
    """On its own page, in its workflow and in lists; other tasks have no such column."""
    title, started = "Nothing seen since", 1_790_000_000.0
    unseen = clusters.MadeUpTasks(CLUSTER, started=started)
    task = next(task for task in unseen.tasks if task.unseen_since == started)
    for path, table in (("/tasks", "tasks"), (f"/task/{task.uuid}", "workflow")):
        code, text, _ = get(path, unseen)
        parsed = Parsed(text)
        times = [time for time in parsed.column(table, f"{title} UTC") if time != UNKNOWN]
        states = [state for state in parsed.column(table, "State") if state in OPEN_STATE_NAMES]
        assert (code, {*times}, len(times)) == (200, {"09-21 14:13:20"}, len(states))
        assert title not in get(path)[1]
    assert f"<dt>{title} " in text


def workflow_of(finder: Any, task: TaskInfo) -> list[tuple[str | None, str | None, str]]:
    """Return how deep each task of the tree is, whether it is marked, and its id."""
    parsed = Parsed(get(f"/task/{task.uuid}", finder)[1])
    rows = [attributes for tag, attributes in parsed.elements if tag == "tr" and "data-depth" in attributes]
    pairs = zip(rows, parsed.column("workflow", "Id"), strict=True)
    return [(row["data-depth"], row.get("aria-current"), uuid) for row, uuid in pairs]


def test_the_workflow_is_a_tree_in_which_the_task_is_marked():
    ids = [task.uuid for task in FINDER.tasks[:4]][::-1]
    assert workflow_of(FINDER, FINDER.tasks[1]) == [
        ("0", None, ids[0]), ("1", None, ids[1]), ("2", None, ids[3]), ("1", "true", ids[2]),
    ]  # fmt: skip


def test_a_task_without_a_workflow_shows_none():
    finder = clusters.MadeUpTasks(CLUSTER, count=0)
    finder.add(replace(TASK, root_id=None, parent_id=None))
    text = get(f"/task/{TASK.uuid}", finder)[1]
    assert '<div class="tree" hidden>' in text
    assert '<div class="tree">' in get(f"/task/{TASK.uuid}")[1]


def test_a_workflow_that_is_cut_off_says_so(monkeypatch):
    finder = clusters.MadeUpTasks(CLUSTER)
    url = f"../tasks?root={TASK.root_id}"
    assert "more tasks than these" not in get(f"/task/{TASK.uuid}", finder)[1]
    monkeypatch.setattr(task_finder, "MAX_RELATED", 2)
    text = get(f"/task/{TASK.uuid}", finder)[1]
    assert "more tasks than these 3, the newest ones" in text, "two, and the task itself"
    assert f'<a href="{url}">Search for all of them</a>' in text


def test_the_sender_of_a_task_is_linked_by_the_beginning_of_its_id():
    text = get(f"/task/{TASK.uuid}")[1]
    assert f'<a href="../task/{TASK.uuid}">{TASK.uuid[:8]}</a>' in text


def test_times_on_the_page_of_a_task_have_milliseconds():
    attempt = replace(TASK.attempts[0], sent=1.0, eta=1.25, received=1.0015, started=1.9999999, ended=2.0)
    finder = clusters.MadeUpTasks(CLUSTER, count=0)
    finder.add(replace(TASK, first_sent=1.0, attempts=[attempt]))
    parsed = Parsed(get(f"/task/{TASK.uuid}", finder)[1])
    times = [parsed.column("attempts", title)[0] for title in ("Sent UTC", "Due UTC", "Received UTC")]
    assert times == ["01-01 00:00:01.000", "01-01 00:00:01.250", "00:00:01.001"]
    times = [parsed.column("attempts", title)[0] for title in ("Started UTC", "Ended UTC")]
    assert times == ["00:00:02.000", "00:00:02.000"]
    titles = [attributes["title"] for tag, attributes in parsed.elements if tag == "time"]
    assert "1970-01-01 00:00:01.001 UTC" in titles


def test_the_trace_of_a_task_is_linked():
    text = get(f"/task/{TASK.uuid}", trace_url="https://tempo/{trace_id}?a&b")[1]
    links = [attributes.get("href") or "" for tag, attributes in Parsed(text).elements if tag == "a"]
    assert [link for link in links if link.startswith("https://tempo/") and link.endswith("?a&b")]
    assert "tempo" not in get(f"/task/{TASK.uuid}")[1]


@pytest.mark.parametrize("path", ["/tasks", f"/task/{TASK.uuid}"])
def test_why_the_history_file_was_not_searched_is_shown(path):
    finder = clusters.MadeUpTasks(CLUSTER)
    assert "cannot be read" not in get(path, finder)[1]
    finder.close("<disk>")
    assert "cannot be read: &lt;disk&gt;" in get(path, finder)[1]


def explained(name: str) -> Explanation:
    location = MessageLocation("absent")
    return Explanation(name, 1.0, "waiting", f"It waits: {name}", [name, "seen"], [name], location)


@pytest.mark.parametrize("name", ["plain", *HOSTILE_NAMES])
def test_a_person_asks_why_a_task_is_where_it_is(name):
    asked: list[str] = []

    def explain(uuid: str) -> Explanation:
        asked.append(uuid)
        return explained(name)

    text = get(f"/task/{TASK.uuid}", explain=explain)[1]
    assert 'href="?explain=1"' in text
    assert asked == [], "the broker is looked at only when a person asks"
    code, text, _ = get(f"/task/{TASK.uuid}", query="explain=1", explain=explain)
    assert (code, asked) == (200, [TASK.uuid])
    parsed = Parsed(text)
    assert FOREIGN.isdisjoint(tag for tag, _ in parsed.elements)
    assert f"It waits: {escape(name)}" in text
    assert "?explain=1" not in get(f"/task/{TASK.uuid}")[1], "no explainer"


def test_an_unknown_task_is_explained_too():
    text = get("/task/nosuch", query="explain=1", explain=explained)[1]
    assert "It waits: nosuch" in text


def test_why_there_is_no_explanation_is_shown():
    def busy(_: str) -> Explanation:
        raise BusyError(3)

    code, text, _ = get(f"/task/{TASK.uuid}", query="explain=1", explain=busy)
    assert (code, "ask again in 3 s" in text) == (200, True)


def test_the_beginning_of_an_id_is_enough():
    assert get(f"/task/{TASK.uuid[:8]}")[0] == 200


def test_ids_that_begin_alike_are_listed():
    twins = clusters.MadeUpTasks(CLUSTER, count=0)
    twins.add(*(replace(TASK, uuid=f"twin/{number}") for number in range(2)))
    code, text, _ = get("/task/twin", twins)
    assert code == 300
    links = {attributes.get("href") for tag, attributes in Parsed(text).elements if tag == "a"}
    assert {"../task/twin%2F0", "../task/twin%2F1"} <= links


def test_an_unknown_id_is_explained():
    code, text, _ = get("/task/nosuch")
    assert code == 404
    assert all(hint in text for hint in NEVER_SEEN)


def test_the_form_for_an_id_leads_to_the_page_of_the_task():
    code, _, headers = get("/task", query="id=+a%2Fb+")
    assert (code, headers["location"]) == (303, "task/a%2Fb")
    assert get("/task")[2]["location"] == "tasks"
    assert get("/task", query="id=..")[2]["location"] == "tasks"


def test_without_a_history_pages_say_why_there_are_no_tasks():
    for path in ("/tasks", "/task/x"):
        code, text, _ = get(path, None)
        assert (code, "--no-history" in text) == (404, True)


# -- hostile texts -----------------------------------------------------------------------------------------


def hostile(name: str) -> TaskInfo:
    attempt = replace(TASK.attempts[1], queue_name=name, worker=name, exception=name, reason=name)
    return replace(
        TASK, uuid=name, task_name=name, queue_name=name, worker=name, client=name, root_id=name,
        parent_id=name, exception=name, reason=name, attempts=[attempt], args=name, kwargs=name, result=name,
    )  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("path", ["/tasks", "/task/{name}", "/task/{name}2"])
def test_texts_from_events_and_requests_are_escaped(path, name):
    finder = clusters.MadeUpTasks(CLUSTER, count=0)
    finder.add(hostile(name), replace(hostile(name), uuid="other", root_id=name))
    status = statuses.status(
        tasks=[statuses.task(name)], workers=[statuses.worker(name)], queues=[statuses.queue(name)]
    )
    query = "&".join(f"{key}=" for key in PARAMETERS)
    code, text, headers = get(path.format(name=name) if "{name}" in path else path, finder, status, query)
    assert code in {200, 404}
    assert headers["content-security-policy"] == layout.POLICY
    parsed = Parsed(text)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == len(layout.SCRIPTS)
    assert FOREIGN.isdisjoint(tags)
    assert not any(key.startswith("on") for _, attributes in parsed.elements for key in attributes)


@pytest.mark.parametrize("text", HOSTILE_NAMES)
def test_parameters_are_escaped(text):
    for key in ("name", "state", "cursor", "since"):
        parsed = Parsed(get("/tasks", query=f"{key}={quote(text)}")[1])
        assert FOREIGN.isdisjoint(tag for tag, _ in parsed.elements)


def test_columns_name_existing_fields():
    for table, row in ((FOUND, TASK), (WORKFLOW, TASK), (ATTEMPTS, TASK.attempts[0])):
        assert {column.field for column in table.columns} <= set(row.__struct_fields__)
    assert {column.field.removeprefix("task.") for column in TASK_FACTS} <= set(TASK.__struct_fields__)
    assert {*clusters.STATES} <= {*STATE_NAMES}
