"""Records raw event messages of real workers, one line of JSON each.

    .venv/bin/python tests/data/recordings/record.py

starts each broker and pool in turn, runs the same tasks, and writes `<broker>-<pool>.jsonl` into this folder.
Run it after a change of Celery's events. The golden texts then show the differences.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from harness.outcomes import FileOutcomes  # noqa: E402
from harness.servers import RabbitServer, RedisServer  # noqa: E402
from harness.waiting import eventually  # noqa: E402
from harness.workers import Worker, client  # noqa: E402

from celery_exporter.broker.consumers.factory import consumer_for  # noqa: E402
from celery_exporter.broker.source import ConfigSource  # noqa: E402
from celery_exporter.config.loader import load  # noqa: E402

RECORDINGS = [
    (RedisServer, "redis", "prefork"),
    (RedisServer, "redis", "solo"),
    (RabbitServer, "rabbitmq", "threads"),
]
END_STATES = ("SUCCESS", "FAILURE", "REJECTED")
#: Task, number of times, arguments, options.
TASKS = [
    ("tasks.succeed", 6, (0.01,), {}),
    ("tasks.fail_with_value_error", 2, (), {}),
    ("tasks.fail_with_inner_error", 1, (), {}),
    ("tasks.retry_once", 3, (), {}),
    ("tasks.retry_and_fail", 1, (), {}),
    ("tasks.reject", 1, (), {}),
    ("tasks.nobody_registered", 1, (), {}),
    ("tasks.succeed", 2, (), {"countdown": 1}),
    ("tasks.succeed", 2, (), {"countdown": 1, "expires": 0.5}),
]
#: Folders of the machine in tracebacks.
FOLDERS = re.compile(r'File \\\\"/(?:[^"\\\\/]+/)*')
#: Ends in the recorded outcomes: of all tasks except the unregistered one and the two that expire.
RECORDED_ENDS = 16


def record(url: str, folder: Path, pool: str, recording: Path) -> None:
    """Run the tasks, and write the messages of their events to a file."""
    consumer = consumer_for(ConfigSource(load({"broker_url": url}, {}).monitor.broker))
    consumer.open()
    stop = threading.Event()
    lines: list[str] = []
    begin = time.monotonic()

    def listen() -> None:
        while not stop.is_set():
            for message in consumer.read(0.1):
                at = round(time.monotonic() - begin, 3)
                body = FOLDERS.sub(r'File \\"/app/', message.body.decode())
                lines.append(json.dumps({"at": at, "type": message.content_type, "body": body}))

    listener = threading.Thread(target=listen)
    listener.start()
    outcomes = FileOutcomes(folder / f"outcomes-{pool}")
    worker = Worker(folder / f"worker-{pool}", url, f"{pool}@tape", pool=pool, outcomes=outcomes)
    with worker, client(url) as app:
        worker.wait_ready()
        for name, times, arguments, options in TASKS:
            for _ in range(times):
                app.send_task(name, arguments, queue="celery", **options)
        eventually(lambda: outcomes.total(*END_STATES) == RECORDED_ENDS, 30)
        assert eventually(lambda: any("task-revoked" in line for line in lines), 10)
        worker.stop()
    eventually(lambda: any("worker-offline" in line for line in lines), 10)
    stop.set()
    listener.join()
    consumer.close()
    recording.write_text("\n".join(lines) + "\n")
    print(recording.name, len(lines), "messages")


def main() -> None:
    """Record all brokers and pools."""
    for kind, broker, pool in RECORDINGS:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = stack.enter_context(kind(folder / "server"))
            record(server.clean(), folder, pool, HERE / f"{broker}-{pool}.jsonl")


if __name__ == "__main__":
    main()
