"""The harness itself: it waits honestly, starts what it says, and leaves nothing behind."""

import subprocess
import sys

import psutil
import pytest
from harness.processes import listening, need
from harness.servers import RabbitServer, RedisServer
from harness.time_spans import TimeSpan
from harness.waiting import BUSY_FACTOR, eventually, until_equal


def test_eventually_returns_what_it_waited_for_or_says_what_it_saw_last():
    states = iter([None, 0, "there"])
    assert eventually(lambda: next(states), every=0) == "there"
    with pytest.raises(AssertionError, match="last: 0"):
        eventually(lambda: 0, 0.0, every=0)
    with pytest.raises(AssertionError, match="got 'no', want 'yes'"):
        until_equal(lambda: "no", "yes", 0.0)


def test_a_deadline_is_for_a_quiet_machine_and_a_busy_one_has_several_times_as_long():
    looks = []
    with pytest.raises(AssertionError, match=f"not met in {BUSY_FACTOR * 0.1:g} s"):
        eventually(lambda: looks.append(1), 0.1, every=0.2)
    assert len(looks) > 2, "it looked after a tenth of a second, too"


WAITS = "import time; print(flush=True); time.sleep(2)"
WORKS = "import time; print(flush=True)\nwhile time.process_time() < 0.5: pass"


@pytest.mark.parametrize(("program", "least", "most"), [(WAITS, 1.5, 3.0), (WORKS, 0.0, 0.2)])
def test_a_span_has_what_a_process_waited_and_not_what_it_worked(monkeypatch, program, least, most):
    """However many others want the processors meanwhile."""
    monkeypatch.setattr("harness.time_spans.QUIET", False)
    crowd = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            span = TimeSpan.until(lambda: process.poll() is not None, process.pid, every=0.02)
        assert least <= span.seconds <= most, span
    finally:
        for other in crowd:
            other.kill()
            other.wait()


@pytest.mark.parametrize("ci", [True, False])
def test_a_missing_server_is_skipped_at_a_desk_and_fails_in_ci(monkeypatch, ci):
    monkeypatch.setenv("CI", "1" if ci else "")
    with pytest.raises(pytest.fail.Exception if ci else pytest.skip.Exception, match="nosuchd"):
        need("nosuchd")


@pytest.mark.parametrize("kind", [RedisServer, RabbitServer])
def test_a_server_stops_when_asked_to_and_leaves_nothing(tmp_path, kind):
    folder = tmp_path / "server"

    def ours():
        own = (process.info for process in psutil.process_iter(["pid", "cwd"]))
        return [info["pid"] for info in own if str(info["cwd"]).startswith(str(folder))]

    with kind(folder) as server:
        assert server.pid in ours()
        assert server.stop() == 0
    until_equal(ours, [])
    assert not listening(server.port)
