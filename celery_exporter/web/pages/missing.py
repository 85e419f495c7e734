"""The page for a name that the exporter does not know."""

from __future__ import annotations

from html import escape

from celery_exporter.status.model import Status
from celery_exporter.web.pages.layout import Place, frame
from celery_exporter.web.pages.query import Query

_TEXT = """<p>No {kind} of the name <code>{name}</code> is known.
Names are removed some time after they were last seen.</p>
<p><a href="{root}./">Overview</a></p>
"""


def html(status: Status, kind: str, navigation: str, query: Query) -> str:
    """Return the page; `kind` is what the name is of, such as "worker"."""
    main = _TEXT.format(kind=kind, name=escape(query.name), root=query.root)
    return frame(status, main, Place(f"Unknown {kind}", "api/v1/status", navigation, query))
