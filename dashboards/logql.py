"""LogQL expressions of the transitions that --loki-url pushes, and variables with the values of their labels.

Labels of streams are service, state and queue. uuid, root, task, worker, retries and exception are
structured metadata. The line is the JSON object of `celery_exporter.sinks.loki.Line`.
"""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard as sdk
from grafana_foundation_sdk.models import dashboard as model

from dashboards.sources import LOKI

SERVICE = 'service=~"$service"'
STATE = 'state=~"$state"'
#: Streams of other programs may have a label `service`, but not this one.
ANY_STATE = 'state=~".+"'
#: PENDING has no worker, and the queue can be unknown. Such a label is empty for a filter.
METADATA = 'task=~"$task" | worker=~"$worker" | uuid=~"$uuid.*"'
#: Name in a query → field of the JSON object, in seconds.
DURATIONS = {
    "queue_wait": "queue_wait_seconds",
    "prefetch_wait": "prefetch_wait_seconds",
    "runtime": "runtime_seconds",
}
#: The kind of values that a variable has, by Grafana's data source: those of one label.
LABEL_VALUES = 1


def selected(state: str = STATE) -> str:
    """Return the entries that the variables select, in the states of this matcher."""
    return f'{{{SERVICE}, {state}, queue=~"$queue"}} | {METADATA}'


def of_task(label: str) -> str:
    """Return the entries whose uuid or root is the uuid that the variable has; none if it is empty."""
    return f'{{{SERVICE}, {ANY_STATE}}} | {label}="$uuid" | {label}!=""'


def rate(entries: str, by: str) -> str:
    """Return the rate of entries per second, by this label or metadata."""
    return f"sum by ({by}) (rate({entries} [$__auto]))"


def with_line(entries: str, names: Sequence[str], details: Sequence[str]) -> str:
    """Return entries with another line: the values of these labels, and details that are not empty.

    A detail is a label or a name in `DURATIONS`, and its value.
    """
    extracted = ", ".join(f'{name}="{field}"' for name, field in DURATIONS.items())
    values = " ".join(f"{{{{ .{name} }}}}" for name in names)
    pairs = "".join(f"{{{{ if .{name} }}}} {name}={{{{ .{name} }}}}{{{{ end }}}}" for name in details)
    return f"{entries} | json {extracted} | line_format `{values}{pairs}`"


def label_variable(name: str, title: str, among: str) -> sdk.QueryVariable:
    """Return a variable with the values of a label of streams."""
    return (
        sdk.QueryVariable(name)
        .label(title)
        .datasource(LOKI.ref)
        .query({"type": LABEL_VALUES, "label": name, "stream": f"{{{among}}}", "refId": name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def text_variable(name: str, title: str, description: str) -> sdk.TextBoxVariable:
    """Return a variable for a text that the user enters."""
    empty = model.VariableOption(selected=True, text="", value="")
    return sdk.TextBoxVariable(name).label(title).description(description).default_value("").current(empty)
