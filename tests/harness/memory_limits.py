"""How much memory the exporter may take, for tests and for manifests that set a memory limit."""

from celery_exporter.config.options import OPTIONS

(_MAX_TASKS,) = (int(str(option.default)) for option in OPTIONS if option.name == "max-tasks")
#: One unfinished task, as in the help of --max-tasks and in tests/unit/core/test_tasks.py.
_TASK_BYTES = 400
#: The process during and after a flood of names; see tests/integration/test_memory_limits.py.
FLOODED_BYTES = 300 * 2**20
#: The same with the maximum number of unfinished tasks, while it copies them to the state file.
MAX_MEMORY_BYTES = FLOODED_BYTES + int(1.6 * _MAX_TASKS * _TASK_BYTES)
