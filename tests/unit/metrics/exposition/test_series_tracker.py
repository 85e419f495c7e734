"""New series are exposed at 0 first to every Prometheus server; no page shows less than an earlier one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_exporter.metrics.exposition.series_tracker import (
    FIRST_SCRAPE_SECONDS,
    MAX_SCRAPERS,
    MAX_WAIT_SECONDS,
    SeriesTracker,
    SeriesTrackerChanges,
    SeriesTrackerMemory,
)

WALL = 1.7e9


class Pages:
    """The pages that Prometheus servers read of some growing series; `saved`: with a state file."""

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
        """Return the page that a server reads, `after` seconds after the last scrape."""
        self.now += after
        session = self.tracker.begin(scraper, self.now)
        page = {series: 0 if session.needs_zero(series) else value for series, value in self.values.items()}
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

    def restart(self, *, names_changed: bool = False, away: float = 5.0) -> None:
        """Continue in another process."""
        self.now += away
        self.tracker = SeriesTracker(self.now, WALL + self.now, is_saved=True)
        self.tracker.restore(self.memory, self.now, WALL + self.now, names_changed=names_changed)
        self.memory = SeriesTrackerMemory()
        self.save(everything=True)


@pytest.fixture(params=[False, True], ids=["", "saved"])
def pages(request):
    pages = Pages(saved=request.param)
    for _ in range(3):
        pages.scrape()
    return pages


def test_new_series_is_exposed_at_0_once(pages):
    pages.values[1] = 5
    assert pages.scrape() == {1: 0}
    assert pages.scrape() == {1: 5}


@pytest.mark.parametrize(("scrapes_before", "zeros"), [(0, 3), (1, 2), (2, 1), (3, 1)])
@pytest.mark.parametrize("saved", [False, True])
def test_values_appear_from_the_fourth_scrape_after_the_start_on(scrapes_before, zeros, saved):
    """As docs/reference/endpoints.md says."""
    pages = Pages(saved=saved)
    for _ in range(scrapes_before):
        pages.scrape()
    pages.values[1] = 5
    assert [pages.scrape() for _ in range(zeros + 1)] == [{1: 0}] * zeros + [{1: 5}]


def test_series_is_opened_when_every_server_has_read_its_0(pages):
    pages.scrape("two")
    pages.values[1] = 5
    assert pages.scrape("one") == {1: 0}
    assert pages.scrape("one") == {1: 0}
    assert pages.scrape("two") == {1: 0}
    assert pages.scrape("one") == pages.scrape("two") == {1: 5}


def test_server_that_stops_scraping_is_awaited_for_a_limited_time(pages):
    pages.scrape("two")
    pages.values[1] = 5
    assert pages.scrape() == {1: 0}
    pages.scrape(after=MAX_WAIT_SECONDS)
    assert pages.scrape() == {1: 5}


def test_scrapes_from_changing_addresses_see_the_value_within_the_limit_and_no_fall(pages):
    pages.values[1] = 5
    seen = [pages.scrape(f"address {number}")[1] for number in range(100)]
    assert seen == sorted(seen)
    assert seen.index(5) * 15.0 <= MAX_WAIT_SECONDS + 30.0


def test_more_servers_than_are_tracked_see_no_fall(pages):
    pages.values[1] = 5
    for _ in range(3):
        for number in range(MAX_SCRAPERS + 1):
            pages.scrape(f"server {number}", after=0.1)
    for seen in pages.seen.values():
        values = [page.get(1, 0) for page in seen]
        assert values == sorted(values)
        assert values.count(5) <= 1 or values[0] == 0, "each has read the 0"


def test_single_server_with_a_long_interval_reads_a_0_once(pages):
    pages.scrape(after=300.0)
    pages.values[1] = 5
    assert pages.scrape(after=300.0) == {1: 0}
    assert pages.scrape(after=300.0) == {1: 5}


def test_page_that_was_cut_off_does_not_count_as_read(pages):
    pages.values[1] = 5
    assert pages.scrape(cut=True) == {1: 0}
    assert pages.scrape() == {1: 0}
    assert pages.scrape() == {1: 5}


def test_first_scrapes_of_a_second_server_are_awaited():
    pages = Pages()
    pages.values[1] = 5
    for scraper in ("one", "one", "two", "one"):
        assert pages.scrape(scraper) == {1: 0}
    assert pages.scrape("one") == pages.scrape("two") == {1: 5}


def test_server_that_reads_its_first_page_is_awaited(pages):
    pages.scrape("two", cut=True)
    pages.values[1] = 5
    assert [pages.scrape("one"), pages.scrape("one"), pages.scrape("two")] == [{1: 0}] * 3
    assert pages.scrape("one") == {1: 5}


def test_series_that_was_gone_is_exposed_at_0_again(pages):
    pages.values[1], pages.values[2] = 5, 5
    pages.scrape()
    assert pages.scrape() == {1: 5, 2: 5}
    del pages.values[2]
    pages.scrape()
    pages.values[2] = 1
    assert pages.scrape() == {1: 5, 2: 0}


def test_series_older_than_a_late_first_scrape_is_exposed_with_its_value():
    pages = Pages()
    pages.values[1] = 5
    assert pages.scrape(after=FIRST_SCRAPE_SECONDS + 1) == {1: 5}
    assert pages.scrape() == {1: 5}


def test_series_that_inherited_counts_is_exposed_with_its_value(pages):
    session = pages.tracker.begin("one", pages.now)
    assert session.needs_zero(1)
    session.skip_zero(1)
    pages.tracker.end("one", session, pages.now)
    assert not pages.tracker.begin("one", pages.now).needs_zero(1)


def test_series_is_exposed_with_its_value_after_a_change_of_names():
    pages = Pages(saved=True)
    pages.values[1] = 5
    for _ in range(3):
        pages.scrape()
    pages.values = {2: 5}
    pages.restart(names_changed=True)
    assert pages.scrape("one") == pages.scrape("two") == {2: 5}
    pages.values[3] = 1
    assert pages.scrape("two") == {2: 5, 3: 0}


def test_second_server_is_awaited_after_a_restart():
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
def test_invariant_no_page_shows_less_than_an_earlier_one_even_after_a_kill(steps):
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
            pages.saved = not cut  # as if the process were killed before the next save
            page = pages.scrape(scraper, cut=cut, after=after)
            assert all(page[series] >= value for series, value in shown.items())
            shown = page
