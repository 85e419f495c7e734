"""The harness itself: it waits honestly, starts what it says, and leaves nothing behind."""

import psutil
import pytest
from harness.processes import listening, need
from harness.servers import RabbitServer, RedisServer
from harness.waiting import eventually, until_equal


def test_eventually_returns_what_it_waited_for_or_says_what_it_saw_last():
    states = iter([None, 0, "there"])
    assert eventually(lambda: next(states), every=0) == "there"
    with pytest.raises(AssertionError, match="last: 0"):
        eventually(lambda: 0, 0.0, every=0)
    with pytest.raises(AssertionError, match="got 'no', want 'yes'"):
        until_equal(lambda: "no", "yes", 0.0)


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
