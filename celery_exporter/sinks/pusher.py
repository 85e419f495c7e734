"""Passes records to one sink: a bounded buffer, a thread that sends, and accounts that close.

Invariant: records that were put = delivered + dropped, by outcome + buffered, at any time. `put` never waits
for the receiver.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery_exporter.core.histogram import Histogram
from celery_exporter.core.snapshot import SINK_DURATION_BUCKETS, SinkView
from celery_exporter.runtime.backoff import back_off
from celery_exporter.runtime.threads import new_thread
from celery_exporter.sinks.base import (
    BUFFER_FULL,
    DELIVERED,
    FAULT,
    LOST,
    OUTCOMES,
    SHUTDOWN,
    TOO_LARGE,
    PermanentError,
    Sink,
    TemporaryError,
    weight,
)

log = logging.getLogger(__name__)

#: Records of one payload at most. Receivers recommend some thousands (InfluxDB: 5,000 lines), but the texts
#: of more than a thousand do not stay in the cache of a processor until they are sent.
MAX_BATCH = 1_000
#: Share of `max_body_bytes` that a payload should have, by the size of the records before.
FILL_RATIO = 0.8
#: Longest wait in seconds between two attempts, and the longest that a receiver may ask for.
MAX_BACK_OFF_SECONDS, MAX_RETRY_AFTER_SECONDS = 30.0, 300.0
#: Seconds for one attempt.
SEND_TIMEOUT_SECONDS = 10.0
#: Seconds between two log lines about the errors of one outage: their texts may differ each time.
LOG_INTERVAL_SECONDS = 20.0
#: Seconds for the last attempts after `stop`. Docker kills after 10.
LAST_FLUSH_SECONDS = 5.0


class Pusher:
    """Sends records to a sink from a thread of its own. Call `start`, `put` from any thread, then `stop`.

    `limit` is the number of records in the buffer; beyond it the oldest are dropped. `flush_interval` is the
    longest time in seconds for which a record waits while the receiver keeps up.
    """

    def __init__(self, sink: Sink, *, limit: int, flush_interval: float) -> None:
        self.name = sink.name
        #: Opens the file of the sink again; None if it has none.
        self.reopen: Callable[[], None] | None = getattr(sink, "reopen", None)
        #: Whether the sink writes requests to this exporter (`HttpRequest`).
        self.takes_requests: bool = getattr(sink, "takes_requests", False)
        #: The states of the transitions that the sink writes.
        self.states = sink.states
        self._sink = sink
        self._limit = limit
        self._flush_interval = flush_interval
        self._lock = threading.Lock()
        self._wake = threading.Event()  # a batch is full, or it is time to stop
        self._stopping = threading.Event()
        self._stop_at: float | None = None  # monotonic time of the end of the last flush
        self._batch_limit = MAX_BATCH  # records of the next payload, so that it need not be divided
        self._logged = ""  # the last error that was logged, while attempts fail
        self._next_log = 0.0  # monotonic time before which no further error is logged
        self._next_send = 0.0  # monotonic time before which no attempt begins
        # Guarded by the lock, for `view`.
        self._buffer: deque[list[Any]] = deque()  # as they were put, which is faster than one by one
        self._buffered = 0  # records in it
        self._weight = 0  # of those in it, and of those in flight: at most the limit
        self._in_flight = 0  # records that were taken from the buffer and have no outcome yet
        self._outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._durations = Histogram([0] * (len(SINK_DURATION_BUCKETS) + 1))
        self._last_success: float | None = None  # epoch seconds
        self._error = ""  # of the last attempt; empty if it succeeded
        self._failing_since: float | None = None  # epoch seconds
        self._attempt_began: float | None = None  # monotonic time, while an attempt is made
        self._thread = new_thread(f"sink-{sink.name}", self._run)

    # -- from other threads --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; the receiver need not be there."""
        self._thread.start()

    def put(self, records: Iterable[Any]) -> None:
        """Add the records that the sink wants to the buffer; drop the oldest if it is full."""
        wanted = self._sink.select(records)
        if not wanted:
            return
        added = weight(wanted)
        with self._lock:
            self._buffer.append(wanted)
            self._buffered += len(wanted)
            self._weight += added
            if self._weight > self._limit:
                self._drop_oldest()
            is_full = self._buffered >= MAX_BATCH
        if is_full and not self._wake.is_set():  # setting it takes a lock
            self._wake.set()

    def _drop_oldest(self) -> None:
        """Drop the oldest records in the buffer until the limit holds. Under the lock.

        Those in flight are older, but the receiver may have them already.
        """
        while self._weight > self._limit and self._buffer:
            first = self._buffer.popleft()
            count = 0
            while count < len(first) and self._weight > self._limit:
                self._weight -= weight(first[count : count + 1])
                count += 1
            if count < len(first):
                del first[:count]
                self._buffer.appendleft(first)
            self._buffered -= count
            self._outcomes[BUFFER_FULL] += count

    def _remove_oldest(self, count: int) -> list[Any]:
        """Remove up to so many records from the buffer, and return them. Under the lock."""
        removed: list[Any] = []
        while self._buffer and len(removed) < count:
            first = self._buffer.popleft()
            space = count - len(removed)
            if len(first) > space:
                removed += first[:space]
                del first[:space]
                self._buffer.appendleft(first)
            else:
                removed += first
        self._buffered -= len(removed)
        return removed

    def view(self) -> SinkView:
        """Return a copy of the accounts."""
        with self._lock:
            error, failing_since = self._error, self._failing_since
            seconds = 0.0 if self._attempt_began is None else time.monotonic() - self._attempt_began
            if not error and seconds > SEND_TIMEOUT_SECONDS:
                error, failing_since = "an answer takes longer than the timeout", time.time() - seconds
            return SinkView(
                name=self.name,
                address=self._sink.address,
                outcomes=dict(self._outcomes),
                lost=sum(self._outcomes[outcome] for outcome in LOST),
                buffered=self._buffered + self._in_flight,
                limit=self._limit,
                last_success=self._last_success,
                durations=self._durations.copy(),
                error=error,
                failing_since=failing_since,
            )

    def stop(self) -> None:
        """Ask the thread to send what is buffered, and to end after `LAST_FLUSH_SECONDS`."""
        self._stop_at = time.monotonic() + LAST_FLUSH_SECONDS
        self._stopping.set()
        self._wake.set()

    def join(self) -> None:
        """Wait for the thread; count and log what it could not send."""
        if self._stop_at is not None:
            self._thread.join(max(0.0, self._stop_at - time.monotonic()) + 0.5)
        with self._lock:
            lost = self._buffered + self._in_flight
            self._buffer.clear()
            self._buffered = self._in_flight = self._weight = 0
            self._outcomes[SHUTDOWN] += lost
        if lost:
            log.error("sink %s: %d records were not sent before the end: %s", self.name, lost, self._error)

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self.reopen is not None:  # a file; other receivers may start later than the exporter
                self._warn_if_unusable()
            while True:
                begin = time.monotonic()
                is_last = self._stop_at is not None
                self._flush()
                if is_last:
                    return
                self._pause(begin)
        finally:
            self._sink.close()

    def _warn_if_unusable(self) -> None:
        """Log why the receiver would not take records now: there may be none for a long time."""
        try:
            self._sink.probe(SEND_TIMEOUT_SECONDS)
        except (TemporaryError, PermanentError) as error:
            log.warning("sink %s: %s. The records of tasks wait for it.", self.name, error)

    def _pause(self, begin: float) -> None:
        """Wait until the next flush is due: after the interval, or as soon as a batch is full."""
        self._wake.wait(max(0.0, begin + self._flush_interval - time.monotonic()))
        if self._stop_at is None:
            self._wake.clear()

    def _flush(self) -> None:
        """Send what is buffered now."""
        with self._lock:
            count = self._buffered
        while count > 0:
            batch = self._take(min(count, self._batch_limit))
            if not batch or not self._deliver(batch):
                return
            count -= len(batch)

    def _take(self, count: int) -> list[Any]:
        """Take the oldest records from the buffer; they stay in the accounts as buffered."""
        with self._lock:
            has_large = self._has_large()
            batch = self._remove_oldest(count)
            fitting = _fitting(batch) if has_large else len(batch)
            if fitting < len(batch):
                self._buffer.appendleft(batch[fitting:])
                self._buffered += len(batch) - fitting
                del batch[fitting:]
            self._in_flight += len(batch)
        return batch

    def _has_large(self) -> bool:
        """Return whether any record counts for several. Under the lock."""
        return self._weight > self._buffered + self._in_flight

    def _deliver(self, batch: list[Any]) -> bool:
        """Send a batch; return False if the time for the last flush is over.

        A fault of ours costs the batch, not the sink.
        """
        try:
            return self._deliver_parts(batch)
        except Exception:
            if time.monotonic() >= self._next_log:
                self._next_log = time.monotonic() + LOG_INTERVAL_SECONDS
                log.exception("sink %s: cannot send %d records, please report this", self.name, len(batch))
            self._account({FAULT: len(batch)}, batch)
            return True

    def _deliver_parts(self, batch: list[Any]) -> bool:
        """Send a batch, divided if it is too large."""
        payload = self._sink.encode(batch)
        record_bytes = max(1.0, len(payload.body) / len(batch))
        self._batch_limit = max(1, min(MAX_BATCH, int(FILL_RATIO * self._sink.max_body_bytes / record_bytes)))
        if len(payload.body) > self._sink.max_body_bytes and len(batch) > 1:
            return self._deliver_halves(batch)
        left_out = sum(payload.left_out.values())
        try:
            if left_out < len(batch) and not self._send(payload.body):
                return False
        except PermanentError as error:
            if error.outcome == TOO_LARGE and len(batch) > 1:
                return self._deliver_halves(batch)
            lost = len(batch) - left_out if error.count is None else min(error.count, len(batch) - left_out)
            self._account(Counter(payload.left_out) + Counter({error.outcome: lost}), batch)
        else:
            self._account(payload.left_out, batch)
        return True

    def _deliver_halves(self, batch: list[Any]) -> bool:
        middle = len(batch) // 2
        return self._deliver(batch[:middle]) and self._deliver(batch[middle:])

    def _account(self, dropped: Mapping[str, int], batch: list[Any]) -> None:
        """Count the outcomes of a batch: those that were dropped, and the rest as delivered."""
        total = len(batch)
        with self._lock:
            if self._in_flight:  # otherwise `join` has counted them already
                self._weight -= weight(batch) if self._has_large() else total
                self._in_flight -= total
                self._outcomes.update(dropped)
                self._outcomes[DELIVERED] += total - sum(dropped.values())

    def _send(self, body: bytes) -> bool:
        """Send a body until it is taken; return False if the time for the last flush is over.

        Raises PermanentError if the receiver will never take it.
        """
        waits = back_off(MAX_BACK_OFF_SECONDS)
        while True:
            self._sleep(self._next_send - time.monotonic())
            timeout, begin = self._time_left(), time.monotonic()
            if timeout <= 0:
                return False
            self._next_send = begin + self._sink.min_interval * len(body) / self._sink.max_body_bytes
            self._attempt_began = begin
            try:
                self._sink.send(body, timeout)
            except TemporaryError as error:
                self._observe(time.monotonic() - begin, str(error))
                wait = max(next(waits), error.retry_after or 0.0)  # a receiver may ask for 0
                self._sleep(min(wait, MAX_RETRY_AFTER_SECONDS))
            except PermanentError as error:
                self._observe(time.monotonic() - begin, str(error))
                raise
            else:
                self._observe(time.monotonic() - begin, "")
                return True

    def _time_left(self) -> float:
        """Return the seconds that the next attempt may take."""
        if self._stop_at is None:
            return SEND_TIMEOUT_SECONDS
        return min(SEND_TIMEOUT_SECONDS, self._stop_at - time.monotonic())

    def _sleep(self, seconds: float) -> None:
        """Wait, or until `stop` is called."""
        self._stopping.wait(max(0.0, seconds))
        if self._stop_at is not None:  # the last attempts follow each other more closely
            time.sleep(max(0.0, min(seconds, 0.2, self._stop_at - time.monotonic())))

    def _observe(self, seconds: float, error: str) -> None:
        """Record how an attempt went; log the first failure, and the first success after one."""
        with self._lock:
            self._attempt_began = None
            self._durations.observe(SINK_DURATION_BUCKETS, seconds)
            self._error = error
            if not error:
                self._last_success, self._failing_since = time.time(), None
            elif self._failing_since is None:
                self._failing_since = time.time()
        self._log(error)

    def _log(self, error: str) -> None:
        """Log the first error of an outage, further ones with another text, and its end."""
        if error and (not self._logged or (error != self._logged and time.monotonic() >= self._next_log)):
            self._next_log = time.monotonic() + LOG_INTERVAL_SECONDS
            log.warning("sink %s: %s", self.name, error)
            self._logged = error
        elif self._logged and not error:
            log.info("sink %s: %s works again", self.name, self._sink.address)
            self._logged = ""


def _fitting(batch: list[Any]) -> int:
    """Return how many of these records make one payload: fewer if they are large, but one at least."""
    left = MAX_BATCH
    for count, record in enumerate(batch):
        left -= weight([record])
        if left < 0:
            return max(count, 1)
    return len(batch)
