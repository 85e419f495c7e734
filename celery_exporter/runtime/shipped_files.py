"""The files that this package carries for other programs: alerts for Prometheus, dashboards for Grafana.

A wheel has them in `celery_exporter/files` (pyproject.toml), a checkout in its root folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

#: The files and folders of each kind. Of a folder, the files with the suffix .json are meant.
SHIPPED = {
    "alerts": ("celery.rules.yml",),
    "dashboards": ("import", "provisioning"),
}


def write_shipped(kind: str, folder: Path) -> Iterator[Path]:
    """Write the files of a kind into a folder, which need not exist, and yield the path of each.

    Raises OSError if one cannot be written. A file of an earlier version is replaced.
    """
    source = _source(kind)
    for name in SHIPPED[kind]:
        for path, file in _files(name, source / name):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
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
