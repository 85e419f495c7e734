"""Which part of which page is printed from what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from docs import advice, api, costs, layers, metrics, migrating, options, runbooks, thresholds
from docs.marks import filled

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
BENCHMARKS = DOCS / "benchmarks.md"
RUNBOOKS, SERVED = DOCS / "runbooks.md", ROOT / "celery_exporter/web/static/runbooks.html"

#: Files that docs/deploying.md shows, as what.
SHOWN = {
    "deploy/systemd/celery-exporter.service": "ini",
    "deploy/kubernetes/deployment.yaml": "yaml",
    "deploy/kubernetes/service.yaml": "yaml",
    "deploy/kubernetes/servicemonitor.yaml": "yaml",
    "deploy/prometheus/prometheus.yml": "yaml",
}
#: A link, but not a picture, to something here.
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?://|#)([^)]+)\)")


def parts() -> Mapping[Path, Mapping[str, str]]:
    """Return what stands between which marks of which page."""
    return {
        README: {
            "options": options.short(),
            "metrics": metrics.short(),
            "costs": costs.short(BENCHMARKS.read_text()),
        },
        DOCS / "configuration.md": {
            "options": options.long(),
            "more of options": chapter("Options", after="options"),
        },
        DOCS / "metrics.md": {
            "more of metrics": chapter("Metrics"),
            "metrics": metrics.long(),
            "profiles": metrics.others(),
        },
        DOCS / "api.md": {"api": api.fields()},
        RUNBOOKS: {"thresholds": thresholds.table()},
        DOCS / "deploying.md": {"running it": chapter("Running it"), **{name: file(name) for name in SHOWN}},
        DOCS / "troubleshooting.md": {
            "symptoms": chapter("No metrics?"),
            "terminal": chapter("In a terminal: top"),
            "advice": advice.chapter(advice.sources()),
        },
        DOCS / "design.md": {
            "layers": f"{layers.picture()}\n\n{layers.table()}",
            "invariants": marked("invariants"),
        },
    }


def made() -> Mapping[Path, str]:
    """Return what has to be in which file."""
    pages = {path: filled(path.read_text(), filling) for path, filling in parts().items()}
    served = {SERVED: runbooks.page(pages[RUNBOOKS])}
    return {**pages, **served, **migrating.made(), **thresholds.made()}


# -- from elsewhere ------------------------------------------------------------------------------------


def chapter(title: str, after: str = "") -> str:
    """Return a chapter of the README, without what is printed there; of one, what comes after those marks."""
    _, found, rest = README.read_text().partition(f"\n## {title}\n")
    if not found:
        raise ValueError(f"the README has no chapter {title}")
    text = rest.partition("\n## ")[0]
    text = text.partition(f"<!-- end of {after} -->")[2] if after else text
    text = re.sub(r"<!-- ([a-z]+) -->\n.*?<!-- end of \1 -->\n", "", text, flags=re.DOTALL)
    return relinked(re.sub("^###", "##", text, flags=re.MULTILINE)).strip()


def marked(name: str) -> str:
    """Return what is between these marks of the README."""
    text = README.read_text().partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- end of {name} -->")[0]
    return relinked(text)


def relinked(text: str) -> str:
    """Return a text of the README with its links as they are from docs/: what is not there is only named."""

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        if target.startswith("docs/") and not target.endswith("/"):
            return f"[{words.removeprefix('docs/')}]({target.removeprefix('docs/')})"
        return f"`{target}`" if words in target else f"{words} (`{target}`)"

    return _LINK.sub(link, text).replace("](docs/img/", "](img/")


def file(name: str) -> str:
    """Return a file as a block."""
    return f"```{SHOWN[name]}\n{(ROOT / name).read_text().strip()}\n```"
