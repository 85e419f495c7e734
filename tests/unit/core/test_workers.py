"""Workers: missed events, processed and active tasks, clock skew."""

from __future__ import annotations

import pytest

from celery_exporter.core.workers import WorkerInfo
from unit.persistence.test_state import restarted

from .cluster_driver import ClusterDriver, heartbeat, sent, started


def worker_after(*moments, is_whole=True):
    """Apply heartbeats (at, processed) and starts (at,); return the worker."""
    driver = ClusterDriver()
    driver.cluster.registry.is_whole = lambda _: is_whole
    for number, (at, *processed) in enumerate(moments):
        driver.apply(heartbeat(at=at, processed=processed[0]) if processed else started(f"u{number}", at=at))
    return driver.cluster.workers["w@h"]


def sender_after(*moments):
    """Apply these after an early start, which shows that task events are on; return the worker."""
    return worker_after((-100,), *moments)


def test_no_event_is_missed_while_all_arrive():
    worker = worker_after((0, 5), (1,), (1.5,), (2, 7), (3,), (4, 8), (6, 8))
    assert (worker.missed, worker.events, worker.processed_total) == (0, True, 8)
    assert worker.restarts == 0


def test_a_heartbeat_that_overtakes_buffered_events_is_no_loss():
    assert sender_after((0, 0), (2, 2), (1.9,), (1.95,), (4, 2), (6, 2)).missed == 0
    assert sender_after((0, 0), (2, 2), (1.9,), (4, 2), (6, 2)).missed == 1


def test_starts_that_a_relay_sends_to_other_shards_are_not_missed():
    moments = ((0, 0), (1.9,), (2, 9), (4, 18), (6, 27), (8, 36))
    assert worker_after(*moments).missed + (worker_after(*moments).events is False) > 0
    worker = worker_after(*moments, is_whole=False)
    assert (worker.missed, worker.events) == (0, True)


def with_next_start(heartbeat):
    """Return this heartbeat, the next start and heartbeats: the start shows that task events are still on."""
    at, processed = heartbeat
    return heartbeat, (at + 1.5,), (at + 2, processed + 1), (at + 4, processed + 1)


@pytest.mark.parametrize("start_first", [True, False])
def test_a_start_between_the_count_and_the_time_of_the_first_heartbeat_is_not_missed(start_first):
    """A thread of the pool ran in between: the start is not in `processed`, but has an earlier timestamp."""
    first = [(1.99,), (2, 10)] if start_first else [(2, 10), (1.99,)]
    assert sender_after(*first, *with_next_start((4, 11))).missed == 0
    assert sender_after(*first, *with_next_start((4, 13))).missed == 3, "more than one start explains"


def test_each_start_that_may_have_been_counted_explains_one():
    first = [(2, 10), (1.95,), (1.99,)]
    assert sender_after(*first, *with_next_start((4, 12))).missed == 0
    assert sender_after(*first, *with_next_start((4, 13))).missed == 3


def test_a_start_that_was_counted_before_a_heartbeat_and_stamped_after_it_is_not_missed():
    """A thread of the pool counts the task, acknowledges the message, and then sends task-started."""
    started_late = [(0, 0), (1,), (2, 2), (2.6,), (4, 2), (6, 2)]
    assert sender_after(*started_late).missed == 0
    assert sender_after(*started_late, (7,), (8, 9), (10, 9)).missed == 6


def test_missed_events_between_frequent_starts_are_counted_late_and_completely():
    """One of nine starts is lost. Five are so close to a heartbeat that it may have counted them."""
    moments = [
        moment
        for beat in range(10)
        for moment in ((2 * beat, 9 * beat), *((2 * beat + n / 5,) for n in range(1, 9)))
    ]
    assert sender_after(*moments).missed == 6
    assert sender_after(*moments, (20, 90), (22, 90)).missed == 10


def test_processed_tasks_without_task_started_are_missed():
    worker = worker_after((0, 0), (1,), (2, 1), (3,), (4, 11), (6, 11))
    assert worker.missed == 9
    assert worker.events is True


def test_events_before_the_first_heartbeat_do_not_reduce_missed_events():
    assert sender_after((10, 100), (9,), (9.5,), (11,), (12, 103), (14, 103)).missed == 2


def test_a_worker_without_task_events_has_no_missed_events():
    worker = worker_after((0, 0), (2, 5), (4, 9), (6, 12), (8, 20))
    assert (worker.missed, worker.events) == (0, False)


def test_events_that_are_enabled_count_from_then_on():
    worker = worker_after((0, 0), (2, 5), (4, 9), (6, 12), (7,), (8, 13), (9,), (10, 14), (12, 14))
    assert (worker.missed, worker.events) == (0, True)


