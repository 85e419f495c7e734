"""The queue of a message, by the fields of `task-sent` and the bindings that workers report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_exporter.core import routing
from celery_exporter.core.routing import Binding, Route, Routes, matches
from celery_exporter.core.workers import WorkerInfo

from .cluster_driver import ClusterDriver, heartbeat, received, sent, started, succeeded

DELAY = "celery_delayed_27"
BITS = "0." * 27 + "1."
BINDINGS = [
    Binding("celery", "celery", "direct", "celery"),
    Binding("videos", "media", "direct", "video"),
    Binding("images", "media", "direct", "image"),
    Binding("feeds", "topics", "topic", "feed.#"),
    Binding("sport", "topics", "topic", "feed.*.sport"),
    Binding("mails", "mails", "topic", "mails"),
    Binding("bcast.1", "all", "fanout", "celery", "all"),
    Binding("bcast.2", "all", "fanout", "celery", "all"),
    Binding("left", "both", "fanout", ""),
    Binding("right", "both", "fanout", ""),
    Binding("hashed", "odd", "x-consistent-hash", "1"),
    Binding("errors", "logs", "topic", "*.error"),
    Binding("audits", "logs", "topic", "#.audit"),
    Binding("papers", "press", "fanout", "today"),
]
UUID = "005a4369-8b0e-4f46-8ad5-0b5bdfb0fab8"


@pytest.mark.parametrize(
    ("fields", "route"),
    [
        (("celery", None, None), Route("celery")),  # no exchange in the event
        (("celery", "", "celery"), Route("celery")),
        (("celery", "", "videos"), Route("videos")),
        ((None, "", "videos"), Route("videos")),
        (("celery", "media", "video"), Route("videos")),
        ((None, "media", "image"), Route("images")),
        (("celery", "media", "nothing"), Route(None)),
        (("celery", "unbound", "of"), Route(None)),  # the queue is bound to its own exchange only
        (("elsewhere", "unbound", "of"), Route("elsewhere")),  # nothing contradicts it
        (("tasks", "tasks", "tasks"), Route("tasks")),
        (("celery", "topics", "feed.a"), Route("feeds")),
        (("sport", "topics", "feed.a.sport"), Route("sport", copied=True)),
        (("celery", "topics", "feed.a.sport"), Route(None, copied=True)),
        (("hashed", "odd", "42"), Route("hashed")),
        ((f"bcast.{UUID}", "all", "celery"), Route("all", copied=True)),
        ((f"bcast.{UUID}", "unbound", "celery"), Route("unbound", copied=True)),
        (("left", "both", ""), Route("both", copied=True)),
        ((None, DELAY, BITS + "mails"), Route("mails")),
        ((None, f"prefix_{DELAY}", BITS + "mails"), Route("mails")),
        ((None, DELAY, BITS + "feed.a"), Route("feeds")),
        (("celery", "logs", "db.error"), Route("errors")),
        (("celery", "logs", "db.users.audit"), Route("audits")),
        ((None, DELAY, BITS + "db.error"), Route("errors")),
        ((None, DELAY, BITS + "today"), Route("papers", copied=True)),
        ((None, DELAY, BITS + "celery"), Route(None)),  # Celery does not delay broadcasts
        (("celery", "media", None), Route("celery")),
        (("celery", None, "video"), Route("celery")),
        ((None, DELAY, BITS + "video"), Route(None)),  # delays need a topic exchange
        ((None, DELAY, BITS + "unbound"), Route(None)),
        ((None, DELAY, "mails"), Route(None)),
    ],
)
def test_a_message_is_routed_by_the_bindings(fields, route):
    routes = Routes()
    routes.update(BINDINGS)
    assert routes.find(*fields) == route
    assert routes.find(*fields) == route, "from the cache"


def test_an_update_replaces_the_bindings_of_its_queues_only():
    routes = Routes()
    routes.update(BINDINGS)
    assert routes.find("celery", "media", "video").queue == "videos"
    routes.update([Binding("videos", "media", "direct", "film")])
    assert routes.find("celery", "media", "video").queue is None
    assert routes.find("celery", "media", "film").queue == "videos"
    assert routes.find("celery", "media", "image").queue == "images"


def test_a_currently_consumed_queue_takes_precedence():
    routes = Routes()
    routes.update([Binding("old", "media", "direct", "video")])
    routes.update([Binding("new", "media", "direct", "video")])
    assert routes.find("celery", "media", "video") == Route("new")


@pytest.mark.parametrize(
    ("pattern", "routing_key", "expected"),
    [
        ("a", "a", True),
        ("a", "a.b", False),
        ("*", "a", True),
        ("*", "a.b", False),
        ("#", "", True),
        ("#", "a.b.c", True),
        ("a.#", "a", True),
        ("a.#", "ab", False),
        ("#.z", "a.z.b.z", True),
        ("#.a.*.z", "a.a.b.z", True),
        ("a.*.#.z", "a.z", False),
        ("#.#", "", True),
    ],
)
def test_topic_patterns(pattern, routing_key, expected):
    assert matches(pattern.split("."), routing_key.split(".") if routing_key else []) is expected


words = st.lists(st.sampled_from(["a", "b"]), max_size=6)


@given(st.lists(st.sampled_from(["a", "b", "*", "#"]), max_size=6), words)
def test_topic_patterns_match_as_rabbitmq_says(pattern, routing_key):
    def expected(pattern, words):
        if not pattern:
            return not words
        if pattern[0] == "#":
            return any(expected(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
        return bool(words) and pattern[0] in ("*", words[0]) and expected(pattern[1:], words[1:])

    assert matches(pattern, routing_key) is expected(pattern, routing_key)


def test_bindings_and_cached_routes_are_bounded(monkeypatch):
    monkeypatch.setattr(routing, "MAX_BINDINGS", 5)
    monkeypatch.setattr(routing, "MAX_ROUTES", 5)
    routes = Routes()
    routes.update(Binding(f"q{number}", "e", "direct", str(number)) for number in range(20))
    assert len(routes._by_queue) == 5
    for number in range(20):
        routes.find("celery", "e", str(number))
        assert len(routes._cache) <= 5


def test_patterns_and_words_beyond_the_limit_are_ignored(monkeypatch):
    monkeypatch.setattr(routing, "MAX_PATTERNS", 3)
    routes = Routes()
    routes.update(Binding(f"q{number}", "e", "topic", f"#.{number}") for number in range(9))
    assert routes.find("q0", "e", "a.0").queue == "q0"
    assert routes.find("q8", "e", "a.8").queue == "q8"
    assert routes.find(None, "e", ".".join("a" * 200)).queue is None


# -- in the cluster --------------------------------------------------------------------------------------


def cluster_of(**infos: WorkerInfo) -> ClusterDriver:
    driver = ClusterDriver()
    driver.apply(*(heartbeat(f"{node}@h") for node in infos))
    driver.cluster.record_inspection({f"{node}@h": info for node, info in infos.items()}, driver.timestamp())
    return driver


def life(uuid="u1", host="w@h", **route):
    events = [received(uuid, host=host), started(uuid, host=host), succeeded(uuid, host=host)]
    return [sent(uuid, **route), *events]


VIDEOS = WorkerInfo(queues=("videos",), bindings=(BINDINGS[1],))
SEVERAL = WorkerInfo(queues=("videos", "celery"), bindings=(BINDINGS[0], BINDINGS[1]))
STATES = ("PENDING", "RECEIVED", "STARTED", "SUCCESS")


@pytest.mark.parametrize("position", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("info", "route", "queue"),
    [
        (SEVERAL, {"queue": "celery", "exchange": "media", "routing_key": "video"}, "videos"),
        (SEVERAL, {"queue": "celery", "exchange": "unbound", "routing_key": "of"}, "unknown"),
        (SEVERAL, {"queue": "celery", "exchange": "", "routing_key": "celery"}, "celery"),
        (VIDEOS, {"queue": None, "exchange": DELAY, "routing_key": BITS + "unbound"}, "videos"),
        (VIDEOS, {"queue": None}, "videos"),
    ],
)
def test_a_task_has_the_queue_of_its_message_in_any_order_of_events(info, route, queue, position):
    driver = cluster_of(w=info)
    message, *events = life(**route)
    events.insert(position, message)
    driver.apply(*events)
    driver.wait(2.5)
    assert driver.counts() == {("add", queue, state): 1 for state in STATES}
    assert driver.gauges() == {}
    assert driver.cluster.fallbacks["queue_name"] == (queue == "unknown" or route["queue"] is None)


def test_a_task_in_an_unknown_queue_is_pending_there_and_continues_in_the_queue_of_its_worker():
    driver = cluster_of(w=VIDEOS)
    message, *events = life(queue=None)
    driver.apply(message)
    assert driver.gauges() == {}
    driver.wait(2.5)
    assert driver.gauges() == {"PENDING": 1}
    driver.apply(*events)
    assert driver.counts() == {
        ("add", "unknown", "PENDING"): 1,
        **{("add", "videos", state): 1 for state in STATES[1:]},
    }


def test_without_the_queue_label_no_task_waits_for_its_queue():
    driver = ClusterDriver(labels=())
    driver.apply(sent(queue=None))
    assert driver.gauges() == {"PENDING": 1}


ALL = {"queue": f"bcast.{UUID}", "exchange": "all", "routing_key": "celery"}


@pytest.mark.parametrize("position", [0, 1, 3, 6])
@pytest.mark.parametrize("labels", [("queue_name",), ()])
def test_each_worker_that_receives_a_broadcast_has_its_own_copy(position, labels):
    driver = ClusterDriver(labels=labels)
    driver.apply(heartbeat("a@h"), heartbeat("b@h"))
    infos = {
        node: WorkerInfo(queues=(binding.queue,), bindings=(binding,))
        for node, binding in zip(("a@h", "b@h"), BINDINGS[6:8], strict=True)
    }
    driver.cluster.record_inspection(infos, driver.timestamp())
    (message, *first), (_, *second) = life(host="a@h", **ALL), life(host="b@h", **ALL)
    events = [event for pair in zip(first, second, strict=True) for event in pair]
    events.insert(position, message)
    driver.apply(*events)
    driver.wait(2.5)
    queue = "all" if labels else ""
    assert driver.counts() == {("add", queue, state): 1 if state == "PENDING" else 2 for state in STATES}
    assert driver.aggregate(queue=queue).redeliveries == 0
    assert driver.gauges() == {}
    assert "all" not in driver.cluster.queues
    driver.apply(received(at=9, host="a@h"), received(at=10, host="a@h"))
    assert driver.aggregate(queue=queue).redeliveries == 1, "the same worker, twice"


def test_without_task_sent_a_copy_has_the_name_of_the_broadcast():
    driver = cluster_of(a=WorkerInfo(queues=("bcast.1",), bindings=(BINDINGS[6],)))
    driver.apply(*life(host="a@h", **ALL)[1:])
    driver.wait(2.5)
    assert set(driver.counts()) == {("add", "all", state) for state in STATES[1:]}


# -- restarts of workers -------------------------------------------------------------------------------


@pytest.mark.parametrize("seen_by", ["heartbeat", "task"])
def test_tasks_of_a_restarted_worker_wait_for_its_answer(seen_by):
    driver = cluster_of(w=WorkerInfo(queues=("alpha",)))
    driver.apply(received("u0"), started("u0"))
    if seen_by == "heartbeat":
        driver.apply(heartbeat(kind="online", pid=2))
    assert driver.cluster.registry.uninspected.keys() == ({"w@h"} if seen_by == "heartbeat" else set())
    driver.apply(received(pid=2), started(pid=2), succeeded(pid=2))
    assert driver.cluster.registry.uninspected.keys() == {"w@h"}
    driver.wait(5)
    assert {queue for (_, queue, _) in driver.counts()} <= {"alpha", "unknown"}
    assert sum(driver.counts().values()) in (0, 2), "tasks of the previous process may be counted"
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("beta",))}, driver.timestamp())
    driver.wait(2.5)
    assert [driver.counts().get(("add", "beta", state)) for state in STATES[1:]].count(None) == 0


def test_an_answer_of_the_previous_process_does_not_count():
    driver = cluster_of(w=WorkerInfo(queues=("alpha",)))
    starts = {"w@h": driver.cluster.workers["w@h"].starts}
    driver.apply(heartbeat(kind="online", pid=2))
    driver.cluster.record_inspection({"w@h": WorkerInfo(queues=("alpha",))}, driver.timestamp(), starts)
    assert driver.cluster.registry.uninspected.keys() == {"w@h"}
    driver.apply(received(pid=2))
    driver.wait(2.5)
    assert driver.counts() == {}
    driver.wait(10)
    assert driver.counts() == {("add", "unknown", "RECEIVED"): 1}


@pytest.mark.parametrize("info", [WorkerInfo(queues=("alpha",)), WorkerInfo()])
def test_a_worker_that_does_not_answer_is_inspected_again_for_a_while(info):
    """Its first event comes before it replies to inspection."""
    driver = cluster_of(w=info)
    assert driver.cluster.registry.uninspected == {}
    driver.apply(heartbeat(kind="online", pid=2))
    for _ in range(3):
        driver.wait(3)
        driver.cluster.record_inspection(
            {}, driver.timestamp(), {"w@h": driver.cluster.workers["w@h"].starts}
        )
        assert driver.cluster.registry.uninspected.keys() == {"w@h"}
    driver.wait(3)
    assert driver.cluster.registry.uninspected == {}


# -- shadow names ----------------------------------------------------------------------------------------


def test_a_task_with_a_shadow_name_is_counted_under_the_name_that_was_sent():
    driver = cluster_of(w=WorkerInfo(queues=("q",), registered=("add",)))
    message, receipt, *rest = life()
    receipt["name"] = "my.shadow"
    driver.apply(message, receipt, *rest)
    driver.apply(received("u2", name="my.shadow"), started("u2"), succeeded("u2"))  # without task-sent
    driver.apply(
        sent("u3"),
        received("u3", name="my.shadow"),
        started("u3"),
        received("u3", retries=1, name="my.shadow"),
    )
    driver.wait(2.5)
    assert {name for name, _, _ in driver.counts()} == {"add"}
    assert driver.by_state() == {"PENDING": 2, "RECEIVED": 4, "STARTED": 3, "SUCCESS": 2}


@pytest.mark.parametrize("name", ["mul", "celery.accumulate"])
def test_a_replaced_task_has_no_shadow_name(name):
    driver = cluster_of(w=WorkerInfo(queues=("q",), registered=("add", "mul")))
    driver.apply(sent(), received(name=name))
    assert driver.cluster.label_sets.shadows == {}


def test_shadow_names_are_bounded(monkeypatch):
    monkeypatch.setattr("celery_exporter.core.label_sets.MAX_SHADOWS", 3)
    driver = cluster_of(w=WorkerInfo(queues=("q",), registered=("add",)))
    for number in range(9):
        driver.apply(sent(f"u{number}"), received(f"u{number}", name=f"shadow {number}"))
    assert len(driver.cluster.label_sets.shadows) == 3
    assert driver.counts() == {("add", "q", "PENDING"): 9, ("add", "q", "RECEIVED"): 9}
