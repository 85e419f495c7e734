"""A task that runs without an event, for workers that are started with `--include harness.unreported`.

It is in no other worker: of one that has such a task nobody can tell how many events were lost.
"""

from harness.tasks import Noting, app


@app.task(bind=True, base=Noting, name="tasks.unreported", send_events=False)
def unreported(self: Noting) -> None:
    """Run without any event of the worker."""
