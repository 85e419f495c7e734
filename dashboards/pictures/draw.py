"""`make screenshots`: each dashboard as a picture, from a real Prometheus that watched the demo for a while.

Drawn by Grafana's own panel components (@grafana/ui), bundled with esbuild, in a headless Chromium; not by
Grafana itself, which has more around them. Needs node, npm and chromium; the harness of the tests starts the
servers.
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

from dashboards.panels import LEAST_STEPS

HERE = Path(__file__).parent
BOARDS = ROOT / "dashboards" / "provisioning"
PICTURES = ROOT / "docs" / "img"
WIDTH = 1600
POINTS = 200  # of a line
# Root has no sandbox; the page is our own. The budget is how long it may go on drawing, in its own time.
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000")
ALL = {"job": ".+", "queue": ".*", "task": ".*", "worker": ".*"}

Json = dict[str, Any]


def main() -> None:
    """Run the demo, ask every query, draw every dashboard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=360, help="how long the demo runs first")
    seconds: int = parser.parse_args().seconds
    bundle = bundled()
    with tempfile.TemporaryDirectory(prefix="pictures-") as name:
        folder = Path(name)
        with RedisServer(folder / "redis") as redis, scraped_demo(folder, redis.url) as prometheus:
            time.sleep(seconds)
            pages = [page(path, prometheus, seconds) for path in sorted(BOARDS.glob("*.json"))]
        PICTURES.mkdir(parents=True, exist_ok=True)
        for one in pages:
            draw(one, bundle, folder)


def bundled() -> str:
    """Install what package-lock.json says, and make one script of it."""
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
    """Return a dashboard with the answers to its queries, as Grafana would ask them with all chosen."""
    board: Json = json.loads(path.read_text())
    end = time.time()
    answers = {
        panel["id"]: {
            target["refId"]: ask(prometheus, target, end - seconds, end) for target in panel["targets"]
        }
        for panel in board["panels"]
        if panel["type"] != "row"
    }
    return {
        "board": board,
        "remote-control": answers,
        "from": (end - seconds) * 1000,
        "to": end * 1000,
        "width": WIDTH,
    }


def ask(prometheus: Prometheus, target: Json, start: float, end: float) -> list[Json]:
    """Ask one query, over the time shown or as of its end."""
    step = (end - start) / POINTS
    least = float(target.get("interval", "0s").removesuffix("s"))
    window = max(15, LEAST_STEPS * (least or step))  # as Grafana does
    values = {**ALL, "__rate_interval": f"{window:.0f}s", "__range": f"{end - start:.0f}s"}
    query = re.sub(r"\$(\w+)", lambda found: values[found[1]], target["expr"])
    return (
        prometheus.query(query, end) if target["instant"] else prometheus.query_range(query, start, end, step)
    )


def draw(page: Json, bundle: str, folder: Path) -> None:
    """Let the browser open the page, and keep what it shows."""
    uid = page["board"]["uid"]
    height = 60 + 38 * max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in page["board"]["panels"])
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
            f"--window-size={WIDTH + 8},{height}",
            f"--screenshot={PICTURES / uid}.png",
            html.as_uri(),
        ],
        check=True,
        capture_output=True,
    )


if __name__ == "__main__":
    main()