@pytest.mark.parametrize(
    ("beats", "events"),
    [
        ([(0, 5), (2, 5), (4, 5)], None),  # an idle worker
        ([(0, 0), (2, 5)], None),  # the heartbeat may have overtaken the event
        ([(0, 0), (2, 5), (4, 5)], None),
        ([(0, 0), (2, 5), (4, 5), (6, 5)], False),  # one batch is enough
        ([(0, 0), (60, 5), (62, 5), (64, 5), (66, 5)], None),  # heartbeats were lost, and so may be starts
        ([(0, 0), (60, 5), (62, 5), (64, 7), (66, 7)], False),
        ([(0, 0), (2, 5), (4, 9)], False),
        ([(0, 0), (1,), (2, 1), (4, 5), (6, 9)], True),  # the starts may have been lost
        ([(0, 0), (1,), (2, 1), (4, 5), *((at, 5) for at in range(6, 600, 2))], True),
        ([(0, 0), (1,), (2, 1), (4, 5), (6, 9), (8, 12)], False),
        ([(0, 0), (1,), (2, 1), (4, 5), (6, 9), (7,), (8, 12), (10, 13), (12, 14)], True),  # enabled again
    ],
)
def test_task_events_count_as_off_after_some_heartbeats_with_work_and_without_events(beats, events):
    assert worker_after(*beats).events is events


@pytest.mark.parametrize("enabled", [5, 6.5, 7, 30])
def test_tasks_before_the_first_task_event_are_not_missed(enabled):
    """Workers do not send the events of tasks that start while their task events are off."""
    beats = [(at, 10 if at < enabled else 20) for at in range(6, 60, 2)]
    starts = [(enabled + n / 100,) for n in range(10)]
    moments = sorted([(0, 0), (2, 0), (4, 10), *beats, *starts])
    worker = worker_after(*moments)
    assert (worker.missed, worker.events) == (0, True)


def test_tasks_are_not_missed_while_task_events_are_disabled_and_enabled_again():
    off = [(6, 11), *((at, 11) for at in range(8, 20, 2)), (20, 21), (22, 31), (24, 31), (26, 31)]
    worker = sender_after((0, 0), (1,), (2, 1), (4, 1), *off)
    assert (worker.missed, worker.events) == (0, False)
    on = [(27,), (28, 32), (29,), (30, 33), (32, 33)]
    worker = sender_after((0, 0), (1,), (2, 1), (4, 1), *off, *on)
    assert (worker.missed, worker.events) == (0, True)


def test_events_that_were_lost_with_heartbeats_are_missed_at_once():
    """The exporter was disconnected for 16 seconds."""
    assert sender_after((0, 0), (1,), (2, 1), (4, 1), (20, 31), (22, 31)).missed == 30
    assert worker_after((0, 0), (1,), (20, 31), (22, 31)).missed == 30, "after the first event"


def test_a_process_without_task_events_that_are_enabled_later_has_none_missed():
    """Those of the previous process were on."""
    driver = ClusterDriver()
    driver.apply(started("u1", at=-0.5), heartbeat(at=0), heartbeat(at=2))
    driver.apply(heartbeat(at=3, kind="offline"), heartbeat(at=5, kind="online", pid=2))
    driver.apply(heartbeat(at=7, processed=10, pid=2), started("u2", at=8, pid=2))
    driver.apply(*(heartbeat(at=at, processed=11, pid=2) for at in range(9, 20, 2)))
    worker = driver.cluster.workers["w@h"]
    assert (worker.events, worker.missed) == (True, 0)


@pytest.mark.parametrize("events", [False, True])
def test_a_process_that_replaces_one_has_task_events_of_its_own(events):
    """It may have been started with or without -E, whatever the previous one had."""
    driver = ClusterDriver()
    if events:
        driver.apply(started("u1", at=-0.5))
    for at, processed in ((0, 1), (2, 1), (4, 1 if events else 9), (6, 1 if events else 9), (8, 9)):
        driver.apply(heartbeat(at=at, processed=processed))
    worker = driver.cluster.workers["w@h"]
    assert worker.events is events
    driver.apply(heartbeat(at=10, kind="offline", processed=9))
    driver.apply(heartbeat(at=12, kind="online", pid=2))
    if not events:
        driver.apply(*(started(f"v{n}", at=13 + n / 100, pid=2) for n in range(10)))
    for at in range(14, 22, 2):
        driver.apply(heartbeat(at=at, pid=2, processed=10))
    assert (worker.events, worker.missed) == (not events, 0)


