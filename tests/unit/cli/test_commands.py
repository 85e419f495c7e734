"""Commands that connect to nothing. tests/integration/test_cli.py has the others."""

from __future__ import annotations

from harness.exporter import run_cli

CONFIG = """
brokers:
  shop: {url: "redis://me:secret@shop"}
  one: {url: "redis://one", expected: [{task: a, every: 1h}]}
expected:
  - {task: a, every: 1h}
  - {task: a, every: 2h}
  - {task: b, every: 1h}
"""


def test_check_config_prints_the_brokers_and_how_many_tasks_are_expected_of_each(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    done = run_cli("check-config", str(path))
    lines = [
        "valid, 2 brokers",
        "  shop: redis://me:***@shop (2 expected tasks)",
        "  one: redis://one (1 expected task)",
    ]
    assert (done.returncode, done.stdout) == (0, f"{path}: " + "\n".join(lines) + "\n")
    path.write_text("broker_url: redis://shop")
    assert run_cli("check-config", str(path)).stdout == f"{path}: valid, 1 broker\n  redis://shop\n"
