"""A new series is at 0 first, for every Prometheus server; and no page shows less than one before it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_exporter.metrics.exposition.series_tracker import (
    FIRST_CONTACT,
    MAX_SCRAPERS,
    PATIENCE,
    SeriesTracker,
    SeriesTrackerChanges,
    SeriesTrackerMemory,
)

WALL = 1.7e9


class Pages:
    """What servers see of some series, whose values only grow; `saved` as with a state file."""

    def __init__(self, *, saved: bool = False) -> None:
        self.now = 0.0
        self.values: dict[int, int] = {}
        self.memory = SeriesTrackerMemory()
        self.saved = saved
        self.tracker = SeriesTracker(self.now, WALL, is_saved=saved)
        self.seen: dict[str, list[dict[int, int]]] = {}
        if saved:
            self.save(everything=True)

    def scrape(self, scraper: str = "one", *, cut: bool = False, after: float = 15.0) -> dict[int, int]:
        """Return what a server sees, that many seconds after the last scrape."""
        self.now += after
        session = self.tracker.begin(scraper, self.now)
        page = {series: value if session.shows(series) else 0 for series, value in self.values.items()}
        if not cut:
            self.tracker.end(scraper, session, self.now)
        self.seen.setdefault(scraper, []).append(page)
        if self.saved:
            self.save()
        return page

    def save(self, *, everything: bool = False) -> None:
        self.write(everything=everything)
        self.tracker.confirm()

    def write(self, *, everything: bool = False) -> None:
        changes = self.tracker.changes(self.now, everything=everything)
        self.memory.take(msgspec.msgpack.decode(msgspec.msgpack.encode(changes), type=SeriesTrackerChanges))

    def restart(self, *, renamed: bool = False, away: float = 5.0) -> None:
        """Go on in another process, whose clock begins elsewhere."""
        self.now += away
        self.tracker = SeriesTracker(self.now, WALL + self.now, is_saved=True)
        self.tracker.restore(self.memory, self.now, WALL + self.now, renamed=renamed)
        self.memory = SeriesTrackerMemory()
        self.save(everything=True)


@pytest.fixture(params=[False, True], ids=["", "saved"])
def pages(request):
    found = Pages(saved=request.param)
    for _ in range(3):
        found.scrape()
    return found


def test_a_server_sees_a_new_series_at_0_once(pages):
    pages.values[1] = 5
    assert pages.scrape() == {1: 0}
    assert pages.scrape() == {1: 5}


def test_a_series_is_as_it_is_when_every_server_has_seen_it_at_0(pages):
    pages.scrape("two")
    pages.values[1] = 5
    assert pages.scrape("one") == {1: 0}
    assert pages.scrape("one") == {1: 0}
    assert pages.scrape("two") == {1: 0}
    assert pages.scrape("one") == pages.scrape("two") == {1: 5}


def test_one_that_does_not_come_again_is_not_waited_for_for_long(pages):
    pages.scrape("two")
    pages.values[1] = 5
    assert pages.scrape() == {1: 0}
    pages.scrape(after=PATIENCE)
    assert pages.scrape() == {1: 5}


def test_those_whose_address_changes_each_time_see_no_fall_and_the_count_after_a_while(pages):
    pages.values[1] = 5
    seen = [pages.scrape(f"address {number}")[1] for number in range(100)]
    assert seen == sorted(seen)
    assert seen.index(5) * 15.0 <= PATIENCE + 30.0


def test_more_servers_than_are_remembered_see_no_fall(pages):
    pages.values[1] = 5
    for _ in range(3):
        for number in range(MAX_SCRAPERS + 1):
            pages.scrape(f"server {number}", after=0.1)
    for seen in pages.seen.values():
        values = [page.get(1, 0) for page in seen]
        assert values == sorted(values)
        assert values.count(5) <= 1 or values[0] == 0, "each has seen it at 0"


def test_a_server_that_comes_alone_and_seldom_sees_it_at_0_once(pages):
    pages.scrape(after=300.0)
    pages.values[1] = 5
    assert pages.scrape(after=300.0) == {1: 0}
    assert pages.scrape(after=300.0) == {1: 5}


def test_a_page_that_was_cut_off_has_shown_nothing(pages):
    pages.values[1] = 5
    assert pages.scrape(cut=True) == {1: 0}
    assert pages.scrape() == {1: 0}
    assert pages.scrape() == {1: 5}


def test_before_anybody_has_come_often_another_one_may_come_for_the_first_time():
    pages = Pages()
    pages.values[1] = 5
    for scraper in ("one", "one", "two", "one"):
        assert pages.scrape(scraper) == {1: 0}
    assert pages.scrape("one") == pages.scrape("two") == {1: 5}


def test_one_that_is_just_reading_its_first_page_is_waited_for(pages):
    pages.scrape("two", cut=True)
    pages.values[1] = 5
    assert [pages.scrape("one"), pages.scrape("one"), pages.scrape("two")] == [{1: 0}] * 3
    assert pages.scrape("one") == {1: 5}


def test_a_series_that_was_gone_begins_at_0_again(pages):
    pages.values[1], pages.values[2] = 5, 5
    pages.scrape()
    assert pages.scrape() == {1: 5, 2: 5}
    del pages.values[2]
    pages.scrape()
    pages.values[2] = 1
    assert pages.scrape() == {1: 5, 2: 0}


def test_what_is_old_when_the_first_server_comes_is_no_news():
    pages = Pages()
    pages.values[1] = 5
    assert pages.scrape(after=FIRST_CONTACT + 1) == {1: 5}
    assert pages.scrape() == {1: 5}


def test_what_inherited_what_others_counted_is_no_news(pages):
    session = pages.tracker.begin("one", pages.now)
    assert not session.shows(1)
    session.show(1)
    pages.tracker.end("one", session, pages.now)
    assert pages.tracker.begin("one", pages.now).shows(1)


def test_what_was_shown_under_other_names_is_no_news():
    pages = Pages(saved=True)
    pages.values[1] = 5
    for _ in range(3):
        pages.scrape()
    pages.values = {2: 5}
    pages.restart(renamed=True)
    assert pages.scrape("one") == pages.scrape("two") == {2: 5}
    pages.values[3] = 1
    assert pages.scrape("two") == {2: 5, 3: 0}


def test_a_second_server_is_waited_for_after_a_restart():
    pages = Pages(saved=True)
    for scraper in ("one", "two") * 3:
        pages.scrape(scraper)
    pages.restart()
    pages.values[1] = 1
    assert [pages.scrape("one"), pages.scrape("one"), pages.scrape("two")] == [{1: 0}] * 3
    assert pages.scrape("one") == pages.scrape("two") == {1: 1}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("count"), st.integers(0, 3)),
        st.tuples(
            st.just("scrape"),
            st.tuples(st.sampled_from("abc"), st.booleans(), st.sampled_from([0.0, 1.0, 15.0, 130.0, 400.0])),
        ),
        st.tuples(st.just("save"), st.booleans()),
        st.tuples(st.just("kill"), st.sampled_from([0.0, 5.0, 400.0])),
    ),
    max_size=40,
)


@settings(max_examples=500)
@given(steps)
def test_invariant_no_page_shows_less_than_one_before_whoever_reads_them_and_whenever_it_is_killed(steps):
    pages = Pages(saved=True)
    shown: dict[int, int] = {}
    for step, value in steps:
        if step == "count":
            pages.values[value] = pages.values.get(value, 0) + 1
        elif step == "save":
            pages.write()
            if value:
                pages.tracker.confirm()
        elif step == "kill":
            pages.restart(away=value)
        else:
            scraper, cut, after = value
            pages.saved = not cut  # or it is killed before the next saving
            page = pages.scrape(scraper, cut=cut, after=after)
            assert all(page[series] >= was for series, was in shown.items())
            shown = page
