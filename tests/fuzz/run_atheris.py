"""Fuzz `targets` by coverage: python tests/fuzz/run_atheris.py [TARGET ...]

Each target gets an equal part of FUZZ_SECONDS, in a process of its own. An input that breaks something is put
into corpus/, where pytest finds it from then on.
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
#: An input that takes longer, or more memory, is a failure.
SLOWEST, LARGEST = 10, 1024  # seconds, MB
#: What is watched for coverage.
WATCHED = ["celery_exporter", "yaml", "amqp.serialization", "kombu.utils.json"]
TOKENS = """
"type" "timestamp" "hostname" "uuid" "name" "queue" "retries" "eta" "runtime" "exception" "pid" "loadavg"
"task-sent" "task-received" "task-started" "task-failed" "worker-heartbeat" "NotRegistered('" "NaN" "1e309"
"body" "properties" "headers" "content-type" "compression" "base64" "!!python" "&a" "*a" "<<:" "pool"
""".split()  # noqa: SIM905  libFuzzer's format


def fuzz(name: str, options: list[str]) -> None:
    """Never returns."""
    import atheris  # noqa: PLC0415  it is not to be had everywhere

    with atheris.instrument_imports(include=WATCHED):
        from fuzz.targets import TARGETS  # noqa: PLC0415  instrumented while it is imported
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


def run(name: str, seconds: float) -> tuple[str, bool]:
    """Return a line of the table, and whether all went well."""
    from fuzz.targets import CORPUS, seeds  # noqa: PLC0415  not before they are instrumented, in `fuzz`

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds(name)):
            Path(folder, f"{number}").write_bytes(seed)
        dictionary = Path(folder, "tokens")
        dictionary.write_text("\n".join(TOKENS))
        (CORPUS / name).mkdir(exist_ok=True)
        options = [
            f"-max_total_time={max(1, round(seconds))}",
            f"-timeout={SLOWEST}",
            f"-rss_limit_mb={LARGEST}",
            "-max_len=4096",
            "-print_final_stats=1",
            f"-dict={dictionary}",
            f"-artifact_prefix={CORPUS / name}/",
            folder,
        ]
        done = subprocess.run(
            [sys.executable, __file__, "--in", name, *options], capture_output=True, text=True, check=False
        )
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)
    said = done.stderr
    inputs = _number(r"stat::number_of_executed_units:\s*(\d+)", said)
    growth = _number(r"stat::peak_rss_mb:\s*(\d+)", said) - _number(r"INITED.* rss: (\d+)Mb", said)
    line = f"{name:12} {inputs:>10,} {seconds:>8.0f} {growth:>+8} MB {int(done.returncode != 0):>9}"
    return line, done.returncode == 0


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def main() -> int:
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not to be had for this Python and machine; hypothesis fuzzes alone")
        return 0
    from fuzz.targets import TARGETS  # noqa: PLC0415  see above

    names = sys.argv[1:] or list(TARGETS)
    print(f"{'target':12} {'inputs':>10} {'seconds':>8} {'peak RSS':>11} {'failures':>9}", flush=True)
    fine = True
    for name in names:
        line, well = run(name, SECONDS / len(names))
        print(line, flush=True)
        fine = fine and well
    return 0 if fine else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in"]:
        fuzz(sys.argv[2], sys.argv[3:])
    sys.exit(main())
