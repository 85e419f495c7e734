"""How much memory the exporter may take, for those who set limits to it."""

from celery_exporter.config.options import OPTIONS

(_MAX_TASKS,) = (int(str(option.default)) for option in OPTIONS if option.name == "max-tasks")
#: Each unfinished task, as the help of --max-tasks and tests/unit/core/test_cluster.py have it.
_TASK_BYTES = 400
#: The process, in and after a flood of names: tests/integration/test_memory_limits.py.
FLOODED_BYTES = 300 * 2**20
#: After such a flood, with as many unfinished tasks as it keeps, while it copies them to its file.
MAX_MEMORY_BYTES = FLOODED_BYTES + int(1.6 * _MAX_TASKS * _TASK_BYTES)
