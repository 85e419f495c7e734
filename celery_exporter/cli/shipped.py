"""The commands that write the files for Prometheus and Grafana which the package carries."""

from __future__ import annotations

from pathlib import Path

import click

from celery_exporter.cli.common import EXIT_FAILED, fail, unblock_signals


def _command(kind: str, text: str) -> click.Command:
    """Return the command that writes the files of a kind."""

    @click.pass_context
    def callback(context: click.Context, out: Path) -> None:
        unblock_signals()
        context.exit(_write(kind, out))

    out = click.Option(
        ["--out"],
        required=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Folder to write to. Files of an earlier version are replaced.",
    )
    return click.Command(kind, callback=callback, params=[out], help=text)


def _write(kind: str, folder: Path) -> int:
    from celery_exporter.runtime.shipped_files import write_shipped  # noqa: PLC0415  only these need it

    try:
        paths = [*write_shipped(kind, folder)]  # all, also if the reader of the output ends early
    except OSError as error:
        return fail(f"--out: cannot write {error.filename!r}: {error.strerror}", EXIT_FAILED)
    for path in paths:
        click.echo(path)
    return 0


_TEXTS = {
    "alerts": """Write the alerts and recording rules for Prometheus.

    Add celery.rules.yml to rule_files of prometheus.yml.""",
    "dashboards": """Write the dashboards for Grafana.

    Grafana reads those in DIR/provisioning at its start. Those in DIR/import are for Dashboards, New, Import:
    they ask for the data sources.""",
}
SHIPPED_COMMANDS = tuple(_command(kind, text) for kind, text in _TEXTS.items())
