"""What a state file holds of a story's cluster: records, through the bytes that they have there."""

from __future__ import annotations

import msgspec

from celery_exporter.persistence.state import Changes, Recorder, SavedCluster
from unit.core.cluster_driver import ClusterDriver


class Kept:
    """The records of a file that was written anew, and of what changed at each `save` since."""

    def __init__(self, driver: ClusterDriver) -> None:
        self.memory = SavedCluster()
        self._story = driver
        self._recorder = Recorder(driver.cluster)
        first = self._recorder.changes(driver.moment())
        self._take(first)
        self._take(self._recorder.tasks(driver.cluster.tasks.uuids(), driver.moment()))

    def save(self) -> None:
        """Add a record."""
        self._take(self._recorder.changes(self._story.moment()))

    def _take(self, changes: Changes) -> None:
        self.memory.apply(msgspec.msgpack.decode(msgspec.msgpack.encode(changes), type=Changes))


def remembered(driver: ClusterDriver) -> SavedCluster:
    """Return what a state file holds of a story that is saved once."""
    return Kept(driver).memory
