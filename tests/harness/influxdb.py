"""InfluxDB for tests that query what dashboards query."""

import urllib.request
from typing import Any

from harness.servers import InfluxServer
from harness.waiting import ANSWER_TIMEOUT


class PointsServer(InfluxServer):
    """InfluxDB 1.6 with an API to write points, and to query them as Grafana does."""

    @property
    def options(self) -> tuple[str, ...]:
        """Return the options of an exporter that writes points here."""
        return "--influx-url", self.url, "--influx-version", "1", "--influx-database", "celery"

    def write(self, *lines: str) -> None:
        """Write points in line protocol, with times in nanoseconds."""
        url, body = f"{self.url}/write?db=celery", "\n".join(lines).encode()
        urllib.request.urlopen(url, body, timeout=ANSWER_TIMEOUT).close()

    def series(self, influxql: str) -> list[dict[str, Any]]:
        """Return the series of a query: [{"name", "tags", "columns", "values"}, …]."""
        series: list[dict[str, Any]] = self._query(influxql).get("series", [])
        return series
