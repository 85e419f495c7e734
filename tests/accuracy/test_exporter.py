"""An exporter that starts late, restarts, or cannot receive events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import psutil
from harness.broker_marks import on_redis
from harness.outcomes import Outcome
from harness.proxy import Proxy

from .jobs import PLAIN, send_shuffled
from .scene import Scene, size
from .sums import UNKNOWN


def test_started_in_the_middle(scene: Scene) -> None:
    """Only later events are counted. A task that was received before has no name."""
    late = scene.exporter
    scene.start(scene.make_worker(concurrency=2, worker_prefetch_multiplier=1))
    send_shuffled(scene, PLAIN)
    scene.await_ends()
    received, started = scene.total("RECEIVED"), scene.total("STARTED")
    scene.send("tasks.hold", "gate", times=10)
    scene.await_total(started + 2, "STARTED")
    scene.await_total(received + 4, "RECEIVED")  # two run, two are prefetched, the others are in the queue
    scene.await_flush()
    before = scene.outcomes.counts_by_worker()
    scene.expected = lambda entries: without_name(entries - before, "tasks.hold", STARTED=2, SUCCESS=4)
    scene.has_sent_event = lambda task: task != "tasks.hold"
    scene.start(late)
    scene.outcomes.open_gate("gate")
    send_shuffled(scene, PLAIN)
    scene.await_ends()
    scene.assert_exact()


def without_name(entries: Counter[Outcome], task: str, **transitions: int) -> Counter[Outcome]:
    """Return the entries with some transitions of a task moved to the name `unknown`."""
    moved = entries.copy()
    for state, count in transitions.items():
        named = Outcome(task, "celery", state, "worker@test")
        moved[named] -= count
        moved[named._replace(task=UNKNOWN)] += count
    return moved


def test_restarted_with_a_state_file(scene: Scene) -> None:
    """Counters continue. RabbitMQ keeps events; on Redis, losses are reported within 5 %."""
    durable = ("--event-queue-durable",) if scene.broker.kind == "rabbitmq" else ()
    exporter = scene.make_exporter("--state-file", "state", *durable)
    scene.start(exporter, scene.make_worker(pool="threads", concurrency=4))
    run_meanwhile(scene, exporter.stop_cleanly, lambda: scene.start(exporter))
    if durable:
        scene.assert_exact()
    else:
        scene.assert_losses_reported()


def test_cut_off_for_a_while(scene: Scene) -> None:
    """Events that are lost meanwhile are reported within 5 %, and no event is counted twice."""
    port = scene.broker.server.port
    with Proxy(port) as proxy:
        scene.start(
            scene.make_exporter(url=scene.broker.url.replace(f":{port}", f":{proxy.port}")),
            scene.make_worker(pool="threads", concurrency=4),
        )
        run_meanwhile(scene, proxy.refuse, proxy.forward)
        scene.assert_losses_reported()


@on_redis
def test_frozen_and_cut_off_by_redis(scene: Scene) -> None:
    """Redis disconnects a subscriber that does not read; missed events are reported within 5 %."""
    admin = scene.broker.server.client()

    def freeze() -> None:
        scene.exporter.pause()
        # Redis does the same at its output-buffer limit, which takes megabytes to reach because of socket
        # buffers.
        sockets = psutil.Process(scene.exporter.pid).net_connections()
        addresses = {f"127.0.0.1:{socket.laddr.port}" for socket in sockets}
        for address in addresses & {client["addr"] for client in admin.client_list()}:
            admin.client_kill(address)

    scene.start(scene.exporter, scene.make_worker(pool="threads", concurrency=4))
    run_meanwhile(scene, freeze, scene.exporter.resume)
    scene.assert_losses_reported()


def run_meanwhile(scene: Scene, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Run about 100 tasks a second, and interrupt the exporter for about half of them.

    Half of the tasks are sent after `begin`, since a slow machine may run earlier ones before the
    interruption.
    """
    count = size(600, 6_000)
    scene.send("tasks.succeed", 0.02, times=count // 2)
    scene.await_total(count // 4, "SUCCESS")
    begin()
    scene.send("tasks.succeed", 0.02, times=count // 2)
    scene.await_total(count * 3 // 4, "SUCCESS")
    end()
    scene.exporter.connected()
    scene.await_ends()