def test_a_growth_before_which_events_were_lost_does_not_show_that_task_events_are_off():
    """A new subscription: the events between the first two heartbeats may have been lost."""
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0))
    driver.cluster.registry.interrupt()
    for at in range(2, 20, 2):
        driver.apply(heartbeat(at=at, processed=10))
    assert driver.cluster.workers["w@h"].events is None
    for at in range(20, 28, 2):
        driver.apply(heartbeat(at=at, processed=11))
    assert driver.cluster.workers["w@h"].events is False


def test_the_first_events_may_have_been_lost_after_the_heartbeat_that_counted_their_tasks():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0), heartbeat(at=2, processed=10))
    driver.cluster.registry.interrupt()
    for at in range(4, 20, 2):
        driver.apply(heartbeat(at=at, processed=10))
    assert driver.cluster.workers["w@h"].events is None


def test_a_solo_worker_sends_heartbeats_only_between_tasks():
    driver = ClusterDriver()
    driver.cluster.record_inspection({"w@h": WorkerInfo(pool="solo")}, driver.timestamp())
    for at, processed in ((0, 0), (60, 1), (62, 1), (64, 1)):
        driver.apply(heartbeat(at=at, processed=processed))
    assert driver.cluster.workers["w@h"].events is False


def test_tasks_with_send_events_false_do_not_show_that_task_events_are_off():
    """The reply that names these tasks may come later than the heartbeats."""
    driver = ClusterDriver()
    for at, processed in ((0, 0), (2, 1), (4, 2)):
        driver.apply(heartbeat(at=at, processed=processed))
    worker = driver.cluster.workers["w@h"]
    assert worker.events is False
    driver.cluster.record_inspection({"w@h": WorkerInfo(silent_tasks=("add",))}, driver.timestamp())
    driver.apply(heartbeat(at=6, processed=3), heartbeat(at=8, processed=4))
    assert (worker.events, worker.missed) == (None, 0)


def test_the_processed_total_is_limited_to_what_a_sample_holds():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0))
    driver.cluster.workers["w@h"].processed_total = 2**53 - 2**39  # after many restarts
    driver.apply(*(heartbeat(at=at, processed=0 if at % 2 else 2**39) for at in range(1, 5)))
    assert driver.cluster.workers["w@h"].processed_total == 2**53


def test_a_heartbeat_without_active_tasks_leaves_the_count_unchanged():
    driver = ClusterDriver()
    driver.apply(heartbeat(active=3))
    driver.apply(
        {"hostname": "w@h", "freq": 5, "timestamp": heartbeat()["timestamp"], "type": "worker-heartbeat"}
    )
    assert driver.cluster.workers["w@h"].active == 3


def test_the_least_delayed_event_of_the_last_minutes_determines_the_skew():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=driver.now + 420 - 5))  # delayed by 5 s
    driver.wait(2)
    driver.apply(heartbeat(at=driver.now + 420))
    assert driver.cluster.workers["w@h"].clock_skew == 420
    for delay in (3, 5, 4):
        driver.wait(2)
        driver.apply(heartbeat(at=driver.now + 420 - delay))
    assert driver.cluster.workers["w@h"].clock_skew == 420
    driver.wait(130)
    driver.apply(heartbeat(at=driver.now))  # its clock was corrected
    driver.wait(61)
    driver.apply(heartbeat(at=driver.now))
    assert driver.cluster.workers["w@h"].clock_skew == 0


def test_the_start_of_an_identified_task_counts_for_its_worker():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=0), sent("u"), started("u", at=1), heartbeat(at=2, processed=1))
    driver.apply(heartbeat(at=4, processed=1))
    assert driver.cluster.workers["w@h"].missed == 0


def test_active_tasks_of_the_processes_of_a_name_are_added_up():
    driver = ClusterDriver()
    for _ in range(4):
        for pid, active in ((1, 3), (2, 0)):
            driver.apply(heartbeat(at=driver.now, pid=pid, active=active))
            driver.wait(1)
    assert driver.cluster.workers["w@h"].active == 3


def test_a_shared_name_without_missed_events_reports_none():
    driver = ClusterDriver()
    for number in range(1, 9):
        for pid in (1, 2):
            driver.apply(started(f"{pid}-{number}", at=driver.now, pid=pid))
            driver.apply(heartbeat(at=driver.now + 0.5, processed=number * pid, pid=pid))
            driver.wait(1)
    worker = driver.cluster.workers["w@h"]
    assert (worker.missed, worker.events) == (0, True)


