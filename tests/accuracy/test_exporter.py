"""An exporter that comes late, goes away, or cannot hear."""

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
    """Only what comes after is counted, each once; a task that was received before has no name."""
    late = scene.exporter
    scene.start(scene.make_worker(concurrency=2, worker_prefetch_multiplier=1))
    send_shuffled(scene, PLAIN)
    scene.await_ends()
    received, started = scene.total("RECEIVED"), scene.total("STARTED")
    scene.send("tasks.hold", "gate", times=10)
    scene.await_total(started + 2, "STARTED")
    scene.await_total(received + 4, "RECEIVED")  # two run, two wait in the worker, the others in the queue
    scene.await_flush()
    before = scene.ledger.counts_by_worker()
    scene.seen = lambda entries: nameless(entries - before, "tasks.hold", STARTED=2, SUCCESS=4)
    scene.is_introduced = lambda task: task != "tasks.hold"
    scene.start(late)
    scene.ledger.open_gate("gate")
    send_shuffled(scene, PLAIN)
    scene.await_ends()
    scene.holds()


def nameless(entries: Counter[Outcome], task: str, **transitions: int) -> Counter[Outcome]:
    """Have so many transitions of a task be those of an unknown one."""
    found = entries.copy()
    for state, count in transitions.items():
        named = Outcome(task, "celery", state, "worker@test")
        found[named] -= count
        found[named._replace(task=UNKNOWN)] += count
    return found


def test_restarted_with_a_state_file(scene: Scene) -> None:
    """Counters go on. RabbitMQ keeps the events meanwhile; on Redis what was lost is reported, within 5 %."""
    durable = ("--event-queue-durable",) if scene.broker.kind == "rabbitmq" else ()
    exporter = scene.make_exporter("--state-file", "state", *durable)
    scene.start(exporter, scene.make_worker(pool="threads", concurrency=4))
    run_meanwhile(scene, exporter.stop_cleanly, lambda: scene.start(exporter))
    if durable:
        scene.holds()
    else:
        scene.holds_what_came()


def test_cut_off_for_a_while(scene: Scene) -> None:
    """What was lost meanwhile is reported, within 5 %, and nothing is counted twice."""
    port = scene.broker.server.port
    with Proxy(port) as proxy:
        scene.start(
            scene.make_exporter(url=scene.broker.url.replace(f":{port}", f":{proxy.port}")),
            scene.make_worker(pool="threads", concurrency=4),
        )
        run_meanwhile(scene, proxy.refuse, proxy.forward)
        scene.holds_what_came()


@on_redis
def test_frozen_and_cut_off_by_redis(scene: Scene) -> None:
    """Redis gives a subscriber up that does not read; what it missed is reported, within 5 %."""
    admin = scene.broker.server.client()

    def freeze() -> None:
        scene.exporter.pause()
        # What happens at its output-buffer limit. To get there takes megabytes: sockets have buffers too.
        sockets = psutil.Process(scene.exporter.pid).net_connections()
        ours = {f"127.0.0.1:{socket.laddr.port}" for socket in sockets}
        for address in ours & {client["addr"] for client in admin.client_list()}:
            admin.client_kill(address)

    scene.start(scene.exporter, scene.make_worker(pool="threads", concurrency=4))
    run_meanwhile(scene, freeze, scene.exporter.resume)
    scene.holds_what_came()


def run_meanwhile(scene: Scene, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Have tasks run at some 100 a second, and the exporter not be there for about half of them.

    Half of them are sent when it is gone: a busy machine may run what was sent before while nobody looks.
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
