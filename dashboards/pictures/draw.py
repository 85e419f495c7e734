"""Draws dashboards with data of the demo from a real Prometheus and a real InfluxDB (make screenshots).

Task log is not drawn, because it needs a Loki. A headless Chromium renders Grafana's panel components
(@grafana/ui), which esbuild bundles. The frame that Grafana shows around them is missing. Needs node, npm and
chromium. The test harness starts the servers.
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

import yaml
from harness.demo import scraped_demo
from harness.influxdb import PointsServer
from harness.objectives import rules_of
from harness.processes import ROOT, need
from harness.servers import Prometheus, RedisServer

from dashboards.panels import MIN_INFLUX_INTERVAL, RATE_INTERVAL_STEPS

HERE = Path(__file__).parent
BOARDS = ROOT / "dashboards" / "provisioning"
PICTURES = ROOT / "docs" / "img"
WIDTH_PIXELS = 1600
POINTS = 200  # of a line
# Chromium has no sandbox for root, and the page is ours. The budget is the virtual time for rendering, in ms.
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000")
ALL = {"job": ".+", "queue": ".*", "task": ".*", "worker": ".*", "service": ".*"}
#: Dashboards whose data source is not installed.
NOT_DRAWN = {"celery-task-log"}
#: Objectives that the demo meets for the most part.
OBJECTIVES = (
    {"name": "emails", "queue": "emails", "runtimeSeconds": 1, "queueWaitSeconds": 10, "objective": 0.7},
    {"name": "reports", "queue": "reports", "runtimeSeconds": 10, "objective": 0.75},
)

Json = dict[str, Any]


def main() -> None:
    """Run the demo, send every query, and draw every dashboard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=360, help="how long the demo runs before")
    seconds: int = parser.parse_args().seconds
    bundle = build_script()
    with tempfile.TemporaryDirectory(prefix="pictures-") as name:
        folder = Path(name)
        with (
            RedisServer(folder / "redis") as redis,
            PointsServer(folder / "influxdb") as influxdb,
            scraped_demo(folder, redis.url, *influxdb.options, rules=rule_file(folder)) as prometheus,
        ):
            time.sleep(seconds)
            paths = [path for path in sorted(BOARDS.glob("*.json")) if path.stem not in NOT_DRAWN]
            pages = [page(path, prometheus, influxdb, seconds) for path in paths]
        PICTURES.mkdir(parents=True, exist_ok=True)
        for data in pages:
            draw(data, bundle, folder)


def rule_file(folder: Path) -> Path:
    """Write the shipped rules, and those of objectives."""
    shipped = yaml.safe_load((ROOT / "alerts" / "celery.rules.yml").read_text())
    path = folder / "rules.yml"
    path.write_text(json.dumps({"groups": shipped["groups"] + rules_of(*OBJECTIVES)["groups"]}))
    return path


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


def page(path: Path, prometheus: Prometheus, influxdb: PointsServer, seconds: int) -> Json:
    """Return a dashboard and the results of its queries, with "All" selected in each variable."""
    board: Json = json.loads(path.read_text())
    end = time.time()
    start = end - seconds
    answers = {
        panel["id"]: {
            target["refId"]: (
                points(influxdb, panel, target, start, end)
                if target["datasource"]["type"] == "influxdb"
                else query(prometheus, target, start, end)
            )
            for target in panel["targets"]
        }
        for panel in board["panels"]
        if panel["type"] != "row"
    }
    return {
        "board": board,
        "answers": answers,
        "from": start * 1000,
        "to": end * 1000,
        "width": WIDTH_PIXELS,
    }


def query(prometheus: Prometheus, target: Json, start: float, end: float) -> list[Json]:
    """Return the result of a target's query, over the time range or at its end."""
    step = (end - start) / POINTS
    min_step = float(target.get("interval", "0s").removesuffix("s"))
    window = max(15, RATE_INTERVAL_STEPS * (min_step or step))  # as Grafana does
    values = {**ALL, "__rate_interval": f"{window:.0f}s", "__range": f"{end - start:.0f}s"}
    expr = with_values(target["expr"], values)
    if target["instant"]:
        return prometheus.query(expr, end)
    return prometheus.query_range(expr, start, end, step)


def points(influxdb: PointsServer, panel: Json, target: Json, start: float, end: float) -> list[Json]:
    """Return the result of a query of InfluxDB in the form of Prometheus; of a table, its columns.

    The alias of the target becomes a legend in the form of Prometheus, too.
    """
    interval = MIN_INFLUX_INTERVAL.removesuffix("s")
    values = {
        **ALL,
        "timeFilter": f"time >= {start * 1000:.0f}ms AND time <= {end * 1000:.0f}ms",
        "__interval_ms": f"{interval}000",
        "__interval": f"{interval}s",
    }
    series = influxdb.series(with_values(target["query"], values))
    if panel["type"] == "table":
        return [
            {
                "columns": ["Time", *one["columns"][1:]],
                "values": [[row[0] / 1e6, *row[1:]] for row in one["values"]],
            }
            for one in series
        ]
    target["legendFormat"] = re.sub(r"\$(?:tag_)?(\w+)", r"{{\1}}", target.get("alias", ""))
    lines = [
        (
            {**one.get("tags", {}), "col": column},
            [[row[0] / 1e9, row[index]] for row in one["values"] if row[index] is not None],
        )
        for one in series
        for index, column in enumerate(one["columns"])
        if column != "time"
    ]
    if panel["type"] == "stat":
        return [{"metric": labels, "value": samples[-1]} for labels, samples in lines if samples]
    return [{"metric": labels, "values": samples} for labels, samples in lines]


def with_values(text: str, values: dict[str, str]) -> str:
    """Return a query with values in place of Grafana's variables."""
    return re.sub(r"\$(\w+)", lambda match: values[match[1]], text)


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
