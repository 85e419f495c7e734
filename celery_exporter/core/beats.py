"""Beats: the schedulers of a cluster, by the replies of each to `ping`.

Celery 5.7's beat replies as `celerybeat@host` (`beat_enable_remote_control`), and falls silent when its
scheduler has not ticked for `beat_remote_control_max_tick_age` (celery/beat.py, BeatPidbox). It publishes no
events. Older beats do not reply, so nothing is known of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from celery_exporter.core.types import Timestamp

#: Beats that are known at a time. A cluster has one; each new host name of a container is another one.
MAX_BEATS = 100
#: Pings in a row without a reply after which a beat is down: one reply may be late.
MAX_UNANSWERED = 3


class Beat(Struct):
    """One beat; `name` is the node name."""

    name: str
    last_reply: float  # wall time
    unanswered: int = 0  # pings in a row
    down_since: float | None = None  # listening time

    @property
    def up(self) -> bool:
        """Return whether it replied to one of the newest pings."""
        return self.down_since is None


class Beats:
    """The beats that have ever replied. Not thread-safe.

    `purge` is the seconds after which one that is down is removed, None for never. It stays while none is up,
    so that its alert does not end.
    """

    def __init__(self, purge: float | None) -> None:
        self.by_name: dict[str, Beat] = {}
        self._purge = purge

    def record_replies(self, names: Iterable[str], now: Timestamp) -> None:
        """Record which beats replied to one ping."""
        replied = set(names)
        for beat in self.by_name.values():
            if beat.name not in replied:
                beat.unanswered += 1
                if beat.unanswered >= MAX_UNANSWERED and beat.up:
                    beat.down_since = now.listening
        for name in sorted(replied):
            if name in self.by_name or len(self.by_name) < MAX_BEATS:
                self.by_name[name] = Beat(name, now.wall)
        self._remove_former(now.listening)

    def _remove_former(self, listening: float) -> None:
        if self._purge is None or not any(beat.up for beat in self.by_name.values()):
            return
        for beat in list(self.by_name.values()):
            if beat.down_since is not None and listening - beat.down_since > self._purge:
                del self.by_name[beat.name]

    def restore(self, beats: Iterable[Beat], shift: float) -> None:
        """Add the beats of a state file, whose listening times were less by `shift` seconds."""
        for beat in beats:
            beat.down_since = None if beat.down_since is None else beat.down_since + shift
            self.by_name[beat.name] = beat
