"""Missed events: what a worker's `processed` count says against the started events that came."""

from __future__ import annotations

import heapq
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_exporter.core.workers import WorkerInfo
from unit.persistence.test_state import restarted

from .cluster_driver import ClusterDriver, heartbeat, sent, started


def told(*pairs):
    """Tell heartbeats and started events: (at, processed) or (at,); return the worker."""
    driver = ClusterDriver()
    for number, (at, *processed) in enumerate(pairs):
        driver.apply(heartbeat(at=at, processed=processed[0]) if processed else started(f"u{number}", at=at))
    return driver.cluster.workers["w@h"]


def test_nothing_is_missed_while_all_events_come():
    worker = told((0, 5), (1,), (1.5,), (2, 7), (3,), (4, 8), (6, 8))
    assert (worker.missed, worker.events, worker.processed_total) == (0, True, 8)
    assert worker.restarts == 0


def test_a_heartbeat_that_overtakes_buffered_events_is_no_loss():
    assert told((0, 0), (2, 2), (1.9,), (1.95,), (4, 2), (6, 2)).missed == 0
    assert told((0, 0), (2, 2), (1.9,), (4, 2), (6, 2)).missed == 1


@pytest.mark.parametrize("start_first", [True, False])
def test_a_start_between_the_count_and_the_time_of_the_first_heartbeat_is_not_missed(start_first):
    """A thread of the pool may have had its turn there: in no `processed` yet, and with an earlier time."""
    first = [(1.99,), (2, 10)] if start_first else [(2, 10), (1.99,)]
    assert told(*first, (4, 11), (6, 11)).missed == 0
    assert told(*first, (4, 13), (6, 13)).missed == 3, "more than it can explain"


def test_each_start_that_may_have_been_counted_explains_one():
    first = [(2, 10), (1.95,), (1.99,)]
    assert told(*first, (4, 12), (6, 12)).missed == 0
    assert told(*first, (4, 13), (6, 13)).missed == 3


def test_a_start_that_was_counted_before_a_heartbeat_and_stamped_after_it_is_not_missed():
    """A thread of the pool counts, acknowledges the message, and only then says that it started."""
    started_late = [(0, 0), (1,), (2, 2), (2.6,), (4, 2), (6, 2)]
    assert told(*started_late).missed == 0
    assert told(*started_late, (7,), (8, 9), (10, 9)).missed == 6


def test_what_is_missed_while_starts_come_all_the_time_is_told_late_and_in_full():
    """One in nine is lost, and five of each beat come so soon after it that it may have counted them."""
    busy = [
        moment
        for beat in range(10)
        for moment in ((2 * beat, 9 * beat), *((2 * beat + n / 5,) for n in range(1, 9)))
    ]
    assert told(*busy).missed == 6
    assert told(*busy, (20, 90), (22, 90)).missed == 10


def test_what_the_worker_processed_and_we_did_not_hear_of_is_missed():
    worker = told((0, 0), (1,), (2, 1), (3,), (4, 11), (6, 11))
    assert worker.missed == 9
    assert worker.events is True


def test_events_from_before_the_first_heartbeat_make_up_for_no_loss():
    assert told((10, 100), (9,), (9.5,), (11,), (12, 103), (14, 103)).missed == 2


def test_a_worker_without_task_events_misses_none_and_says_so():
    worker = told((0, 0), (2, 5), (4, 9), (6, 12), (8, 20))
    assert (worker.missed, worker.events) == (0, False)


def test_events_that_are_switched_on_count_from_then_on():
    worker = told((0, 0), (2, 5), (4, 9), (6, 12), (7,), (8, 13), (9,), (10, 14), (12, 14))
    assert (worker.missed, worker.events) == (0, True)


