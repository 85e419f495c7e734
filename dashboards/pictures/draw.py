"""Draws each dashboard with data of the demo from a real Prometheus (make screenshots).

A headless Chromium renders Grafana's panel components (@grafana/ui), which esbuild bundles. The frame that
Grafana shows around them is missing. Needs node, npm and chromium. The test harness starts the servers.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.demo import scraped_demo
from harness.processes import ROOT, need
from harness.servers import Prometheus, RedisServer

from dashboards.panels import RATE_INTERVAL_STEPS

HERE = Path(__file__).parent
BOARDS = ROOT / "dashboards" / "provisioning"
PICTURES = ROOT / "docs" / "img"
WIDTH_PIXELS = 1600
POINTS = 200  # of a line
# Chromium has no sandbox for root, and the page is ours. The budget is the virtual time for rendering, in ms.
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000")
ALL = {"job": ".+", "queue": ".*", "task": ".*", "worker": ".*"}

Json = dict[str, Any]


def main() -> None:
    """Run the demo, send every query, and draw every dashboard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=360, help="how long the demo runs before")
    seconds: int = parser.parse_args().seconds
    bundle = build_script()
    with tempfile.TemporaryDirectory(prefix="pictures-") as name:
        folder = Path(name)
        with RedisServer(folder / "redis") as redis, scraped_demo(folder, redis.url) as prometheus:
            time.sleep(seconds)
            pages = [page(path, prometheus, seconds) for path in sorted(BOARDS.glob("*.json"))]
        PICTURES.mkdir(parents=True, exist_ok=True)
        for data in pages:
            draw(data, bundle, folder)


def build_script() -> str:
    """Install the packages of package-lock.json, and return them and page.jsx as one script."""
    if not (HERE / "node_modules").exists():
        subprocess.run(
            [need("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=HERE, check=True
        )
    esbuild = HERE / "node_modules" / ".bin" / "esbuild"
    options = "--bundle --minify --jsx=automatic --loader:.svg=dataurl --loader:.css=empty --log-level=error"
    define = "--define:process.env.NODE_ENV='production'"
    command = [str(esbuild), "page.jsx", *options.split(), define]
    return subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True).stdout


def page(path: Path, prometheus: Prometheus, seconds: int) -> Json:
    """Return a dashboard and the results of its queries, with "All" selected in each variable."""
    board: Json = json.loads(path.read_text())
    end = time.time()
    answers = {
        panel["id"]: {
            target["refId"]: query(prometheus, target, end - seconds, end) for target in panel["targets"]
        }
        for panel in board["panels"]
        if panel["type"] != "row"
    }
    return {
        "board": board,
        "answers": answers,
        "from": (end - seconds) * 1000,
        "to": end * 1000,
        "width": WIDTH_PIXELS,
    }


def query(prometheus: Prometheus, target: Json, start: float, end: float) -> list[Json]:
    """Return the result of a target's query, over the time range or at its end."""
    step = (end - start) / POINTS
    min_step = float(target.get("interval", "0s").removesuffix("s"))
    window = max(15, RATE_INTERVAL_STEPS * (min_step or step))  # as Grafana does
    values = {**ALL, "__rate_interval": f"{window:.0f}s", "__range": f"{end - start:.0f}s"}
    expr = re.sub(r"\$(\w+)", lambda match: values[match[1]], target["expr"])
    if target["instant"]:
        return prometheus.query(expr, end)
    return prometheus.query_range(expr, start, end, step)


def draw(page: Json, bundle: str, folder: Path) -> None:
    """Write a screenshot of the page."""
    uid = page["board"]["uid"]
    places = [panel["gridPos"] for panel in page["board"]["panels"]]
    height = 60 + 38 * max(place["y"] + place["h"] for place in places)
    html = folder / f"{uid}.html"
    data = json.dumps(page).replace("<", "\\u003c")
    styles = (HERE / "node_modules" / "uplot" / "dist" / "uPlot.min.css").read_text()
    script = bundle.replace("</script", "<\\/script")
    html.write_text(
        f'<!doctype html><meta charset="utf-8"><style>{styles}</style>'
        f'<body style="margin: 0"><div id="page"></div>'
        f"<script>window.PAGE = {data}</script><script>{script}</script>"
    )
    subprocess.run(
        [
            need("chromium"),
            *CHROMIUM,
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={WIDTH_PIXELS + 8},{height}",
            f"--screenshot={PICTURES / uid}.png",
            html.as_uri(),
        ],
        check=True,
        capture_output=True,
    )


if __name__ == "__main__":
    main()
