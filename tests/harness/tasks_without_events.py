"""A task that runs without events, for workers with `--include harness.tasks_without_events`.

No other worker has it: the number of missed events is unknown for a worker with such a task.
"""

from harness.tasks import RecordingTask, app


@app.task(bind=True, base=RecordingTask, name="tasks.without_events", send_events=False)
def without_events(self: RecordingTask) -> None:
    """Run without any event of the worker."""