@pytest.mark.parametrize(
    ("beats", "events"),
    [
        ([(0, 5), (2, 5), (4, 5)], None),  # an idle worker proves nothing
        ([(0, 0), (2, 5)], None),  # the heartbeat may have overtaken the event
        ([(0, 0), (2, 5), (4, 9)], False),
        ([(0, 0), (1,), (2, 1), (4, 5), (6, 9)], True),  # they may have been lost
        ([(0, 0), (1,), (2, 1), (4, 5), (6, 9), (8, 12)], False),
        ([(0, 0), (1,), (2, 1), (4, 5), (6, 9), (7,), (8, 12), (10, 13), (12, 14)], True),  # anew
    ],
)
def test_a_worker_that_works_and_sends_no_task_events_for_some_heartbeats_has_them_off(beats, events):
    assert told(*beats).events is events


def test_a_worker_that_was_just_heard_of_has_not_restarted():
    assert told((0, 0), (2, 0)).restarts == 0


def test_a_restart_is_seen_by_its_pid_and_processed_goes_on():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=10), heartbeat(at=2, processed=12))
    driver.apply(heartbeat(at=9, kind="online", pid=2, processed=0), heartbeat(at=11, pid=2, processed=3))
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total) == (1, 15)
    assert worker.missed == 0


def test_a_restart_after_a_kill_is_seen_though_the_next_process_soon_says_goodbye():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=10), heartbeat(at=9, kind="online", pid=2, processed=0))
    driver.apply(heartbeat(at=10, kind="offline", pid=2, processed=3))
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total) == (1, 13)


def test_a_worker_that_lies_about_its_tasks_counts_no_more_than_a_sample_holds():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0))
    driver.cluster.workers["w@h"].processed_total = 2**53 - 2**39  # after so many restarts
    driver.apply(*(heartbeat(at=at, processed=0 if at % 2 else 2**39) for at in range(1, 5)))
    assert driver.cluster.workers["w@h"].processed_total == 2**53


def test_a_restart_in_a_container_where_the_pid_is_always_1_is_seen_by_its_count():
    driver = ClusterDriver()
    for at, processed in ((0, 50), (2, 100), (9, 5), (11, 7)):
        driver.apply(heartbeat(at=at, processed=processed))
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total) == (1, 107)


def test_the_last_words_of_the_process_before_count_for_nothing():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=1000), heartbeat(at=2, kind="online", pid=2, processed=0))
    driver.apply(heartbeat(at=3, kind="offline", pid=1, processed=1000), heartbeat(at=4, pid=2, processed=3))
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total, worker.up) == (1, 1003, True)


def test_a_process_whose_pid_was_used_before_is_another_one_when_it_says_so():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=9), heartbeat(at=2, kind="online", pid=2, processed=0))
    driver.apply(heartbeat(at=4, pid=2, processed=5), heartbeat(at=6, kind="online", pid=1, processed=0))
    driver.apply(heartbeat(at=8, pid=1, processed=2))
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total) == (2, 16)


def test_two_processes_of_one_name_do_not_count_each_other():
    driver = ClusterDriver()
    for at in range(10):
        driver.apply(heartbeat(at=at, pid=at % 2, processed=1000 * (1 + at % 2)))
    assert driver.cluster.workers["w@h"].processed_total == 3000
    assert driver.cluster.workers["w@h"].restarts == 0


def test_a_forced_heartbeat_without_active_leaves_what_was_known():
    driver = ClusterDriver()
    driver.apply(heartbeat(active=3))
    driver.apply(
        {"hostname": "w@h", "freq": 5, "timestamp": heartbeat()["timestamp"], "type": "worker-heartbeat"}
    )
    assert driver.cluster.workers["w@h"].active == 3


def test_skew_is_the_least_delayed_event_of_the_last_minutes():
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
    driver.apply(heartbeat(at=driver.now))  # its clock was set right
    driver.wait(61)
    driver.apply(heartbeat(at=driver.now))
    assert driver.cluster.workers["w@h"].clock_skew == 0


