"""Runs coverage-guided fuzzing of `targets`: python tests/fuzz/run_atheris.py [TARGET ...]

Each target runs in its own process for an equal part of FUZZ_SECONDS. An input that fails is stored in
corpus/, which pytest uses as well.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

SECONDS = float(os.environ.get("FUZZ_SECONDS", "40"))
#: Limits of one input.
MAX_SECONDS, MAX_MEMORY_MB = 10, 1024
#: Packages that are instrumented for coverage.
INSTRUMENTED = ["celery_exporter", "yaml", "amqp.serialization", "kombu.utils.json"]
TOKENS = """
"type" "timestamp" "hostname" "uuid" "name" "queue" "retries" "eta" "runtime" "exception" "pid" "loadavg"
"task-sent" "task-received" "task-started" "task-failed" "worker-heartbeat" "NotRegistered('" "NaN" "1e309"
"body" "properties" "headers" "content-type" "compression" "base64" "!!python" "&a" "*a" "<<:" "pool"
""".split()  # noqa: SIM905  libFuzzer's format


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz a target; does not return."""
    import atheris  # noqa: PLC0415  not available on all platforms

    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz.targets import TARGETS  # noqa: PLC0415  the import instruments it
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


def run(name: str, seconds: float) -> tuple[str, bool]:
    """Fuzz a target in a process; return a row of the table, and whether no input failed."""
    from fuzz.targets import CORPUS, seeds  # noqa: PLC0415  `fuzz` must import it first

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds(name)):
            Path(folder, f"{number}").write_bytes(seed)
        dictionary = Path(folder, "tokens")
        dictionary.write_text("\n".join(TOKENS))
        (CORPUS / name).mkdir(exist_ok=True)
        options = [
            f"-max_total_time={max(1, round(seconds))}",
            f"-timeout={MAX_SECONDS}",
            f"-rss_limit_mb={MAX_MEMORY_MB}",
            "-max_len=4096",
            "-print_final_stats=1",
            f"-dict={dictionary}",
            f"-artifact_prefix={CORPUS / name}/",
            folder,
        ]
        result = subprocess.run(
            [sys.executable, __file__, "--in", name, *options], capture_output=True, text=True, check=False
        )
    if result.returncode:
        print(result.stderr[-4000:], file=sys.stderr)
    output = result.stderr
    inputs = _number(r"stat::number_of_executed_units:\s*(\d+)", output)
    growth = _number(r"stat::peak_rss_mb:\s*(\d+)", output) - _number(r"INITED.* rss: (\d+)Mb", output)
    line = f"{name:12} {inputs:>10,} {seconds:>8.0f} {growth:>+8} MB {int(result.returncode != 0):>9}"
    return line, result.returncode == 0


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0


def main() -> int:
    """Fuzz the targets of the command line, or all, and return the exit code."""
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not available for this Python and machine; only hypothesis fuzzes")
        return 0
    from fuzz.targets import TARGETS  # noqa: PLC0415  see above

    names = sys.argv[1:] or list(TARGETS)
    print(f"{'target':12} {'inputs':>10} {'seconds':>8} {'peak RSS':>11} {'failures':>9}", flush=True)
    all_passed = True
    for name in names:
        line, passed = run(name, SECONDS / len(names))
        print(line, flush=True)
        all_passed = all_passed and passed
    return 0 if all_passed else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in"]:
        fuzz(sys.argv[2], sys.argv[3:])
    sys.exit(main())
