"""Workers: missed events, restarts, clock skew, and several processes under one name."""

from __future__ import annotations

import heapq
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_exporter.core.workers import WorkerInfo
from unit.persistence.test_state import restarted

from .cluster_driver import ClusterDriver, heartbeat, sent, started


def worker_after(*moments):
    """Apply heartbeats (at, processed) and starts (at,); return the worker."""
    driver = ClusterDriver()
    for number, (at, *processed) in enumerate(moments):
        driver.apply(heartbeat(at=at, processed=processed[0]) if processed else started(f"u{number}", at=at))
    return driver.cluster.workers["w@h"]


def test_no_event_is_missed_while_all_arrive():
    worker = worker_after((0, 5), (1,), (1.5,), (2, 7), (3,), (4, 8), (6, 8))
    assert (worker.missed, worker.events, worker.processed_total) == (0, True, 8)
    assert worker.restarts == 0


def test_a_heartbeat_that_overtakes_buffered_events_is_no_loss():
    assert worker_after((0, 0), (2, 2), (1.9,), (1.95,), (4, 2), (6, 2)).missed == 0
    assert worker_after((0, 0), (2, 2), (1.9,), (4, 2), (6, 2)).missed == 1


@pytest.mark.parametrize("start_first", [True, False])
def test_a_start_between_the_count_and_the_time_of_the_first_heartbeat_is_not_missed(start_first):
    """A thread of the pool ran in between: the start is not in `processed`, but has an earlier timestamp."""
    first = [(1.99,), (2, 10)] if start_first else [(2, 10), (1.99,)]
    assert worker_after(*first, (4, 11), (6, 11)).missed == 0
    assert worker_after(*first, (4, 13), (6, 13)).missed == 3, "more than one uncertain start explains"


def test_each_start_that_may_have_been_counted_explains_one():
    first = [(2, 10), (1.95,), (1.99,)]
    assert worker_after(*first, (4, 12), (6, 12)).missed == 0
    assert worker_after(*first, (4, 13), (6, 13)).missed == 3


def test_a_start_that_was_counted_before_a_heartbeat_and_stamped_after_it_is_not_missed():
    """A thread of the pool counts the task, acknowledges the message, and then sends task-started."""
    started_late = [(0, 0), (1,), (2, 2), (2.6,), (4, 2), (6, 2)]
    assert worker_after(*started_late).missed == 0
    assert worker_after(*started_late, (7,), (8, 9), (10, 9)).missed == 6


def test_missed_events_between_frequent_starts_are_counted_late_and_completely():
    """One of nine starts is lost. Five are so close to a heartbeat that it may have counted them."""
    moments = [
        moment
        for beat in range(10)
        for moment in ((2 * beat, 9 * beat), *((2 * beat + n / 5,) for n in range(1, 9)))
    ]
    assert worker_after(*moments).missed == 6
    assert worker_after(*moments, (20, 90), (22, 90)).missed == 10


def test_processed_tasks_without_task_started_are_missed():
    worker = worker_after((0, 0), (1,), (2, 1), (3,), (4, 11), (6, 11))
    assert worker.missed == 9
    assert worker.events is True


def test_events_before_the_first_heartbeat_do_not_reduce_missed_events():
    assert worker_after((10, 100), (9,), (9.5,), (11,), (12, 103), (14, 103)).missed == 2


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
        ([(0, 0), (2, 5), (4, 9)], False),
        ([(0, 0), (1,), (2, 1), (4, 5), (6, 9)], True),  # the starts may have been lost
        ([(0, 0), (1,), (2, 1), (4, 5), (6, 9), (8, 12)], False),
        ([(0, 0), (1,), (2, 1), (4, 5), (6, 9), (7,), (8, 12), (10, 13), (12, 14)], True),  # enabled again
    ],
)
def test_task_events_count_as_off_after_some_heartbeats_with_work_and_without_events(beats, events):
    assert worker_after(*beats).events is events


def test_the_first_process_of_a_worker_is_no_restart():
    assert worker_after((0, 0), (2, 0)).restarts == 0


