"""The harness: waiting, time spans, and processes that leave no child behind."""

import subprocess
import sys

import psutil
import pytest
from harness.processes import listening, need
from harness.servers import RabbitServer, RedisServer
from harness.time_spans import TimeSpan
from harness.waiting import BUSY_FACTOR, eventually, until_equal


def test_eventually_returns_the_first_true_result_or_raises_with_the_last_one():
    states = iter([None, 0, "ready"])
    assert eventually(lambda: next(states), every=0) == "ready"
    with pytest.raises(AssertionError, match="last: 0"):
        eventually(lambda: 0, 0.0, every=0)
    with pytest.raises(AssertionError, match="got 'no', want 'yes'"):
        until_equal(lambda: "no", "yes", 0.0)


def test_eventually_waits_the_busy_factor_times_the_deadline():
    calls = []
    with pytest.raises(AssertionError, match=f"not met in {BUSY_FACTOR * 0.1:g} s"):
        eventually(lambda: calls.append(1), 0.1, every=0.2)
    assert len(calls) > 2, "it also checked after the deadline of a quiet machine"


WAITING = "import time; print(flush=True); time.sleep(2)"
WORKING = "import time; print(flush=True)\nwhile time.process_time() < 0.5: pass"


@pytest.mark.parametrize(("program", "least", "most"), [(WAITING, 1.5, 3.0), (WORKING, 0.0, 0.2)])
def test_a_span_counts_time_that_a_process_waits_and_not_time_that_it_runs(monkeypatch, program, least, most):
    """Other processes keep the processors busy."""
    monkeypatch.setattr("harness.time_spans.QUIET", False)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            span = TimeSpan.until(lambda: process.poll() is not None, process.pid, every=0.02)
        assert least <= span.seconds <= most, span
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.parametrize("ci", [True, False])
def test_a_missing_program_skips_a_test_and_fails_it_in_ci(monkeypatch, ci):
    monkeypatch.setenv("CI", "1" if ci else "")
    with pytest.raises(pytest.fail.Exception if ci else pytest.skip.Exception, match="nosuchd"):
        need("nosuchd")


@pytest.mark.parametrize("kind", [RedisServer, RabbitServer])
def test_a_server_stops_on_sigterm_and_leaves_no_process(tmp_path, kind):
    folder = tmp_path / "server"

    def pids():
        processes = (process.info for process in psutil.process_iter(["pid", "cwd"]))
        return [info["pid"] for info in processes if str(info["cwd"]).startswith(str(folder))]

    with kind(folder) as server:
        assert server.pid in pids()
        assert server.stop() == 0
    until_equal(pids, [])
    assert not listening(server.port)
