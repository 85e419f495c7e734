"""The records of a state file, encoded and decoded as in the file."""

from __future__ import annotations

import msgspec

from celery_exporter.persistence.state import Changes, Recorder, SavedCluster
from unit.core.cluster_driver import ClusterDriver


class StateRecords:
    """Records the cluster of a driver: everything at first, and then the changes at each `save`."""

    def __init__(self, driver: ClusterDriver) -> None:
        self.saved = SavedCluster()
        self._driver = driver
        self._recorder = Recorder(driver.cluster)
        first = self._recorder.changes(driver.timestamp())
        self._apply(first)
        self._apply(self._recorder.tasks(driver.cluster.tasks.uuids(), driver.timestamp()))

    def save(self) -> None:
        """Add a record."""
        self._apply(self._recorder.changes(self._driver.timestamp()))

    def _apply(self, changes: Changes) -> None:
        self.saved.apply(msgspec.msgpack.decode(msgspec.msgpack.encode(changes), type=Changes))


def saved_cluster(driver: ClusterDriver) -> SavedCluster:
    """Return the content of a state file that is saved once."""
    return StateRecords(driver).saved