def test_a_restart_is_detected_by_the_pid_and_processed_tasks_add_up():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=10), heartbeat(at=2, processed=12))
    driver.apply(heartbeat(at=9, kind="online", pid=2, processed=0), heartbeat(at=11, pid=2, processed=3))
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total) == (1, 15)
    assert worker.missed == 0


def test_a_restart_after_a_kill_is_detected_if_the_next_process_goes_offline_soon():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=10), heartbeat(at=9, kind="online", pid=2, processed=0))
    driver.apply(heartbeat(at=10, kind="offline", pid=2, processed=3))
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total) == (1, 13)


def test_the_processed_total_is_limited_to_what_a_sample_holds():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0))
    driver.cluster.workers["w@h"].processed_total = 2**53 - 2**39  # after many restarts
    driver.apply(*(heartbeat(at=at, processed=0 if at % 2 else 2**39) for at in range(1, 5)))
    assert driver.cluster.workers["w@h"].processed_total == 2**53


def test_a_restart_with_the_same_pid_is_detected_by_the_processed_count():
    driver = ClusterDriver()
    for at, processed in ((0, 50), (2, 100), (9, 5), (11, 7)):
        driver.apply(heartbeat(at=at, processed=processed))
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total) == (1, 107)


def test_worker_offline_of_the_previous_process_changes_nothing():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=1000), heartbeat(at=2, kind="online", pid=2, processed=0))
    driver.apply(heartbeat(at=3, kind="offline", pid=1, processed=1000), heartbeat(at=4, pid=2, processed=3))
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total, worker.up) == (1, 1003, True)


def test_worker_online_with_a_reused_pid_is_a_new_process():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=9), heartbeat(at=2, kind="online", pid=2, processed=0))
    driver.apply(heartbeat(at=4, pid=2, processed=5), heartbeat(at=6, kind="online", pid=1, processed=0))
    driver.apply(heartbeat(at=8, pid=1, processed=2))
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total) == (2, 16)


def test_two_processes_of_one_name_are_counted_separately():
    driver = ClusterDriver()
    for at in range(10):
        driver.apply(heartbeat(at=at, pid=at % 2, processed=1000 * (1 + at % 2)))
    assert driver.cluster.workers["w@h"].processed_total == 3000
    assert driver.cluster.workers["w@h"].restarts == 0


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


# -- several processes of one name -----------------------------------------------------------------------


def alternate(driver, *counts, rounds=4, period=2.0, pids=(1, 1, 1)):
    """Apply heartbeats of processes in turn, spread over the period; return the worker."""
    for _ in range(rounds):
        for pid, count in zip(pids[: len(counts)], counts, strict=True):
            driver.apply(heartbeat(at=driver.now, processed=count, pid=pid))
            driver.wait(period / len(counts))
    return driver.cluster.workers["w@h"]


@pytest.mark.parametrize("pids", [(1, 1, 1), (7, 8, 9)])
@pytest.mark.parametrize("counts", [(140, 60), (60, 140), (140, 60, 20), (5, 4)])
def test_processes_of_one_name_are_not_counted_twice(counts, pids):
    driver = ClusterDriver()
    worker = alternate(driver, *(0 for _ in counts), pids=pids)
    worker = alternate(driver, *counts, pids=pids)
    before = worker.restarts
    worker = alternate(driver, *counts, rounds=20, pids=pids)
    assert (worker.processed_total, worker.restarts, worker.missed) == (sum(counts), before, 0)
    assert worker.shared
    worker = alternate(driver, *(count + 9 for count in counts), pids=pids)
    assert worker.processed_total == sum(counts) + 9 * len(counts)


@pytest.mark.parametrize("last", ["offline", None])
@pytest.mark.parametrize("pids", [(1, 1), (7, 8)])
def test_a_shared_name_with_one_process_left_is_not_shared(pids, last):
    driver = ClusterDriver()
    alternate(driver, 140, 60, pids=pids)
    if last is not None:
        driver.apply(heartbeat(at=driver.now, kind=last, processed=60, pid=pids[1]))
    worker = alternate(driver, 140, pids=pids, rounds=8)
    assert (worker.shared, worker.up, worker.processed_total) == (False, True, 200)
    worker = alternate(driver, 150, pids=pids)
    assert (worker.shared, worker.processed_total, worker.restarts) == (False, 210, 0)


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


