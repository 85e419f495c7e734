"""Beats are up while they reply to ping, and the last one is not forgotten."""

from __future__ import annotations

from celery_exporter.core.beats import MAX_BEATS, MAX_UNANSWERED, Beats
from celery_exporter.core.types import Timestamp

from .cluster_driver import T0

PURGE = 600.0


def at(second: float) -> Timestamp:
    return Timestamp(second, T0 + second)


def up(beats: Beats) -> dict[str, bool]:
    return {beat.name: beat.up for beat in beats.by_name.values()}


def test_a_beat_is_down_after_three_pings_without_a_reply_and_up_again_after_one():
    beats = Beats(PURGE)
    beats.record_replies(["celerybeat@a"], at(0))
    for ping in range(1, MAX_UNANSWERED):
        beats.record_replies([], at(ping))
        assert up(beats) == {"celerybeat@a": True}
    beats.record_replies([], at(3))
    assert up(beats) == {"celerybeat@a": False}
    assert beats.by_name["celerybeat@a"].last_reply == T0
    beats.record_replies(["celerybeat@a"], at(9))
    assert up(beats) == {"celerybeat@a": True}
    assert beats.by_name["celerybeat@a"].last_reply == T0 + 9


def test_one_that_is_down_is_removed_once_another_one_is_up():
    beats = Beats(PURGE)
    beats.record_replies(["celerybeat@old"], at(0))
    for ping in range(MAX_UNANSWERED):
        beats.record_replies([], at(ping))
    beats.record_replies([], at(10 * PURGE))
    assert up(beats) == {"celerybeat@old": False}, "it is the only one"
    beats.record_replies(["celerybeat@new"], at(10 * PURGE))
    assert up(beats) == {"celerybeat@new": True}


def test_without_a_purge_all_stay():
    beats = Beats(None)
    beats.record_replies(["celerybeat@old"], at(0))
    for ping in range(MAX_UNANSWERED):
        beats.record_replies(["celerybeat@new"], at(ping))
    beats.record_replies(["celerybeat@new"], at(1e9))
    assert up(beats) == {"celerybeat@old": False, "celerybeat@new": True}


def test_the_number_of_beats_is_bounded():
    beats = Beats(PURGE)
    beats.record_replies([f"celerybeat@{number}" for number in range(2 * MAX_BEATS)], at(0))
    assert len(up(beats)) == MAX_BEATS
