"""The runbooks as HTML, which the exporter serves: alerts link to it."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Runbooks · celery-exporter</title>
<link rel="icon" href="static/icon.svg">
<link rel="stylesheet" href="static/pages.css">
</head>
<body>
<header>
<nav aria-label="Other pages"><a href="./">status</a></nav>
</header>
<main class="text">
{text}</main>
</body>
</html>
"""


#: A link to another page of the documentation, which the exporter does not serve.
_LINK = re.compile(r"\[([^]]+)\]\((?!#|https?:)[^)]+\)")


def page(markdown: str) -> str:
    """Return the page as HTML, with the ids of headings that GitHub has."""
    text = MarkdownIt("commonmark").enable("table").render(_LINK.sub(r"\1", markdown))
    return _PAGE.format(text=re.sub(r"<(h[23])>(.*?)</\1>", _with_id, text))


def _with_id(heading: re.Match[str]) -> str:
    level, words = heading.groups()
    name = re.sub(r"[^\w -]", "", words.lower()).replace(" ", "-")
    return f'<{level} id="{name}">{words}</{level}>'