@pytest.mark.parametrize("pid", [1, 2])
@pytest.mark.parametrize("offline", [True, False])
def test_a_worker_that_restarts_repeatedly_is_one_process_at_a_time(offline, pid):
    """Each process runs a few more tasks than the one before, so that they are hard to distinguish."""
    driver = ClusterDriver()
    for number in range(1, 9):
        process = {"pid": 1 + number * (pid - 1)}
        driver.apply(heartbeat(at=driver.now, kind="online", processed=0, **process))
        for beat in (1, 2):
            driver.wait(2)
            driver.apply(heartbeat(at=driver.now, processed=number * beat, **process))
        if offline:
            driver.apply(heartbeat(at=driver.now, kind="offline", processed=number * 2, **process))
        driver.wait(3)
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total, worker.shared) == (7, 72, False)


class SharedName:
    """Simulates the heartbeats of processes that run under one name at the same time.

    As with Celery's timer, no heartbeat is early, and each is some milliseconds late.
    """

    def __init__(self, counts, pids, *, rate=1, skews=None, seed=0, period=2.0):
        self.driver, self.random, self.period = ClusterDriver(), Random(seed), period
        self.counts, self.pids, self.rate = list(counts), pids, rate
        self.skews = skews or [0.0] * len(counts)
        self.reported = [0] * len(counts)  # the last count of each process
        self.due = [
            (self.driver.now + self.random.uniform(0, period), process) for process in range(len(counts))
        ]
        heapq.heapify(self.due)

    @property
    def worker(self):
        return self.driver.cluster.workers["w@h"]

    def be_silent(self, seconds):
        """Delay the next heartbeats of all processes."""
        self.due = [(at + seconds, process) for at, process in self.due]

    def beat(self, **fields):
        """Apply the next heartbeat."""
        at, process = heapq.heappop(self.due)
        self.driver.now = at
        self.driver.cluster.expire(self.driver.timestamp())
        self.counts[process] += self.random.randint(0, self.rate)
        self.reported[process] = self.counts[process]
        heapq.heappush(self.due, (at + self.period + self.random.uniform(0, 0.02), process))
        sender = {"pid": self.pids[process], "processed": self.counts[process], "freq": self.period}
        self.driver.apply(heartbeat(at=at + self.skews[process], **sender, **fields))

    def run(self, rounds, beats=0):
        """Apply `rounds` heartbeats of each process, and `beats` more; no task is counted twice."""
        for _ in range(rounds * len(self.counts) + beats):
            before = self.worker.processed_total if any(self.reported) else 0
            self.beat()
            assert before <= self.worker.processed_total <= sum(self.reported)


shared_names = st.integers(2, 4).flatmap(
    lambda size: st.fixed_dictionaries(
        {
            "counts": st.lists(
                st.sampled_from([0, 3, 100_000]).flatmap(lambda base: st.integers(base, base + 30)),
                min_size=size,
                max_size=size,
            ),
            "rate": st.sampled_from([0, 1, 9, 400]),
            "seed": st.integers(0, 2**32),
            "period": st.sampled_from([2.0, 2.0, 7.5]),
        }
    )
)
skews = st.lists(st.sampled_from([0.0, 0.0, 0.7, -5.3, 61.0]), min_size=4, max_size=4)


@settings(max_examples=150)
@given(shared_names, skews)
def test_invariant_processes_with_one_pid_are_never_counted_twice(options, skews):
    name = SharedName(**options, skews=skews, pids=[1] * 4)
    name.run(20)
    assert name.worker.shared or any(skews)  # a clock that is far ahead may hide a process
    assert name.worker.restarts == 0
    assert name.worker.processed_total >= max(name.reported)
    assert name.worker.missed == 0


