"""The commands that write the files for Prometheus and Grafana which the package carries."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click

from celery_exporter.broker.url import masked
from celery_exporter.cli.common import EXIT_FAILED, fail, unblock_signals
from celery_exporter.config.parsers import http_url
from celery_exporter.errors import BadSettingError
from celery_exporter.runtime.shipped_files import EXPORTER_URL, GRAFANA_URL, write_shipped

#: Option of `alerts` → the address in the rules that it replaces.
_ADDRESSES = {"grafana_url": GRAFANA_URL, "exporter_url": EXPORTER_URL}
#: Characters that mean something in a quoted text of YAML, or in a template of Prometheus.
_SPECIAL = frozenset('"\\{} ')


def _command(kind: str, text: str, *options: click.Option) -> click.Command:
    """Return the command that writes the files of a kind."""

    @click.pass_context
    def callback(context: click.Context, /, out: Path, **urls: str | None) -> None:
        unblock_signals()
        replaced = {_ADDRESSES[name]: _address(name, url) for name, url in urls.items() if url is not None}
        context.exit(_write(kind, out, replaced))

    out = click.Option(
        ["--out"],
        required=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Folder to write to. Files of an earlier version are replaced.",
    )
    return click.Command(kind, callback=callback, params=[out, *options], help=text)


def _address(name: str, url: str) -> str:
    """Return the URL of an option without a slash at its end."""
    with suppress(ValueError):
        address = http_url(url)
        if _SPECIAL.isdisjoint(address):
            return address
    takes = "it takes a URL such as https://grafana.example.com, without a login"
    raise BadSettingError(f"--{name.replace('_', '-')}: got {masked(url)!r}; {takes}")


def _write(kind: str, folder: Path, replaced: Mapping[str, str]) -> int:
    try:
        paths = [*write_shipped(kind, folder, replaced)]  # all, also if the reader of the output ends early
    except OSError as error:
        return fail(f"--out: cannot write {error.filename!r}: {error.strerror}", EXIT_FAILED)
    for path in paths:
        click.echo(path)
    return 0


_ALERTS = """Write the alerts and recording rules for Prometheus.

    Add celery.rules.yml to rule_files of prometheus.yml."""
_DASHBOARDS = """Write the dashboards for Grafana.

    Grafana reads those in DIR/provisioning at its start. Those in DIR/import are for Dashboards, New, Import:
    they ask for the data sources."""


def _url_option(name: str, text: str, default: str) -> click.Option:
    return click.Option([f"--{name}"], metavar="URL", help=f"{text} [default: {default}]")


SHIPPED_COMMANDS = (
    _command(
        "alerts",
        _ALERTS,
        _url_option("grafana-url", "Grafana with the dashboards, for links in alerts.", GRAFANA_URL),
        _url_option("exporter-url", "Exporter that serves the runbooks, for links in alerts.", EXPORTER_URL),
    ),
    _command("dashboards", _DASHBOARDS),
)
