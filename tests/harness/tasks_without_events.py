"""A task that runs without events, for workers with `--include harness.tasks_without_events`.

No other worker has it: the number of missed events is unknown for a worker with such a task.
"""

from harness.tasks import Noting, app


@app.task(bind=True, base=Noting, name="tasks.unreported", send_events=False)
def unreported(self: Noting) -> None:
    """Run without any event of the worker."""