@settings(max_examples=150)
@given(shared_names, st.integers(0, 9), st.sampled_from([2, 2.5, 5, 35]))
def test_invariant_no_process_is_gone_after_a_common_silence(options, beats, periods):
    name = SharedName(**options, pids=[1] * 4)
    name.run(3, beats)  # so that the name counts as shared
    name.be_silent(periods * name.period)
    name.run(20)
    assert name.worker.processed_total >= max(name.reported)
    assert name.worker.shared
    assert name.worker.restarts == 0 or len(name.counts) > 2  # three or more may be mistaken for each other


@settings(max_examples=100)
@given(shared_names, skews)
def test_invariant_processes_with_a_pid_each_are_counted_in_full(options, skews):
    name = SharedName(**options, skews=skews, pids=[7, 8, 9, 10])
    name.run(12)
    assert name.worker.processed_total == sum(name.reported)
    assert name.worker.shared
    assert name.worker.restarts == 0


@settings(max_examples=100)
@given(st.permutations([100, 40_000, 90_000, 900_000]), st.integers(2, 4), st.integers(0, 2**32))
def test_invariant_processes_with_one_pid_and_counts_far_apart_are_counted_in_full(counts, size, seed):
    name = SharedName(counts[:size], rate=9, pids=[1] * 4, seed=seed)
    name.run(20)
    assert name.worker.processed_total == sum(name.reported)
    assert name.worker.restarts == 0


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("apart", [0, 3, 20])
def test_processes_with_one_pid_and_similar_load_are_distinguished(apart, seed):
    name = SharedName([100_000, 100_000 + apart], pids=[1, 1], seed=seed)
    name.run(300)
    assert sum(name.reported) - name.worker.processed_total <= 1
    assert (name.worker.shared, name.worker.restarts) == (True, 0)


def test_processes_that_overtake_one_another_are_counted_once_each():
    driver, counts = ClusterDriver(), [100_000, 100_300, 99_500]
    for _ in range(60):
        for process in range(3):
            counts[process] += process + 1
            driver.apply(heartbeat(at=driver.now, processed=counts[process]))
            driver.wait(0.66)
    worker = driver.cluster.workers["w@h"]
    assert sum(counts) - 6 <= worker.processed_total <= sum(counts)
    assert (worker.shared, worker.restarts) == (True, 0)


@pytest.mark.parametrize("pids", [(1, 1, 1, 1), (7, 8, 9, 10)])
def test_processes_beyond_the_limit_are_not_counted(pids):
    name = SharedName([1000 * number for number in range(1, 13)], pids=pids * 3, rate=9)
    name.run(30)
    assert (name.worker.shared, name.worker.restarts) == (True, 0)


@pytest.mark.parametrize("pids", [(1, 1, 1), (7, 8, 9)])
def test_a_process_of_a_shared_name_that_is_killed_and_replaced_is_one_restart(pids):
    driver = ClusterDriver()
    alternate(driver, 140, 9_000, pids=pids)
    driver.wait(20)
    worker = alternate(driver, 9_000, 5, pids=pids[1:], rounds=12)
    assert (worker.processed_total, worker.restarts, worker.shared) == (9_145, 1, True)


@pytest.mark.parametrize("count", [0, 100_000])
def test_one_early_heartbeat_is_not_another_process(count):
    """The clock of the worker was set back, and events were delayed."""
    driver = ClusterDriver()
    for at in (0, 2, 4, 4.5, 6.5, 8.5, 10.5, 12.5):
        driver.apply(heartbeat(at=at, processed=count + int(at)))
    worker = driver.cluster.workers["w@h"]
    assert (worker.processed_total, worker.restarts, worker.shared) == (count + 12, 0, False)
    assert worker.active == 0


def test_a_worker_with_one_early_heartbeat_is_down_after_worker_offline():
    driver = ClusterDriver()
    driver.apply(heartbeat(kind="online", processed=3), heartbeat(at=0.1, processed=3))
    driver.wait(2)
    driver.apply(heartbeat(at=2, processed=4), heartbeat(at=2.5, kind="offline", processed=4))
    assert not driver.cluster.workers["w@h"].up


