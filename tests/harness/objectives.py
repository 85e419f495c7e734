"""Rules of the mixin for objectives. The shipped rules have none."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from harness.processes import ROOT, need

Json = dict[str, Any]
#: An objective with each indicator, on a task and a queue of the demo.
EXAMPLE = {
    "name": "mail",
    "task": "mail.send",
    "queue": "emails",
    "runtimeSeconds": 10,
    "queueWaitSeconds": 60,
    "objective": 0.99,
}
SLIS = {"success", "runtime", "wait"}


def evaluate(program: str) -> subprocess.CompletedProcess[str]:
    """Evaluate a jsonnet program, which can import files of alerts/."""
    command = [need("jsonnet"), "--jpath", str(ROOT / "alerts"), "-e", program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def generate(objectives: Iterable[Mapping[str, Any]], **config: object) -> subprocess.CompletedProcess[str]:
    """Generate the rules of these objectives, with these settings."""
    additions = json.dumps({"objectives": list(objectives), **config})
    return evaluate(f"""
      local rules = ((import "mixin.libsonnet") + {{ _config+:: {additions} }}).prometheusAlerts;
      {{ groups: [group for group in rules.groups if group.name == "celery-objectives"] }}
    """)


def rules_of(*objectives: Mapping[str, Any], **config: object) -> Json:
    """Return the rules of these objectives, as in a rule file."""
    result = generate(objectives, **config)
    assert result.returncode == 0, result.stderr
    rules: Json = json.loads(result.stdout)
    return rules