def test_the_started_event_of_a_sent_task_counts_as_heard():
    driver = ClusterDriver()
    driver.apply(heartbeat(at=0, processed=0), sent("u"), started("u", at=1), heartbeat(at=2, processed=1))
    driver.apply(heartbeat(at=4, processed=1))
    assert driver.cluster.workers["w@h"].missed == 0


# -- several processes of one name -----------------------------------------------------------------------


def alternate(driver, *counts, rounds=4, period=2.0, pids=(1, 1, 1)):
    """Tell heartbeats of processes in turn, each a part of the period after the one before."""
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
def test_a_name_that_one_process_is_left_of_is_as_any_other(pids, last):
    driver = ClusterDriver()
    alternate(driver, 140, 60, pids=pids)
    if last is not None:
        driver.apply(heartbeat(at=driver.now, kind=last, processed=60, pid=pids[1]))
    worker = alternate(driver, 140, pids=pids, rounds=8)
    assert (worker.shared, worker.up, worker.processed_total) == (False, True, 200)
    worker = alternate(driver, 150, pids=pids)
    assert (worker.shared, worker.processed_total, worker.restarts) == (False, 210, 0)


def test_what_the_processes_of_a_name_do_now_is_added_up():
    driver = ClusterDriver()
    for _ in range(4):
        for pid, active in ((1, 3), (2, 0)):
            driver.apply(heartbeat(at=driver.now, pid=pid, active=active))
            driver.wait(1)
    assert driver.cluster.workers["w@h"].active == 3


def test_a_name_whose_processes_miss_no_event_misses_none():
    driver = ClusterDriver()
    for number in range(1, 9):
        for pid in (1, 2):
            driver.apply(started(f"{pid}-{number}", at=driver.now, pid=pid))
            driver.apply(heartbeat(at=driver.now + 0.5, processed=number * pid, pid=pid))
            driver.wait(1)
    worker = driver.cluster.workers["w@h"]
    assert (worker.missed, worker.events) == (0, True)


@pytest.mark.parametrize("pid", [1, 2])
@pytest.mark.parametrize("goodbye", [True, False])
def test_a_worker_that_restarts_again_and_again_is_one_process_at_a_time(goodbye, pid):
    """Each process does a little more than the one before, which is when they may be mixed up."""
    driver = ClusterDriver()
    for number in range(1, 9):
        one = {"pid": 1 + number * (pid - 1)}
        driver.apply(heartbeat(at=driver.now, kind="online", processed=0, **one))
        for beat in (1, 2):
            driver.wait(2)
            driver.apply(heartbeat(at=driver.now, processed=number * beat, **one))
        if goodbye:
            driver.apply(heartbeat(at=driver.now, kind="offline", processed=number * 2, **one))
        driver.wait(3)
    worker = driver.cluster.workers["w@h"]
    assert (worker.restarts, worker.processed_total, worker.shared) == (7, 72, False)


class Crowd:
    """Processes of one name that run at the same time, as their heartbeats show them.

    Celery's timer lets no heartbeat come early, and each one some milliseconds late.
    """

    def __init__(self, counts, pids, *, rate=1, skews=None, seed=0, period=2.0):
        self.expanded, self.random, self.period = ClusterDriver(), Random(seed), period
        self.counts, self.pids, self.rate = list(counts), pids, rate
        self.skews = skews or [0.0] * len(counts)
        self.told = [0] * len(counts)  # what each one said that it processed
        self.due = [(self.expanded.now + self.random.uniform(0, period), one) for one in range(len(counts))]
        heapq.heapify(self.due)

    @property
    def worker(self):
        return self.expanded.cluster.workers["w@h"]

    def be_silent(self, seconds):
        """Let no heartbeat of anybody come for so long, though all run."""
        self.due = [(at + seconds, one) for at, one in self.due]

    def beat(self, **fields):
        """Tell the next heartbeat."""
        at, one = heapq.heappop(self.due)
        self.expanded.now = at
        self.expanded.cluster.expire(self.expanded.moment())
        self.counts[one] += self.random.randint(0, self.rate)
        self.told[one] = self.counts[one]
        heapq.heappush(self.due, (at + self.period + self.random.uniform(0, 0.02), one))
        there = {"pid": self.pids[one], "processed": self.counts[one], "freq": self.period}
        self.expanded.apply(heartbeat(at=at + self.skews[one], **there, **fields))

    def run(self, rounds, beats=0):
        """Tell so many heartbeats of each, or in all; no task may be counted twice, or taken back."""
        for _ in range(rounds * len(self.counts) + beats):
            before = self.worker.processed_total if any(self.told) else 0
            self.beat()
            assert before <= self.worker.processed_total <= sum(self.told)


