"""Why a task is where it is, as HTML. A person asks for it by a link, because it looks at the broker."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from celery_exporter.status.explanation import Explanation
from celery_exporter.web.task_answers import Problem

#: The parameter of the page of a task that asks for it.
PARAMETER = "explain"

_SECTION = """<section aria-labelledby="explain-title" id="explain">
<h2 id="explain-title">Why is it there?</h2>
{content}</section>
"""
_LINK = """<p><a href="?explain=1">Look at the broker now</a>: where the message is, and who consumes the
queue. This changes nothing.</p>
"""


def html(answer: Explanation | Problem | None) -> str:
    """Return the section with an answer; without one, with the link that asks for it."""
    if answer is None:
        return _SECTION.format(content=_LINK)
    if isinstance(answer, Problem):
        content = (
            f'<p class="note warning">{escape(answer.error)}</p>\n<p><a href="?explain=1">Ask again</a></p>\n'
        )
        return _SECTION.format(content=content)
    content = (
        f'<p class="note"><b>{escape(answer.sentence)}</b></p>\n'
        f"{_list('This follows from:', answer.evidence)}{_list('Unknown:', answer.unknown)}"
        '<p><a href="?explain=1">Look again</a></p>\n'
    )
    return _SECTION.format(content=content)


def _list(title: str, texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<p>{title}</p><ul class="dots">{items}</ul>\n' if items else ""
