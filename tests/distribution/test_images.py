"""deploy/images.toml: all images of the stack have supported releases."""

from __future__ import annotations

import datetime as dt
import re
import tomllib

import pytest
from harness import compose
from harness.processes import ROOT

IMAGES = tomllib.loads((ROOT / "deploy/images.toml").read_text())
#: Images that this repository builds.
OWN = {"celery-exporter", "celery-exporter-demo"}
MAX_CHECK_AGE = dt.timedelta(days=365)


def pinned() -> dict[str, str]:
    """Return the tag of each image of the stack, and of the base image."""
    images = {service["image"] for service in compose.load()["services"].values()}
    names = (image.removeprefix("docker.io/").removeprefix("library/") for image in images)
    tags = dict(name.rsplit(":", 1) for name in names)
    python = re.findall(r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return {name: tag for name, tag in tags.items() if name not in OWN} | {"python": python[0]}


def problem(release: dict, tag: str, today: dt.date) -> str:
    """Return the problem of an image with this tag at a date, or an empty string."""
    if not re.fullmatch(rf"v?{re.escape(release['release'])}(\.\d+)*(-\w+)?", tag):
        return f"{tag} is not of {release['release']}"
    if "until" in release:
        return "" if today <= release["until"] else f"its support ended on {release['until']}"
    return "" if today - release["checked"] <= MAX_CHECK_AGE else f"last checked on {release['checked']}"


def test_the_table_has_all_images_and_no_others():
    assert pinned().keys() == IMAGES.keys()


@pytest.mark.parametrize("name", IMAGES)
def test_the_release_of_an_image_is_supported(name):
    message = problem(IMAGES[name], pinned()[name], dt.datetime.now(dt.UTC).date())
    assert message == "", f"{message}; pin a newer release of {name}, and see {IMAGES[name]['source']}"


@pytest.mark.parametrize(
    ("release", "tag", "message"),
    [
        ({"release": "3.13", "until": dt.date(2027, 7, 31)}, "v3.13.2", ""),
        ({"release": "3.13", "until": dt.date(2026, 7, 31)}, "v3.13.2", "its support ended on 2026-07-31"),
        ({"release": "3.1", "until": dt.date(2027, 7, 31)}, "v3.13.2", "v3.13.2 is not of 3.1"),
        ({"release": "18", "until": dt.date(2030, 11, 14)}, "18.6-alpine", ""),
        ({"release": "1.9", "checked": dt.date(2026, 1, 1)}, "v1.9.1", ""),
        (
            {"release": "1.9", "checked": dt.date(2025, 1, 1)},
            "v1.9.1",
            "last checked on 2025-01-01",
        ),
    ],
)
def test_an_unsupported_release_is_found(release, tag, message):
    assert problem(release, tag, dt.date(2026, 11, 29)) == message
