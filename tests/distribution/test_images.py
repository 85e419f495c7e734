"""deploy/images.toml: no image that the stack is made of is past the end of its release's life."""

from __future__ import annotations

import datetime as dt
import re

import pytest
import tomllib
from harness import compose
from harness.processes import ROOT

IMAGES = tomllib.loads((ROOT / "deploy/images.toml").read_text())
#: Of ours.
MADE_HERE = {"celery-exporter", "celery-exporter-demo"}
LONGEST = dt.timedelta(days=365)


def pinned() -> dict[str, str]:
    """Return the tag of each image of the stack, and of the one that ours are made from."""
    images = {service["image"] for service in compose.load()["services"].values()}
    found = dict(image.rsplit(":", 1) for image in images)
    python = re.findall(r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return {name: tag for name, tag in found.items() if name not in MADE_HERE} | {"python": python[0]}


def complaint(release: dict, tag: str, today: dt.date) -> str:
    """Return what is wrong with an image that has this tag today; empty if nothing is."""
    if not re.fullmatch(rf"v?{re.escape(release['release'])}(\.\d+)*(-\w+)?", tag):
        return f"{tag} is not of {release['release']}"
    if "until" in release:
        return "" if today <= release["until"] else f"its life ended on {release['until']}"
    return "" if today - release["checked"] <= LONGEST else f"last looked up on {release['checked']}"


def test_each_image_is_in_the_table_and_nothing_else_is():
    assert pinned().keys() == IMAGES.keys()


@pytest.mark.parametrize("name", IMAGES)
def test_no_image_is_past_the_end_of_its_life(name):
    said = complaint(IMAGES[name], pinned()[name], dt.datetime.now(dt.timezone.utc).date())
    assert said == "", f"{said}; pin a newer release of {name}, and see {IMAGES[name]['source']}"


@pytest.mark.parametrize(
    ("release", "tag", "says"),
    [
        ({"release": "3.13", "until": dt.date(2027, 7, 31)}, "v3.13.2", ""),
        ({"release": "3.13", "until": dt.date(2026, 7, 31)}, "v3.13.2", "its life ended on 2026-07-31"),
        ({"release": "3.1", "until": dt.date(2027, 7, 31)}, "v3.13.2", "v3.13.2 is not of 3.1"),
        ({"release": "18", "until": dt.date(2030, 11, 14)}, "18.6-alpine", ""),
        ({"release": "1.9", "checked": dt.date(2026, 1, 1)}, "v1.9.1", ""),
        (
            {"release": "1.9", "checked": dt.date(2025, 1, 1)},
            "v1.9.1",
            "last looked up on 2025-01-01",
        ),
    ],
)
def test_an_old_image_is_found(release, tag, says):
    assert complaint(release, tag, dt.date(2026, 11, 29)) == says
