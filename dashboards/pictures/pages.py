"""Draws pictures of the pages: of an exporter that monitors the demo, and of 80 workers (make screenshots).

In the demo, some tasks go to a queue without a consumer, so that the overview shows a finding. The 80 workers
are made up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from harness import clusters, workers
from harness.browser import BrowserPage, chromium
from harness.demo import running_demo
from harness.exporter import Exporter
from harness.servers import RedisServer
from harness.statuses import serve_status
from playwright.sync_api import Browser

from dashboards.pictures.draw import PICTURES

#: Width and height of a window in CSS pixels, and pixels of the picture for each of them.
Window = tuple[int, int, int]
DESKTOP, PHONE = (1280, 800, 1), (390, 844, 2)
#: File name → path of a page of the demo, which has two workers, window, and color scheme.
DEMO = {"overview-2": ("/", DESKTOP, "light")}
#: The same of 80 workers. {uuid} is the id of a task.
LARGE = {
    "overview-80": ("/", DESKTOP, "light"),
    "overview-80-dark": ("/", DESKTOP, "dark"),
    "overview-phone": ("/", PHONE, "dark"),
    "task": ("/task/{uuid}", DESKTOP, "light"),
}
UNCONSUMED = ("thumbnails", "thumbnail.make", 3)


def main() -> None:
    """Run the demo, and draw its pages; draw those of 80 workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=240, help="how long the demo runs before")
    seconds: int = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="pictures-") as name:
        folder = Path(name)
        with (
            RedisServer(folder / "redis") as redis,
            Exporter(folder / "exporter", redis.url) as exporter,
            running_demo(folder, exporter.connected() and redis.url),
        ):
            queue, task, count = UNCONSUMED
            with workers.client(redis.url) as client:
                for _ in range(count):
                    client.send_task(task, queue=queue)
            time.sleep(seconds)
            with chromium() as browser:
                for picture, (path, window, scheme) in DEMO.items():
                    draw(browser, picture, f"http://127.0.0.1:{exporter.port}{path}", window, scheme)
    draw_large()


def draw_large() -> None:
    """Draw the pages of a made-up cluster of 80 workers."""
    cluster = clusters.cluster(80, 30)
    tasks = clusters.MadeUpTasks(cluster)
    with serve_status(cluster, tasks) as pages, chromium() as browser:
        for picture, (path, window, scheme) in LARGE.items():
            url = pages.url.rstrip("/") + path.format(uuid=tasks.tasks[3].uuid)
            draw(browser, picture, url, window, scheme)


def draw(browser: Browser, picture: str, url: str, window: Window, scheme: str) -> None:
    """Write a screenshot: of the whole page, or of what a phone shows."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    width, height, scale = window
    options = {"viewport": {"width": width, "height": height}, "device_scale_factor": scale}
    visitor = BrowserPage(browser, url, color_scheme=scheme, **options)
    visitor.page.wait_for_load_state("networkidle")
    visitor.page.screenshot(path=PICTURES / f"{picture}.png", full_page=window != PHONE)
    visitor.close()


if __name__ == "__main__":
    main()