@pytest.mark.parametrize("every", [4.1, 20])
@pytest.mark.parametrize("pids", [(1, 1), (5, 9)])
def test_a_process_is_replaced_by_one_whose_heartbeats_are_slow(pids, every):
    """A solo worker sends heartbeats only between two tasks."""
    driver = ClusterDriver()
    for _ in range(5):
        driver.apply(heartbeat(at=driver.now, processed=5, pid=pids[0]))
        driver.wait(2)
    driver.wait(1)
    driver.apply(heartbeat(at=driver.now, kind="online", processed=0, pid=pids[1]))
    for count in (1, 2, 3):
        driver.wait(every)
        driver.apply(heartbeat(at=driver.now, processed=count, pid=pids[1]))
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total, worker.shared) == (1, 8, False)
    driver.apply(heartbeat(at=driver.now, kind="offline", processed=3, pid=pids[1]))
    assert not worker.up


@pytest.mark.parametrize("every", [4.1, 20])
@pytest.mark.parametrize("pids", [(1, 1), (5, 9)])
def test_a_shared_name_with_one_slow_process_left_is_not_shared(pids, every):
    driver = ClusterDriver()
    alternate(driver, 140, 60, pids=pids, rounds=6)
    for count in range(60, 60 + int(200 / every)):
        driver.wait(every)
        driver.apply(heartbeat(at=driver.now, processed=count, pid=pids[1]))
    worker = driver.cluster.workers["w@h"]
    assert (worker.shared, worker.processed_total) == (False, 140 + count)


@pytest.mark.parametrize("pid", [1, 2])
def test_a_worker_that_is_killed_as_soon_as_it_comes_up_restarts_each_time(pid):
    driver = ClusterDriver()
    for number in range(6):
        driver.apply(
            heartbeat(at=driver.now, kind="online", processed=6 - number, pid=1 + number * (pid - 1))
        )
        driver.wait(6)
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total, worker.shared) == (5, 21, False)


def test_worker_offline_of_one_of_several_processes_is_counted():
    driver = ClusterDriver()
    alternate(driver, 140, 60, pids=(7, 8))
    driver.apply(heartbeat(at=driver.now, kind="offline", processed=143, pid=7))
    worker = driver.cluster.workers["w@h"]
    assert (worker.processed_total, worker.up, worker.restarts) == (203, True, 0)


def test_solo_processes_with_one_pid_are_counted_without_delay():
    """Solo workers are silent while they run a task."""
    driver = ClusterDriver()
    driver.apply(heartbeat(processed=0))
    driver.cluster.record_inspection({"w@h": WorkerInfo(pool="solo")}, driver.timestamp())
    worker = alternate(driver, 14, 6, rounds=5)
    driver.wait(1)
    assert (worker.processed_total, worker.restarts, worker.shared) == (20, 0, True)
    worker = alternate(driver, 14, 14, rounds=5)
    assert (worker.processed_total, worker.restarts, worker.shared) == (28, 0, True)


def beats(driver, pid, processed, first, count=4):
    driver.wait(0.5)
    for number in range(count):
        driver.apply(heartbeat(at=first + 2 * number, pid=pid, processed=processed))
        driver.wait(2)


def test_tasks_of_a_process_that_started_while_the_exporter_was_down_are_missed():
    driver = ClusterDriver()
    beats(driver, 1, 0, 0, 1)
    driver.apply(started("a", at=1, pid=1), started("b", at=1.5, pid=1))
    beats(driver, 1, 2, 2, 2)
    new = restarted(driver, away=60)
    beats(new, 2, 500, 70)
    worker = new.cluster.workers["w@h"]
    assert (worker.missed, worker.restarts, worker.processed_total) == (500, 1, 502)
    beats(new, 2, 510, 80)
    assert new.cluster.workers["w@h"].missed == 510


def test_starts_of_a_new_process_before_its_first_heartbeat_are_not_missed():
    driver = ClusterDriver()
    beats(driver, 1, 7, 0, 2)
    driver.apply(*(started(f"u{n}", at=3 + n / 10, pid=2) for n in range(5)))
    beats(driver, 2, 6, 5)
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
