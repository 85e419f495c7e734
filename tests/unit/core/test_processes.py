"""Restarts, and several processes under one node name: which process sent a heartbeat, and what it adds."""

from __future__ import annotations

import heapq
import json
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_exporter.core.events import Event, decode
from celery_exporter.core.processes import Processes
from celery_exporter.core.types import Timestamp
from celery_exporter.core.workers import WorkerInfo

from .cluster_driver import T0, ClusterDriver, heartbeat


def test_the_first_process_of_a_worker_is_no_restart():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0), heartbeat(at=2))
    assert driver.cluster.workers["w@h"].restarts == 0


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


@example({"counts": [0] * 4, "rate": 9, "seed": 34422, "period": 2.0}, [0.0, 0.0, 0.7, 0.7])
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


def apply_at(driver, at, **fields):
    """Apply a worker event of which the timestamp and the listening time are `at`; return the worker."""
    driver.wait(at - driver.now)
    driver.apply(heartbeat(at=at, **fields))
    return driver.cluster.workers["w@h"]


def active_of_running(driver):
    """Return the active tasks that each running process reported, the one with the newest event last."""
    return [process.active for process in driver.cluster.workers["w@h"].processes.alive(driver.now, 10)]


@pytest.mark.parametrize(
    ("beats", "restarts"),
    [
        ([(0, 1), (1, 2), (6, 2)], 0),
        ([(0, 1), (1, 2), (3, 2), (8, 2)], 1),  # two heartbeats of process 2 without one of process 1
        ([(0, 1), (0.7, 2), (1.3, 3), (7, 3)], 0),
        ([(0, 1), (0.7, 2), (1.3, 3), (2.7, 2), (3.3, 3), (10.5, 3)], 1),
        ([(0, 1), (1, 2), (3.5, 2), (5, 2)], 1),  # discounts 1 s of 2.5 s
        ([(0, 1), (1, 2), (3.6, 2), (5.1, 2)], 0),  # discounts 1.2 s of 2.6 s
        ([(0, 1), (1, 2), (3, 2), (4.6, 2)], 1),  # discounts nothing
    ],
)
def test_a_silence_of_all_processes_of_a_name_is_not_counted_against_one(beats, restarts):
    """A process is silent for too long after two periods, or after 10 s beside others that run."""
    driver = ClusterDriver()
    for at, pid in beats:
        worker = apply_at(driver, 100 + at, pid=pid)
    assert worker.restarts == restarts


def test_a_process_that_left_is_not_awaited_after_a_common_silence():
    driver = ClusterDriver()
    for at, pid in ((0, 1), (0.7, 2), (1.3, 3)):
        apply_at(driver, 100 + at, pid=pid)
    apply_at(driver, 102, kind="offline", pid=1)
    apply_at(driver, 103.3, pid=3)
    worker = apply_at(driver, 109, pid=3)
    assert worker.restarts == 2


def test_a_process_of_a_shared_name_is_replaced_after_ten_seconds_of_silence():
    driver = ClusterDriver()
    start = driver.now + 8
    worker = alternate(driver, 0, 0, pids=(7, 8))  # the last heartbeat of process 8 is 1 s before the end
    restarts = []
    for at, pid in ((0, 7), (2, 7), (4, 7), (4.5, 9), (6, 7), (6.5, 9), (8, 7), (8.5, 9), (10, 7)):
        apply_at(driver, start + at, pid=pid)
        restarts.append(worker.restarts)
    assert restarts == [0] * 8 + [1]


def test_the_first_event_of_each_process_is_new():
    processes, is_new = Processes(), []
    for at, pid in enumerate((1, 1, 2, 1, 2)):
        (event,) = decode(json.dumps([heartbeat(at=2 * at, pid=pid)]).encode(), Event)
        is_new.append(processes.observe(event, Timestamp(2.0 * at, T0 + 2 * at), 2.0, 10.0).is_new)
    assert is_new == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("timestamp", "listening", "is_new"),
    [(1.4, 1.4, True), (1.5, 1.4, False), (1.4, 1.5, False), (1.5, 1.5, False)],
)
def test_a_heartbeat_within_three_quarters_of_a_period_is_of_another_process(timestamp, listening, is_new):
    processes = Processes()
    first, second = decode(json.dumps([heartbeat(), heartbeat(at=timestamp)]).encode(), Event)
    processes.observe(first, Timestamp(0.0, T0), 2.0, 10.0)
    assert processes.observe(second, Timestamp(listening, T0 + listening), 2.0, 10.0).is_new == is_new


def shared_by_two(driver):
    """Let two processes with pid 1 send heartbeats 0.3 s apart; the second one has processed more."""
    for at in range(100, 108, 2):
        apply_at(driver, at, processed=5, active=1)
        worker = apply_at(driver, at + 0.3, processed=900, active=3)
    assert (worker.shared, worker.active) == (True, 4)
    return worker


def test_a_heartbeat_is_of_the_process_whose_heartbeat_is_due():
    driver = ClusterDriver()
    worker = shared_by_two(driver)
    apply_at(driver, 108, processed=900, active=2)
    assert worker.active == 5
    apply_at(driver, 108.3, processed=901, active=7)
    assert worker.active == 9


def test_worker_offline_is_of_the_process_with_the_highest_count():
    driver = ClusterDriver()
    shared_by_two(driver)
    apply_at(driver, 108, processed=6, active=2)
    apply_at(driver, 109, kind="offline", processed=905, active=0)
    assert active_of_running(driver) == [2]