crowds = st.integers(2, 4).flatmap(
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
@given(crowds, skews)
def test_invariant_processes_with_one_pid_are_never_counted_twice(crowd, skews):
    told = Crowd(**crowd, skews=skews, pids=[1] * 4)
    told.run(20)
    assert told.worker.shared or any(skews)  # a clock that is far ahead may hide a process
    assert told.worker.restarts == 0
    assert told.worker.processed_total >= max(told.told)
    assert told.worker.missed == 0


@settings(max_examples=150)
@given(crowds, st.integers(0, 9), st.sampled_from([2, 2.5, 5, 35]))
def test_invariant_nobody_is_gone_while_nobody_is_heard(crowd, beats, periods):
    told = Crowd(**crowd, pids=[1] * 4)
    told.run(3, beats)  # so that they are known to be several
    told.be_silent(periods * told.period)
    told.run(20)
    assert told.worker.processed_total >= max(told.told)
    assert told.worker.shared
    assert told.worker.restarts == 0 or len(told.counts) > 2  # of several, some may be taken for one another


@settings(max_examples=100)
@given(crowds, skews)
def test_invariant_processes_with_a_pid_each_are_counted_in_full(crowd, skews):
    told = Crowd(**crowd, skews=skews, pids=[7, 8, 9, 10])
    told.run(12)
    assert told.worker.processed_total == sum(told.told)
    assert told.worker.shared
    assert told.worker.restarts == 0


@settings(max_examples=100)
@given(st.permutations([100, 40_000, 90_000, 900_000]), st.integers(2, 4), st.integers(0, 2**32))
def test_invariant_processes_with_one_pid_and_counts_far_apart_are_counted_in_full(counts, size, seed):
    told = Crowd(counts[:size], rate=9, pids=[1] * 4, seed=seed)
    told.run(20)
    assert told.worker.processed_total == sum(told.told)
    assert told.worker.restarts == 0


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("apart", [0, 3, 20])
def test_processes_with_one_pid_and_nearly_the_same_load_are_told_apart(apart, seed):
    told = Crowd([100_000, 100_000 + apart], pids=[1, 1], seed=seed)
    told.run(300)
    assert sum(told.told) - told.worker.processed_total <= 1
    assert (told.worker.shared, told.worker.restarts) == (True, 0)


def test_processes_that_overtake_one_another_are_counted_once_each():
    driver, counts = ClusterDriver(), [100_000, 100_300, 99_500]
    for _ in range(60):
        for one in range(3):
            counts[one] += one + 1
            driver.apply(heartbeat(at=driver.now, processed=counts[one]))
            driver.wait(0.66)
    worker = driver.cluster.workers["w@h"]
    assert sum(counts) - 6 <= worker.processed_total <= sum(counts)
    assert (worker.shared, worker.restarts) == (True, 0)


@pytest.mark.parametrize("pids", [(1, 1, 1, 1), (7, 8, 9, 10)])
def test_more_processes_than_are_told_apart_are_counted_too_low(pids):
    told = Crowd([1000 * one for one in range(1, 13)], pids=pids * 3, rate=9)
    told.run(30)
    assert (told.worker.shared, told.worker.restarts) == (True, 0)


@pytest.mark.parametrize("pids", [(1, 1, 1), (7, 8, 9)])
def test_a_process_of_a_shared_name_that_is_killed_and_replaced_is_one_restart(pids):
    driver = ClusterDriver()
    alternate(driver, 140, 9_000, pids=pids)
    driver.wait(20)
    worker = alternate(driver, 9_000, 5, pids=pids[1:], rounds=12)
    assert (worker.processed_total, worker.restarts, worker.shared) == (9_145, 1, True)


@pytest.mark.parametrize("count", [0, 100_000])
def test_one_heartbeat_too_early_is_no_other_process(count):
    """The clock of the worker was set back, and events came late."""
    driver = ClusterDriver()
    for at in (0, 2, 4, 4.5, 6.5, 8.5, 10.5, 12.5):
        driver.apply(heartbeat(at=at, processed=count + int(at)))
    worker = driver.cluster.workers["w@h"]
    assert (worker.processed_total, worker.restarts, worker.shared) == (count + 12, 0, False)
    assert worker.active == 0


def test_a_worker_one_heartbeat_of_which_came_too_early_is_down_when_it_says_goodbye():
    driver = ClusterDriver()
    driver.apply(heartbeat(kind="online", processed=3), heartbeat(at=0.1, processed=3))
    driver.wait(2)
    driver.apply(heartbeat(at=2, processed=4), heartbeat(at=2.5, kind="offline", processed=4))
    assert not driver.cluster.workers["w@h"].up


@pytest.mark.parametrize("every", [4.1, 20])
@pytest.mark.parametrize("pids", [(1, 1), (5, 9)])
def test_a_process_is_replaced_by_one_whose_heartbeats_are_slow(pids, every):
    """As those of a solo worker are, which sends one between two tasks."""
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
def test_a_name_that_one_slow_process_is_left_of_is_as_any_other(pids, every):
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


def test_last_words_of_one_of_several_processes_are_counted():
    driver = ClusterDriver()
    alternate(driver, 140, 60, pids=(7, 8))
    driver.apply(heartbeat(at=driver.now, kind="offline", processed=143, pid=7))
    worker = driver.cluster.workers["w@h"]
    assert (worker.processed_total, worker.up, worker.restarts) == (203, True, 0)


def test_processes_of_one_pid_that_may_be_silent_for_long_are_counted_as_soon():
    """As solo workers are, while they run a task."""
    driver = ClusterDriver()
    driver.apply(heartbeat(processed=0))
    driver.cluster.record_inspection({"w@h": WorkerInfo(pool="solo")}, driver.moment())
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


def test_what_a_process_did_that_replaced_another_while_nobody_listened_is_missed():
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


def test_what_was_heard_of_a_new_process_before_its_first_heartbeat_is_not_missed():
    driver = ClusterDriver()
    beats(driver, 1, 7, 0, 2)
    driver.apply(*(started(f"u{n}", at=3 + n / 10, pid=2) for n in range(5)))
    beats(driver, 2, 6, 5)
    assert driver.cluster.workers["w@h"].missed == 1


def test_what_a_process_did_before_it_was_heard_beside_another_one_is_not_missed():
    """Two of one name, of which one is heard first: the other one may have run for long before we did."""
    driver = ClusterDriver()
    for number in range(10):
        for pid, processed in ((1, 1_000), (2, 2_000)):
            driver.apply(started(f"u{number}-{pid}", at=2 * number + 0.1 * pid, pid=pid))
            driver.apply(heartbeat(at=2 * number + pid, pid=pid, processed=processed + number))
            driver.wait(1)
    assert driver.cluster.workers["w@h"].missed == 0


@pytest.mark.parametrize("back", [1.5, 60.0, 3_600.0])
@pytest.mark.parametrize("after", [2, 5, 20])
def test_a_clock_that_is_set_back_makes_nothing_missed(back, after):
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
