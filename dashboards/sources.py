"""The data sources that dashboards query. Each dashboard has a variable for each of its data sources."""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.models.common import DataSourceRef


@dataclass(frozen=True)
class Source:
    """A kind of data source.

    Its variable must not be that of another kind: links between dashboards pass all variables on.
    """

    plugin: str
    variable: str
    label: str  # of the variable
    name: str
    content: (
        str  # asked for in Grafana's import dialog; empty: a variable there, too, which may have no value
    )

    @property
    def ref(self) -> DataSourceRef:
        """Return the reference of a query or variable to the data source that the variable selects."""
        return DataSourceRef(type_val=self.plugin, uid=f"${{{self.variable}}}")

    @property
    def import_input(self) -> str:
        """Return the name of the input in the import dialog."""
        return f"DS_{self.name.upper()}"


PROMETHEUS = Source(
    "prometheus", "datasource", "Data source", "Prometheus", "The Prometheus that scrapes celery-exporter"
)
LOKI = Source("loki", "loki", "Loki", "Loki", "The Loki that celery-exporter pushes to (--loki-url)")
INFLUXDB = Source(
    "influxdb",
    "influxdb",
    "InfluxDB",
    "InfluxDB",
    "The InfluxDB that celery-exporter writes to (--influx-url)",
)
#: Only links use it, so a dashboard works without it.
TEMPO = Source("tempo", "tempo", "Traces", "Tempo", "")