def test_worker_offline_adds_to_the_highest_count():
    driver = ClusterDriver()
    for at, kind, count in ((100, "heartbeat", 0), (100.3, "heartbeat", 1), (101, "offline", 5)):
        worker = apply_at(driver, at, kind=kind, processed=count)
    assert worker.processed_total == 5


@pytest.mark.parametrize("between", [1, 2])
def test_an_event_without_a_count_is_of_the_newest_process_with_its_pid(between):
    driver = ClusterDriver()
    for at in range(100, 108, 2):
        apply_at(driver, at, processed=900, active=1)
        apply_at(driver, at + 0.6, processed=8000, active=10, pid=between)
        worker = apply_at(driver, at + 1.2, processed=5, active=100)
    processed = worker.processed_total
    apply_at(driver, 107.5, processed=None, active=200)
    assert (worker.active, worker.restarts, worker.processed_total) == (211, 0, processed)


def test_the_active_tasks_are_those_of_the_newest_event_that_has_them():
    driver = ClusterDriver()
    active = [
        apply_at(driver, 100 + 2 * beat, active=count).active for beat, count in enumerate((3, 5, None, 1))
    ]
    assert active == [3, 5, 5, 1]


def test_a_name_whose_first_event_is_worker_offline_is_down():
    driver = ClusterDriver()
    worker = apply_at(driver, 100, kind="offline", processed=7)
    assert (worker.up, worker.processed_total, active_of_running(driver)) == (False, 7, [])


@pytest.mark.parametrize(("offline", "total"), [(None, 80), (1, 90), (8, 90)])
def test_a_ninth_process_is_counted_only_if_one_has_left(offline, total):
    driver = ClusterDriver()
    for pid in range(1, 9):
        worker = apply_at(driver, 100 + pid / 10, pid=pid, processed=10)
    if offline is not None:
        apply_at(driver, 101, kind="offline", pid=offline, processed=10)
    for beat in range(2):
        apply_at(driver, 101.1 + beat / 10, kind="online", pid=9, processed=10)
    assert worker.processed_total == total


@pytest.mark.parametrize(
    ("beats", "totals"),
    [
        ([(0, 5), (0.3, 900), (2, 5), (2.3, 900), (4, 5), (4.3, 900)], [5, 900, 900, 900, 900, 905]),
        ([(0, 5), (1, 900), (3, 900), (3.5, 5), (5, 900), (5.5, 5)], [5, 900, 900, 900, 900, 905]),
        ([(0, 5), (1, 900), (3, 900), (3.5, 5), (5, 5), (5.2, 900)], [5, 900, 900, 900, 900, 905]),
    ],
)
def test_a_process_that_only_the_time_distinguishes_counts_when_each_sent_two_more_events(beats, totals):
    driver = ClusterDriver()
    assert [apply_at(driver, 100 + at, processed=count).processed_total for at, count in beats] == totals


def test_a_process_beside_one_with_an_early_heartbeat_is_counted():
    """The heartbeat at 4.5 s is of the first process, whose clock was set."""
    driver = ClusterDriver()
    for at in (0, 2, 4, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5, 16.5, 18.5):
        apply_at(driver, 100 + at, processed=10)
        if at > 9:
            worker = apply_at(driver, 101 + at, processed=500)
    assert (worker.processed_total, worker.shared, worker.restarts) == (510, True, 0)


def test_one_process_replaces_one():
    driver = ClusterDriver()
    alternate(driver, 0, 0, pids=(7, 8))
    for pid in (7, 8):
        apply_at(driver, driver.now, kind="offline", pid=pid)
    restarts = [apply_at(driver, driver.now + 1, kind="online", pid=pid).restarts for pid in (9, 10, 11)]
    assert restarts == [1, 2, 2]


def test_two_processes_that_are_killed_and_replaced_at_the_same_time_are_two_restarts():
    driver = ClusterDriver()
    apply_at(driver, 100, pid=7)
    apply_at(driver, 100.5, pid=8)
    restarts = []
    for at in range(101, 113, 2):
        apply_at(driver, at, pid=9)
        restarts.append(apply_at(driver, at + 0.5, pid=10).restarts)
    assert restarts == [0, 0, 0, 0, 0, 2]


def test_a_name_is_shared_after_two_heartbeats_of_earlier_processes_until_one_is_left():
    driver = ClusterDriver()
    shared = [apply_at(driver, 100 + at, pid=7 + at % 2).shared for at in range(4)]
    worker = apply_at(driver, driver.now, kind="offline", pid=8)
    shared += [worker.shared, apply_at(driver, 104, pid=7).shared]
    shared += [apply_at(driver, 105 + at, pid=8 - at % 2).shared for at in range(2)]
    assert shared == [False, False, False, True, False, False, False, True]


def test_a_process_runs_until_it_is_silent_for_longer_than_the_limit():
    driver = ClusterDriver()
    processes = apply_at(driver, 100).processes
    assert [len(processes.alive(100 + silence, 10)) for silence in (0, 10, 10.5)] == [1, 1, 0]


def test_a_process_is_not_silent_while_the_exporter_is_away():
    driver = ClusterDriver()
    processes = apply_at(driver, 100).processes
    processes.restore(50.0)
    assert [len(processes.alive(100 + silence, 10)) for silence in (50, 60, 60.5)] == [1, 1, 0]
