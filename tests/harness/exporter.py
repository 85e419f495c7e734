"""The exporter as its users run it: a process with options, an environment and an HTTP port."""

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
from harness.time_spans import TimeSpan
from harness.waiting import ANSWER_TIMEOUT, eventually

MAX_STOP_SECONDS = 2.0  # time that it waits for a processor does not count
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SCRAPER = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}  # Prometheus sends it, curl does not
#: Variables that set options of the exporter; those of the machine must not affect tests.
OPTION_PREFIXES = ("CELERY_", "CE_", "PROMETHEUS_", "METRICS_", "OTEL_")

Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Response:
    """An HTTP response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Samples(dict[Series, float]):
    """The samples of one scrape: {(name, labels): value}."""

    @classmethod
    def of(cls, families: Iterable[Metric]) -> "Samples":
        samples = cls()
        for family in families:
            for sample in family.samples:
                series = (sample.name, frozenset(sample.labels.items()))
                assert series not in samples, f"{series} is exposed twice"
                samples[series] = float(sample.value)
        return samples

    def matching(self, name: str, /, **labels: str) -> dict[Series, float]:
        """Return the series of this name that have these labels, among others."""
        return {
            series: value
            for series, value in self.items()
            if series[0] == name and labels.items() <= dict(series[1]).items()
        }

    def value(self, name: str, /, **labels: str) -> float | None:
        """Return the value of the only series that matches; None if there is no match."""
        series = self.matching(name, **labels)
        assert len(series) < 2, f"{name} {labels} is not one series: {series}"
        return next(iter(series.values()), None)

    def total(self, name: str, /, **labels: str) -> float:
        return sum(self.matching(name, **labels).values())

    def by(self, name: str, /, *keys: str, **labels: str) -> dict[tuple[str, ...], float]:
        """Return sums by the values of these labels; a missing label counts as ""."""
        sums: dict[tuple[str, ...], float] = defaultdict(float)
        for (_, pairs), value in self.matching(name, **labels).items():
            sums[tuple(dict(pairs).get(key, "") for key in keys)] += value
        return dict(sums)

    def label_values(self, label: str, name: str | None = None) -> set[str]:
        """Return the values of a label, in one metric or in all."""
        return {
            value
            for (metric, labels) in self
            if name in {None, metric}
            for key, value in labels
            if key == label
        }


class Exporter(Process):
    """`python -m celery_exporter`. A `url` or `port` of None omits that option."""

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
        """Return whether `/-/healthy` answers; `connected` waits for the broker."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/-/healthy").status == 200
        return False

    def connected(self, deadline: float = 20.0) -> "Exporter":
        """Wait until it receives events, so that it counts what the test does next."""
        eventually(
            lambda: self.get("/-/ready").status == 200 and self.value("celery_broker_up") == 1,
            deadline,
            what="/-/ready and celery_broker_up 1",
        )
        return self

    def stop_cleanly(self, sig: signal.Signals = signal.SIGTERM, pid: int | None = None) -> None:
        """Send a signal, and check that it ends in time, with code 0 and without a traceback."""
        os.kill(pid or self.pid, sig)
        code = self.wait()
        in_time = self.ending.seconds < MAX_STOP_SECONDS
        assert (code, in_time) == (0, True), f"code {code}, {self.ending}\n{self.tail()}"
        assert "Traceback" not in self.text(), self.text()

    # HTTP

    def get(
        self,
        path: str = "/metrics",
        headers: dict[str, str] | None = None,
        *,
        method: str = "GET",
        timeout: float = ANSWER_TIMEOUT,
    ) -> Response:
        connection = self.connect(timeout)
        try:
            return send_request(connection, path, {**self.login, **(headers or {})}, method)
        finally:
            connection.close()

    def connect(self, timeout: float = ANSWER_TIMEOUT) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def samples(self, headers: dict[str, str] | None = None, *, path: str = "/metrics") -> Samples:
        """Scrape it as curl does, or with the headers `SCRAPER` as Prometheus does."""
        response = self.get(path, headers)
        assert response.status == 200, f"/metrics returned {response.status}: {response.text[:200]}"
        return Samples.of(parse_text(response.text))

    def openmetrics(self) -> Samples:
        """Scrape it in the OpenMetrics format."""
        return Samples.of(parse_openmetrics(self.get("/metrics", {"Accept": OPENMETRICS}).text))

    def value(self, name: str, /, **labels: str) -> float | None:
        return self.samples().value(name, **labels)

    def total(self, name: str, /, **labels: str) -> float:
        return self.samples().total(name, **labels)


def send_request(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str], method: str = "GET"
) -> Response:
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    lower_case = {name.lower(): value for name, value in response.getheaders()}
    return Response(response.status, lower_case, response.read())


def clean_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment without variables that set options of the exporter."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OPTION_PREFIXES)}
    return {**inherited, **(extra or {})}


@dataclass(frozen=True)
class CompletedCommand:
    """The result of a command, and the time that it took."""

    returncode: int
    stdout: str
    stderr: str
    span: TimeSpan


def run_cli(
    *arguments: str, environment: dict[str, str] | None = None, deadline: float = 10.0
) -> CompletedCommand:
    """Run a command of the exporter until it ends. On the deadline see `eventually`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "celery_exporter", *arguments],
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stdout, stderr, span = communicate(process, deadline, what=f"end of {' '.join(arguments)}")
    return CompletedCommand(process.returncode, stdout, stderr, span)
