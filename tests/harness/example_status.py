"""One status of a small cluster with two problems, for `top`."""

from __future__ import annotations

from celery_exporter.status.finding import Finding
from celery_exporter.status.model import (
    BrokerStatus,
    FailureStatus,
    QueueStatus,
    Status,
    TaskStatus,
    WorkerStatus,
)

AT = 1_795_300_000.0  # 2026-11-21 22:26:40 UTC


def task_status(
    name: str, rate: float, *, failed: float = 0.0, open_: int = 0, p95: float | None = 0.8
) -> TaskStatus:
    rates = {
        "PENDING": rate,
        "RECEIVED": rate,
        "STARTED": rate,
        "SUCCESS": rate - failed,
        "FAILURE": failed,
        "RETRY": failed / 2,
        "REVOKED": 0.0,
        "REJECTED": 0.0,
    }
    return TaskStatus(
        name,
        rates,
        failed / rate if rate else None,
        p95 and p95 / 4,
        p95,
        0.012 if rate else None,
        1.5 if rate else None,
        {"PENDING": open_, "STARTED": 1} if open_ else {},
        AT - 90 if open_ else None,
    )


def worker_status(name: str, *, up: bool = True, active: int | None = 1) -> WorkerStatus:
    if not up:
        return WorkerStatus(name, False, None, None, 1_204, None, None, None, AT - 400, "5.6.0")
    return WorkerStatus(name, True, active, 8, 48_213, 1.42, 0.02, active != 0, AT - 1, "5.6.0")


def queue_status(name: str, length: int | None, peak: int = 0) -> QueueStatus:
    lengths = [(AT - 900 + 15 * step, round(peak * (1 - abs(step - 45) / 45))) for step in range(15, 61)]
    return QueueStatus(name, length, AT - 42 if length else None, 2, 16, [*lengths, (AT, length)])


STATUS = Status(
    version=1,
    exporter_version="0.1.0",
    at=AT,
    started=AT - 7_300,
    window=300.0,
    broker=BrokerStatus("redis://user:***@redis:6379/0", True, 2, AT - 0.2, 0.004, 312.4, 17),
    findings=[
        Finding("subscription", "ok", "the event subscription is open"),
        Finding(
            "task-events",
            "critical",
            "no task events from worker idle@web-2",
            "start workers with -E, or now: celery -A yourapp control enable_events",
        ),
        Finding(
            "unconsumed-messages",
            "warning",
            "messages wait in queues without consumers: thumbnails (3)",
            "celery -A yourapp worker -E -Q thumbnails",
        ),
    ],
    workers=[
        worker_status("emails@web-1", active=5),
        worker_status("gone@web-3", up=False),
        worker_status("idle@web-2", active=0),
    ],
    queues=[
        queue_status("emails", 0, 40),
        queue_status("reports", 1_250, 1_250),
        queue_status("thumbnails", None),
    ],
    tasks=[
        task_status("shop.email.send_confirmation", 120.25, open_=12),
        task_status("shop.image.thumbnail", 8.0, failed=2.0, open_=1_250, p95=95.0),
        task_status("shop.report.build_the_monthly_report_of_everything", 0.03, p95=3_700.0),
        *(task_status(f"shop.sync.part_{number}", number / 10, p95=None) for number in range(9)),
    ],
    failures=[
        FailureStatus(AT - 60 * number, "shop.image.thumbnail", "emails@web-1", "OSError", f"0000-{number}")
        for number in range(4)
    ],
)