def heartbeats(driver, pid, processed, first, count=4):
    driver.wait(0.5)
    for number in range(count):
        driver.apply(heartbeat(at=first + 2 * number, pid=pid, processed=processed))
        driver.wait(2)


def test_tasks_of_a_process_that_started_while_the_exporter_was_down_are_missed():
    driver = ClusterDriver()
    heartbeats(driver, 1, 0, 0, 1)
    driver.apply(started("a", at=1, pid=1), started("b", at=1.5, pid=1))
    heartbeats(driver, 1, 2, 2, 2)
    new = restarted(driver, away=60)
    heartbeats(new, 2, 500, 70, 2)
    assert new.cluster.workers["w@h"].missed == 0, "the new process may have no task events"
    new.apply(started("c", at=73, pid=2))
    heartbeats(new, 2, 501, 74)
    worker = new.cluster.workers["w@h"]
    assert (worker.missed, worker.restarts, worker.processed_total) == (500, 1, 503)
    new.apply(started("d", at=81, pid=2))
    heartbeats(new, 2, 512, 82)
    assert new.cluster.workers["w@h"].missed == 510


def test_starts_of_a_new_process_before_its_first_heartbeat_are_not_missed():
    driver = ClusterDriver()
    heartbeats(driver, 1, 7, 0, 2)
    driver.apply(*(started(f"u{n}", at=3 + n / 10, pid=2) for n in range(5)))
    heartbeats(driver, 2, 6, 5)
    assert driver.cluster.workers["w@h"].missed == 1


def test_earlier_tasks_of_a_process_of_a_shared_name_are_not_missed():
    """The second of two processes of a name may have run long before the exporter."""
    driver = ClusterDriver()
    for number in range(10):
        for pid, processed in ((1, 1_000), (2, 2_000)):
            driver.apply(started(f"u{number}-{pid}", at=2 * number + 0.1 * pid, pid=pid))
            driver.apply(heartbeat(at=2 * number + pid, pid=pid, processed=processed + number))
            driver.wait(1)
    assert driver.cluster.workers["w@h"].missed == 0


@pytest.mark.parametrize("back", [1.5, 60.0, 3_600.0])
@pytest.mark.parametrize("after", [2, 5, 20])
def test_a_clock_that_is_set_back_causes_no_missed_events(back, after):
    driver = ClusterDriver()
    processed = 0
    for number in range(40):
        at = 2 * number - (back if number >= after else 0.0)
        driver.apply(*(started(f"u{number}-{n}", at=at + 0.3 * n) for n in range(5)))
        processed += 5
        driver.wait(1.75)
        driver.apply(heartbeat(at=at + 1.75, processed=processed))
        driver.wait(0.25)
    worker = driver.cluster.workers["w@h"]
    assert (worker.missed, worker.events) == (0, True)


# -- after another exporter has received the events ----------------------------------------------------------


@pytest.mark.parametrize("pid", [1, 2], ids=["the same process", "a new one"])
def test_what_another_exporter_has_counted_is_neither_missed_nor_counted_again(pid):
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=10), started("a", at=1), heartbeat(at=2, processed=11))
    driver.cluster.registry.resume(driver.timestamp())
    worker = driver.cluster.workers["w@h"]
    assert not worker.up, "until its next event"
    later = {"pid": pid}
    driver.apply(heartbeat(at=100, processed=61, **later), heartbeat(at=102, processed=61, **later))
    driver.apply(started("b", at=103, **later), heartbeat(at=104, processed=62, **later))
    driver.apply(heartbeat(at=106, processed=62, **later))
    assert worker.up
    assert (worker.missed, worker.processed_total, worker.restarts) == (0, 12, 0)
    driver.apply(started("c", at=107, **later))
    driver.apply(heartbeat(at=108, processed=65, **later), heartbeat(at=110, processed=65, **later))
    assert (worker.missed, worker.processed_total) == (2, 15)


def test_a_worker_that_only_inspection_found_is_no_worker_when_another_exporter_had_the_events():
    """It may have ended long ago: a standby sees no worker-offline."""
    driver = ClusterDriver()
    driver.cluster.record_inspection({"w@h": WorkerInfo()}, driver.timestamp())
    driver.cluster.registry.resume(driver.timestamp())
    assert driver.cluster.workers == {}
    assert not driver.cluster.registry.uninspected


def test_the_state_file_keeps_that_another_exporter_has_counted():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=10))
    driver.cluster.registry.resume(driver.timestamp())
    after = restarted(driver)
    after.apply(heartbeat(at=100, processed=61))
    assert after.cluster.workers["w@h"].processed_total == 10
