import threading
from contextvars import copy_context

from celery_exporter.runtime.threads import BROKER, new_thread


def test_a_thread_works_for_the_broker_of_the_code_that_made_it():
    seen: list[tuple[str, str]] = []

    def note() -> None:
        seen.append((threading.current_thread().name, BROKER.get()))

    def make(name: str) -> threading.Thread:
        BROKER.set(name)
        return new_thread(f"events-{name}", note)

    threads = [copy_context().run(make, name) for name in ("shop", "billing")]
    for thread in (*threads, new_thread("other", note)):
        thread.start()
        thread.join()
    assert seen == [("events-shop", "shop"), ("events-billing", "billing"), ("other", "")]
