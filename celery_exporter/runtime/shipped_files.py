"""The files that this package carries for other programs: alerts for Prometheus, dashboards for Grafana.

A wheel has them in `celery_exporter/files` (pyproject.toml), a checkout in its root folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

#: The files and folders of each kind. Of a folder, the files with the suffix .json are meant.
SHIPPED = {
    "alerts": ("celery.rules.yml",),
    "dashboards": ("import", "provisioning"),
}
#: Where links in alerts lead: Grafana, and an exporter, which serves the runbooks (alerts/mixin.libsonnet).
GRAFANA_URL, EXPORTER_URL = "http://localhost:3000", "http://localhost:9808"


def write_shipped(kind: str, folder: Path, replaced: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Write the files of a kind into a folder, which need not exist, and yield the path of each.

    `replaced` maps texts to what is written in their place. A file of an earlier version is replaced. Raises
    OSError if one cannot be written.
    """
    source = _source(kind)
    for name in SHIPPED[kind]:
        for path, file in _files(name, source / name):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            text = file.read_text("utf-8")
            for old, new in (replaced or {}).items():
                text = text.replace(old, new)
            target.write_text(text, "utf-8")
            yield target


def _source(kind: str) -> Traversable:
    package = resources.files("celery_exporter")
    packaged = package / "files" / kind
    return packaged if packaged.is_dir() else Path(str(package)).parent / kind


def _files(name: str, entry: Traversable) -> Iterator[tuple[str, Traversable]]:
    if not entry.is_dir():
        yield name, entry
        return
    for file in sorted(entry.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            yield f"{name}/{file.name}", file
