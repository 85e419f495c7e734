"""The state of a page in its URL: how tables are sorted, filtered and expanded, and the range of charts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from urllib.parse import urlencode

from msgspec import Struct

#: The longest value of a parameter, in characters.
MAX_LENGTH = 255
#: Parameters of each table.
_OF_TABLES = ("sort", "filter", "rows")
#: Value of `rows` for all rows.
ALL = "all"


class Query(Struct, frozen=True):
    """What a request asks for.

    Parameters of the main table have no prefix: `sort`, and not `workers.sort`. `name` is that of the worker
    or queue in the path. `root` is the URL of the start page, relative to this one. `grafana` is the URL of a
    Grafana with the dashboards of this project, "" if there is none. `broker` is the one that the page is
    about, of several `brokers`; both are empty if there is only one.
    """

    parameters: Mapping[str, str] = {}
    main: str = ""
    name: str = ""
    root: str = ""
    grafana: str = ""
    broker: str = ""
    brokers: Sequence[str] = ()

    def key(self, table: str, name: str) -> str:
        """Return the parameter that is `name` for a table."""
        return name if table == self.main else f"{table}.{name}"

    def of(self, table: str, name: str) -> str:
        """Return the value of `name` for a table, "" without one."""
        return self.parameters.get(self.key(table, name), "")

    def url(self, **changes: str) -> str:
        """Return the URL of the page with some parameters changed, relative to the page."""
        return "?" + urlencode({key: value for key, value in {**self.parameters, **changes}.items() if value})


def known_parameters(tables: Iterable[str], main: str, others: Iterable[str] = ()) -> frozenset[str]:
    """Return the names of the parameters of a page with these tables."""
    empty = Query(main=main)
    return frozenset({*others, *(empty.key(table, name) for table in tables for name in _OF_TABLES)})


def chosen(parameters: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    """Return the known parameters, cut to `MAX_LENGTH`."""
    return {key: value[:MAX_LENGTH] for key, value in parameters.items() if key in known}
