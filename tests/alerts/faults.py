"""The faults of alerts/review.yml: what each one does to a real cluster.

A fault begins with a cluster that works. `Cluster.work` is called several times a second until the end of the
test. A fault replaces it if it changes the traffic.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.exporter import Exporter
from harness.processes import Process, free_port
from harness.servers import RabbitServer, RedisServer
from harness.waiting import eventually
from harness.workers import Beat, Worker, client

#: The default is 60 s. With heartbeats every 2 s, three of them are the minimum.
WORKER_TIMEOUT_SECONDS = "6"
UNCONSUMED = "unconsumed"
#: Of the task that beat sends and the exporter expects. The grace is a minute here.
PERIOD_SECONDS, GRACE_SECONDS = 2, 2
SCHEDULE = {"periodic": {"task": "tasks.succeed", "schedule": PERIOD_SECONDS}}
#: More than the threshold of CeleryHighQueueDepth.
MANY = 1_200


class Cluster:
    """A broker, workers, and an exporter. Its job has the name of the fault."""

    def __init__(self, folder: Path, name: str) -> None:
        fault = FAULTS[name]
        self.name, self.fault, self.folder = name, fault, folder
        self.job = name.replace(" ", "-")
        self.broker = fault.broker(folder / "broker")

    def processes(self) -> list[Process]:
        """Return what starts when the broker runs: the exporter first."""
        url, folder = self.broker.url, self.folder
        options = ("-Q", f"celery,{UNCONSUMED}", "--retry-interval", "1")
        options += ("--worker-timeout", WORKER_TIMEOUT_SECONDS, *self.fault.options)
        if self.fault.periodic:
            options += ("--config.file", str(self.expect()), "--update-interval", "1")
        names = ("a", "b")[: self.fault.workers]
        self.workers = [Worker(folder / name, url, f"{name}@box", concurrency=2) for name in names]
        self.exporter = Exporter(folder / "exporter", url, *options)
        self.beat = Beat(folder / "beat", url, beat_schedule=SCHEDULE if self.fault.periodic else {})
        self.client = client(url)
        return [self.exporter, *self.workers, *([self.beat] if self.fault.beat else [])]

    def expect(self) -> Path:
        """Write a configuration file that expects the task of beat, and return its path."""
        file = self.folder / "exporter.json"  # JSON is YAML
        entry = {"task": "tasks.succeed", "every": f"{PERIOD_SECONDS}s", "grace": f"{GRACE_SECONDS}s"}
        file.write_text(json.dumps({"expected": [entry]}))
        return file

    def healthy(self) -> bool:
        """Return whether the exporter has seen all of it."""
        samples = self.exporter.samples()
        beats = samples.total("celery_beat_up")
        return samples.total("celery_worker_up") == self.fault.workers and beats == self.fault.beat

    def close(self) -> None:
        """End the client, and workers that a fault has started."""
        self.client.close()
        self.beat.kill()
        for worker in self.workers:
            worker.kill()

    def send(self, task: str, *arguments: object, queue: str = "celery") -> None:
        self.client.send_task(f"tasks.{task}", arguments, queue=queue)

    def work(self) -> None:
        """Send tasks that succeed, unless beat does."""
        if not self.fault.periodic:
            self.send("succeed")


Begin = Callable[[Cluster], None]


def no_work() -> None:
    """Send nothing: a client would wait for the broker."""


def succeed(cluster: Cluster) -> None:
    """Send the tasks of a healthy cluster again."""
    del cluster.work


# -- nothing that should notify ------------------------------------------------------------------------


def do_nothing(cluster: Cluster) -> None: ...


def restart_workers(cluster: Cluster) -> None:
    for worker in cluster.workers:
        worker.stop()
        worker.start()
        eventually(lambda: worker.text().count(" ready.") == 2, 40)  # noqa: B023


def scale_to_zero(cluster: Cluster) -> None:
    cluster.work = no_work  # type: ignore[method-assign]
    eventually(lambda: cluster.exporter.total("celery_tasks_in_flight") == 0, 20)
    for worker in cluster.workers:
        worker.stop()


# -- kills and freezes ---------------------------------------------------------------------------------


def kill_worker(cluster: Cluster) -> None:
    cluster.workers[0].kill()


def kill_busy_worker(cluster: Cluster) -> None:
    """Kill the only one that runs a task; the other one has the rest of the work."""
    cluster.send("succeed", 600)
    eventually(lambda: cluster.exporter.total("celery_tasks_in_flight", state="STARTED") >= 1)
    samples = cluster.exporter.samples
    busy = eventually(
        lambda: [w for w in cluster.workers if samples().value("celery_worker_active_tasks", worker=w.name)],
        20,
    )
    busy[0].kill()


def kill_workers(cluster: Cluster) -> None:
    for worker in cluster.workers:
        worker.kill()


def kill_broker(cluster: Cluster) -> None:
    cluster.work = no_work  # type: ignore[method-assign]
    cluster.broker.kill()


def start_broker(cluster: Cluster) -> None:
    cluster.broker.start().wait_ready()
    succeed(cluster)


def kill_exporter(cluster: Cluster) -> None:
    cluster.exporter.kill()


def kill_beat(cluster: Cluster) -> None:
    cluster.beat.kill()


def remove_from_schedule(cluster: Cluster) -> None:
    """Replace beat by one whose schedule lacks the task. One of them replies at any time."""
    before, cluster.beat = cluster.beat, Beat(cluster.folder / "next-beat", cluster.broker.url).start()
    cluster.beat.wait_ready()
    before.stop()


def freeze_worker(cluster: Cluster) -> None:
    cluster.workers[0].pause()


def freeze_broker(cluster: Cluster) -> None:
    cluster.work = no_work  # type: ignore[method-assign]
    cluster.broker.pause()


def freeze_exporter(cluster: Cluster) -> None:
    cluster.exporter.pause()


def block_publishers(cluster: Cluster) -> None:
    assert isinstance(cluster.broker, RabbitServer)
    cluster.work = no_work  # type: ignore[method-assign]
    cluster.broker.control("set_vm_memory_high_watermark", "0.00000001")


def deny_queue_lengths(cluster: Cluster) -> None:
    assert isinstance(cluster.broker, RedisServer)
    cluster.broker.client().acl_setuser("default", enabled=True, commands=["-llen"])


# -- traffic -------------------------------------------------------------------------------------------


def flood(cluster: Cluster) -> None:
    for _ in range(MANY):
        cluster.send("succeed", 0.5)


def flood_unconsumed(cluster: Cluster) -> None:
    def work() -> None:
        cluster.send("succeed")
        cluster.send("succeed", queue=UNCONSUMED)

    for _ in range(MANY):
        cluster.send("succeed", queue=UNCONSUMED)
    cluster.work = work  # type: ignore[method-assign]


def slow(cluster: Cluster) -> None:
    """Send a task of 3 s, which is 1.5 minutes here, each 3 s: the pool has a free process."""
    ticks = iter(range(1_000_000))

    def work() -> None:
        if next(ticks) % 12 == 0:
            cluster.send("succeed", 3)

    cluster.work = work  # type: ignore[method-assign]


def hang(cluster: Cluster) -> None:
    cluster.send("succeed", 3_600)


def fail(cluster: Cluster) -> None:
    def work() -> None:
        cluster.send("succeed")
        cluster.send("fail_with_value_error")

    cluster.work = work  # type: ignore[method-assign]


def retry(cluster: Cluster) -> None:
    cluster.work = lambda: cluster.send("retry_once")  # type: ignore[method-assign]


def omit_task_events(cluster: Cluster) -> None:
    """Replace the worker by one without -E."""
    worker = Worker(cluster.folder / "quiet", cluster.broker.url, "quiet@box", events=False)
    cluster.workers.append(worker.start())
    worker.wait_ready()
    cluster.workers[0].stop()


@dataclass(frozen=True)
class Fault:
    """What it does to which cluster."""

    begin: Begin
    workers: int = 1
    beat: bool = False
    periodic: bool = False  # beat sends a task that the exporter expects
    end: Begin | None = None  # ends the cause; the alerts then end, too
    broker: type[RedisServer | RabbitServer] = RedisServer
    options: tuple[str, ...] = ()


FAULTS = {
    "nothing": Fault(do_nothing, workers=2, beat=True),
    "kill the broker": Fault(kill_broker, end=start_broker),
    "kill the exporter": Fault(kill_exporter),
    "kill all workers": Fault(kill_workers, workers=2),
    "half of the tasks fail": Fault(fail, end=succeed),
    "kill an idle worker": Fault(kill_worker, workers=2),
    "kill a busy worker": Fault(kill_busy_worker, workers=2),
    "kill the beat": Fault(kill_beat, beat=True, periodic=True),
    # The exporter detects it within 20 s, before the default worker timeout: that is not shortened.
    "freeze the broker": Fault(freeze_broker, options=("--worker-timeout", "60")),
    "freeze the exporter": Fault(freeze_exporter),
    "freeze a worker": Fault(freeze_worker, workers=2),
    "RabbitMQ blocks publishers": Fault(block_publishers, broker=RabbitServer),
    "the exporter may not read queues": Fault(deny_queue_lengths),
    "flood a queue": Fault(flood),
    "flood a queue without workers": Fault(flood_unconsumed),
    "tasks become slow": Fault(slow),
    "a task hangs": Fault(hang),
    "all tasks are retried": Fault(retry),
    "a worker runs without -E": Fault(omit_task_events),
    "the receiver of a sink is down": Fault(
        do_nothing, options=("--loki-url", f"http://127.0.0.1:{free_port()}")
    ),
    "workers restart one by one": Fault(restart_workers, workers=2),
    "workers are scaled to zero": Fault(scale_to_zero, workers=2),
    "a task is removed from the schedule": Fault(remove_from_schedule, beat=True, periodic=True),
}
