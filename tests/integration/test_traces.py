"""Traces: the spans of real workflows form the trees that their tasks have written down themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery, chain, chord, group
from celery.canvas import Signature
from harness.broker_marks import on_redis
from harness.events import publish_events, task_events
from harness.exporter import Exporter, run_cli
from harness.processes import side_by_side
from harness.servers import Prometheus
from harness.span_receiver import ReceivedSpan, SpanReceiver
from harness.waiting import ANSWER_TIMEOUT, eventually, until_equal
from harness.workers import Worker
from harness.workers import client as make_client
from harness.workflows import IDENTITIES, Identity, identities
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from celery_exporter.core.trace_ids import task_span_id, trace_id

#: Each function returns a workflow, made of signatures of tasks; and how often its tasks are executed.
SHAPES: dict[str, tuple[Callable[[Callable[..., Signature], Celery], Signature], int]] = {
    "chain": (lambda task, app: chain(task(), task(), task(), app=app), 3),
    "group": (lambda task, app: group(task(), task(), task(), app=app), 3),
    "chord": (lambda task, app: chord([task(), task()], task(), app=app), 3),
    "chord in chain": (
        lambda task, app: chain(task(), chord([task(), task()], task(), app=app), task(), app=app),
        5,
    ),
    "link": (lambda task, _: task().set(link=task()), 2),
    "errback": (lambda task, _: task("flow.fail").set(link_error=task()), 2),
    "replace": (lambda task, _: task("flow.replace"), 2),
    "spawn": (lambda task, _: task("flow.spawn"), 2),
}


@dataclass(frozen=True)
class Run:
    """What was sent on one broker, what the tasks have written by shape, and what two receivers got."""

    written: dict[str, list[Identity]]
    retried: str
    revoked: str
    expired: str
    receiver: SpanReceiver
    other: SpanReceiver
    second: Exporter  # sends to the other receiver


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def run(request, redis_server, tmp_path_factory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("traces")
    results = redis_server.clean().removesuffix("0") + "1"
    server = redis_server if request.param == "redis" else request.getfixturevalue("rabbit_server")
    url = server.clean()
    configuration = {"result_backend": results, "task_ignore_result": False, "include": ["harness.workflows"]}
    with SpanReceiver() as receiver, SpanReceiver() as other:
        exporter = Exporter(folder / "one", url, "--otlp-endpoint", receiver.url)
        variables = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{other.url}/as/it/is",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=s3cret",
            "OTEL_SERVICE_NAME": "shop",
        }
        second = Exporter(folder / "other", url, "--static-label", "env=test", environment=variables)
        environment = {IDENTITIES: str(folder / "identities")}
        worker = Worker(folder / "worker", url, "worker@box", environment=environment, **configuration)
        with side_by_side(exporter, second, worker), make_client(url, **configuration) as app:
            exporter.connected()
            second.connected()
            written = {shape: _written(app, shape, folder / "identities") for shape in SHAPES}
            special = _send_special(app)
            app.backend.result_consumer.subscribed_to.clear()  # results would unsubscribe after Redis ended
            count = sum(len({item.uuid for item in items}) for items in written.values()) + len(special)
            for each in (receiver, other):
                until_equal(lambda receiver=each: len(receiver.tasks()), count, 30)
            yield Run(written, *special, receiver, other, second)


def _written(app: Celery, shape: str, path: Path) -> list[Identity]:
    """Send a workflow, and return what its tasks have written."""
    make, executions = SHAPES[shape]
    before = len(identities(path))
    make(lambda name="flow.step": app.signature(name), app).apply_async()
    until_equal(lambda: len(identities(path)), before + executions, 30)
    return identities(path)[before:]


def _send_special(app: Celery) -> tuple[str, str, str]:
    """Send a task that is retried, one that is revoked and one that expires; return their ids."""
    revoked = str(uuid4())
    assert app.control.revoke(revoked, reply=True, timeout=ANSWER_TIMEOUT, limit=1)
    app.send_task("flow.step", task_id=revoked)
    # A worker holds the message until its eta. RabbitMQ drops a message that expires in the queue.
    expired = app.send_task("flow.step", expires=1, countdown=2).id
    return app.send_task("flow.retry_once").id, revoked, expired


def tree(receiver: SpanReceiver) -> dict[str, tuple[str, str | None, str]]:
    """Return name, parent and trace of each task by its uuid. A parent must be a span of the same trace."""
    tasks = receiver.tasks()
    by_id = {span.id: span for span in tasks.values()}
    parents = {uuid: by_id[span.parent] if span.parent else None for uuid, span in tasks.items()}
    assert all(parent is None or parent.trace == tasks[uuid].trace for uuid, parent in parents.items())
    return {
        uuid: (span.name, parent and parent.uuid, span.trace)
        for (uuid, span), parent in zip(tasks.items(), parents.values(), strict=True)
    }


def written_tree(items: list[Identity]) -> dict[str, tuple[str, str | None, str]]:
    """Return the same of what tasks have written. A replacement names itself as its parent."""
    result: dict[str, tuple[str, str | None, str]] = {}
    for item in items:
        parent = result[item.uuid][1] if item.parent == item.uuid else item.parent
        result[item.uuid] = (item.name, parent, trace_id(item.root or "").hex())
    return result


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tree_of_a_workflow_has_the_edges_that_its_tasks_have_written(run, shape):
    expected = written_tree(run.written[shape])
    got = tree(run.receiver)
    assert {uuid: got[uuid] for uuid in expected} == expected


def test_what_the_documentation_says_of_shapes(run):
    """See docs/how-to/traces.md."""
    edges = {shape: written_tree(items) for shape, items in run.written.items()}
    traces = {shape: {trace for _, _, trace in tasks.values()} for shape, tasks in edges.items()}
    assert {shape: len(found) for shape, found in traces.items()} == {
        **dict.fromkeys(SHAPES, 1),
        "group": 3,  # members of a bare group are roots
        "chord": 2,  # its body hangs on the member that ended last
    }
    assert len(edges["replace"]) == 1
    ((_, parent, _),) = [task for task in edges["chord"].values() if task[1] is not None]
    assert parent in edges["chord"]


def test_every_attempt_belongs_to_the_span_of_its_task(run):
    tasks = run.receiver.tasks()
    for span in run.receiver.spans:
        if span.is_attempt:
            task = tasks[span.uuid]
            assert (span.parent, span.trace) == (task.id, task.trace)
            assert span.start <= span.end <= task.end
            # A worker may receive a message before the client sends the event task-sent. The span of a
            # retried task does not begin earlier by that.
            assert task.start <= span.start or span.uuid == run.retried
            assert all(span.start <= at <= span.end for at in span.events.values())
            assert (span.kind, task.kind) == (Span.SPAN_KIND_CONSUMER, Span.SPAN_KIND_PRODUCER)


def test_an_attempt_shows_where_and_when_it_was_executed(run):
    (uuid, *_) = written_tree(run.written["chain"])
    (attempt,) = run.receiver.attempts(uuid)
    assert attempt.name == "process celery"
    assert list(attempt.events) == ["received", "started"]
    assert attempt.start <= attempt.events["received"] <= attempt.events["started"] < attempt.end
    assert attempt.attributes["messaging.client.id"] == "worker@box"
    assert attempt.state == "SUCCESS"
    assert attempt.status == Status.STATUS_CODE_UNSET


def test_a_retried_task_has_a_span_for_each_attempt(run):
    first, second = run.receiver.attempts(run.retried)
    assert [(span.state, span.attributes["celery.retries"]) for span in (first, second)] == [
        ("RETRY", 0),
        ("SUCCESS", 1),
    ]
    assert first.attributes["exception.type"] == "OSError"
    assert "started" in first.events.keys() & second.events.keys()
    task = run.receiver.tasks()[run.retried]
    assert (task.end, task.parent, task.state) == (second.end, "", "SUCCESS")
    assert task.start < second.start


def test_a_failed_task_has_the_class_of_its_exception_and_not_its_text(run):
    (failed,) = (item for item in run.written["errback"] if item.name == "flow.fail")
    for span in (run.receiver.tasks()[failed.uuid], *run.receiver.attempts(failed.uuid)):
        assert (span.state, span.status) == ("FAILURE", Status.STATUS_CODE_ERROR)
        assert span.attributes["error.type"] == span.attributes["exception.type"] == "ValueError"
        assert "secret" not in str(span)


@pytest.mark.parametrize("kind", ["revoked", "expired"])
def test_a_task_that_never_ran_has_a_span(run, kind):
    uuid = getattr(run, kind)
    task = run.receiver.tasks()[uuid]
    (attempt,) = run.receiver.attempts(uuid)
    assert task.state == attempt.state == "REVOKED"
    assert task.status == Status.STATUS_CODE_UNSET
    assert "started" not in attempt.events
    assert ("celery.eta" in attempt.attributes) == (kind == "expired")


def test_two_exporters_send_the_same_spans(run):
    def key(span: ReceivedSpan) -> tuple[object, ...]:
        return span.trace, span.id, span.parent, span.name, span.start, span.end, span.state

    assert {*map(key, run.receiver.spans)} == {*map(key, run.other.spans)}


def test_variables_of_opentelemetry_are_applied(run):
    assert {span.resource["service.name"] for span in run.receiver.spans} == {"celery"}
    for request in run.other.requests:
        assert request.path == "/as/it/is"
        assert request.headers["content-encoding"] == "gzip"
        assert request.headers["api-key"] == "s3cret"
    for span in run.other.spans:
        assert span.resource == {"service.name": "shop", "env": "test"}
    assert {request.path for request in run.receiver.requests} == {"/v1/traces"}


def test_headers_are_secrets(run):
    pages = [run.second.get(path).text for path in ("/", "/metrics", "/api/v1/status")]
    assert not [text for text in (*pages, run.second.text()) if "s3cret" in text]


@on_redis
def test_a_task_over_a_restart_has_a_span_of_what_is_known(running, exporter, broker, tmp_path):
    """The state file has no root, parent and times of an attempt."""
    state = ("--state-file", str(tmp_path / "state"))
    sent, received, *later = task_events(2)
    ids = {"root_id": "task-1", "parent_id": "task-1"}
    with SpanReceiver() as receiver:
        app = running(exporter(*state, "--otlp-endpoint", receiver.url)).connected()
        publish_events(broker.url, sent | ids, received | ids)
        until_equal(lambda: app.total("celery_tasks_total", state="RECEIVED"), 1)
        app.stop_cleanly()
        assert receiver.spans == []
        app = running(exporter(*state, "--otlp-endpoint", receiver.url)).connected()
        publish_events(broker.url, *later)
        eventually(receiver.tasks)
        task, (attempt,) = receiver.tasks()["task-2"], receiver.attempts("task-2")
    assert (task.id, attempt.parent) == (task_span_id("task-2").hex(), task.id)
    assert (task.trace, task.parent) == (trace_id("task-2").hex(), "")
    assert task.start == pytest.approx(later[0]["timestamp"])
    assert list(attempt.events) == ["started"]


@on_redis
def test_the_last_spans_are_sent_at_the_end(running, exporter, broker):
    with SpanReceiver() as receiver:
        options = ("--otlp-endpoint", receiver.url, "--sink-flush-interval", "60")
        app = running(exporter(*options)).connected()
        publish_events(broker.url, *task_events(1))
        until_equal(lambda: app.total("celery_tasks_total", state="SUCCESS"), 1)
        assert receiver.spans == []
        app.stop_cleanly()
        assert set(receiver.tasks()) == {"task-1"}


@on_redis
def test_exemplars_name_the_trace(running, exporter, broker, tmp_path):
    with SpanReceiver() as receiver:
        app = running(exporter("--otlp-endpoint", receiver.url, "--exemplars")).connected()
        prometheus = running(
            Prometheus(tmp_path / "prometheus", f"127.0.0.1:{app.port}", features="exemplar-storage")
        )
        eventually(lambda: prometheus.query("celery_broker_up == 1"), 15)
        root = str(uuid4())
        publish_events(broker.url, *(event | {"root_id": root} for event in task_events(1)))

        def labels() -> list[dict[str, str]]:
            exemplars = prometheus.exemplars('celery_task_runtime_seconds_bucket{task_name="made.up"}')
            return [item["labels"] for item in exemplars]

        until_equal(labels, [{"task_id": "task-1", "trace_id": trace_id(root).hex()}], 15)
        assert {span.trace for span in receiver.spans} == {trace_id(root).hex()}


def test_grpc_is_refused_at_the_start():
    command = run_cli(
        *("--broker-url", "redis://127.0.0.1:1/0", "--port", "0", "--otlp-endpoint", "http://127.0.0.1:4317"),
        environment={"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_HEADERS": "a=s3cret"},
    )
    assert command.returncode == 2
    assert command.stderr.count("\n") == 1
    assert "Set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf" in command.stderr
    assert "s3cret" not in command.stderr
