"""Our program as its users run it: a process with options, an environment and an HTTP port."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from harness.processes import Process, communicate, free_port
from harness.time_spans import Span
from harness.waiting import ANSWER_TIMEOUT, eventually

QUICK = 2.0  # seconds in which it has to end, beside what it has to wait for a processor
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SCRAPER = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}  # how the exporter tells Prometheus from curl
OURS = ("CELERY_", "CE_", "PROMETHEUS_", "METRICS_")  # what the desk's environment must not bring in

Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Samples(dict[Series, float]):
    """One scrape: {(name, labels): value}, with the questions that tests ask."""

    @classmethod
    def of(cls, families: Iterable[Metric]) -> "Samples":
        samples = cls()
        for family in families:
            for sample in family.samples:
                series = (sample.name, frozenset(sample.labels.items()))
                assert series not in samples, f"{series} stands there twice"
                samples[series] = float(sample.value)
        return samples

    def matching(self, name: str, /, **labels: str) -> dict[Series, float]:
        """Return the series of this name that carry these labels, whatever else they carry."""
        return {
            series: value
            for series, value in self.items()
            if series[0] == name and labels.items() <= dict(series[1]).items()
        }

    def value(self, name: str, /, **labels: str) -> float | None:
        """Return the one value that matches, None where nothing does."""
        found = self.matching(name, **labels)
        assert len(found) < 2, f"{name} {labels} is not one series: {found}"
        return next(iter(found.values()), None)

    def total(self, name: str, /, **labels: str) -> float:
        return sum(self.matching(name, **labels).values())

    def by(self, name: str, /, *keys: str, **labels: str) -> dict[tuple[str, ...], float]:
        """Return sums by the values of these labels ("" where a series lacks one)."""
        sums: dict[tuple[str, ...], float] = defaultdict(float)
        for (_, own), value in self.matching(name, **labels).items():
            sums[tuple(dict(own).get(key, "") for key in keys)] += value
        return dict(sums)

    def label_values(self, label: str, name: str | None = None) -> set[str]:
        """Return the values of a label, in one metric or in all of them."""
        return {
            value
            for (own_name, labels) in self
            if name in {None, own_name}
            for key, value in labels
            if key == label
        }


class Exporter(Process):
    """`python -m celery_exporter`; a `url` or `port` of None leaves that option out."""

    name = "exporter"

    def __init__(
        self,
        folder: Path,
        url: str | None,
        *arguments: str,
        port: int | None = 0,
        update_interval: str | None = "1",
        environment: dict[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
    ) -> None:
        super().__init__(folder)
        self.port = port or free_port()
        self.extra = environment or {}
        self.login: dict[str, str] = {}  # headers of each request
        self.wrapper = wrapper
        self.arguments = [
            *(["--broker-url", url] if url is not None else []),
            *("--host", "127.0.0.1"),
            *(["--port", str(self.port)] if port is not None else []),
            *(["--update-interval", update_interval] if update_interval is not None else []),
            *arguments,
        ]

    def command(self) -> list[str]:
        return [*self.wrapper, sys.executable, "-m", "celery_exporter", *self.arguments]

    def environment(self) -> dict[str, str]:
        return clean_environment(self.extra)

    def ready(self) -> bool:
        """Ready for the tests is what `/-/healthy` says; see `connected` for the broker."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/-/healthy").status == 200
        return False

    def connected(self, deadline: float = 20.0) -> "Exporter":
        """Wait until it hears events, so that what a test does next is counted."""
        eventually(
            lambda: self.get("/-/ready").status == 200 and self.value("celery_broker_up") == 1,
            deadline,
            what="/-/ready and celery_broker_up 1",
        )
        return self

    def end_well(self, sig: signal.Signals = signal.SIGTERM, pid: int | None = None) -> None:
        """Ask it to end, and hold that it does so in time, with code 0 and without a traceback."""
        os.kill(pid or self.pid, sig)
        code = self.wait()
        assert (code, self.ending.seconds < QUICK) == (0, True), f"code {code}, {self.ending}\n{self.tail()}"
        assert "Traceback" not in self.text(), self.text()

    # HTTP

    def get(
        self,
        path: str = "/metrics",
        headers: dict[str, str] | None = None,
        *,
        method: str = "GET",
        timeout: float = ANSWER_TIMEOUT,
    ) -> Answer:
        connection = self.connect(timeout)
        try:
            return ask(connection, path, {**self.login, **(headers or {})}, method)
        finally:
            connection.close()

    def connect(self, timeout: float = ANSWER_TIMEOUT) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def samples(self, headers: dict[str, str] | None = None) -> Samples:
        """Scrape it as curl does (send `SCRAPER` to be taken for Prometheus)."""
        answer = self.get("/metrics", headers)
        assert answer.status == 200, f"/metrics answered {answer.status}: {answer.text[:200]}"
        return Samples.of(parse_text(answer.text))

    def openmetrics(self) -> Samples:
        """Scrape it in the other format."""
        return Samples.of(parse_openmetrics(self.get("/metrics", {"Accept": OPENMETRICS}).text))

    def value(self, name: str, /, **labels: str) -> float | None:
        return self.samples().value(name, **labels)

    def total(self, name: str, /, **labels: str) -> float:
        return self.samples().total(name, **labels)


def ask(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str], method: str = "GET"
) -> Answer:
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def clean_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment without anything that would set an option of the exporter."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, **(extra or {})}


@dataclass(frozen=True)
class Done:
    """What came of a command, and the time that it took."""

    returncode: int
    stdout: str
    stderr: str
    span: Span


def run_cli(*arguments: str, environment: dict[str, str] | None = None, deadline: float = 10.0) -> Done:
    """Run the exporter to its own end; stdout and stderr apart. On the deadline see `eventually`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "celery_exporter", *arguments],
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stdout, stderr, span = communicate(process, deadline, what=f"end of {' '.join(arguments)}")
    return Done(process.returncode, stdout, stderr, span)
