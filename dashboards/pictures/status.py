"""Draws two pictures of the status page of an exporter that monitors the demo (make screenshots).

Some tasks go to a queue without a consumer, so that the page shows a finding.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from harness import workers
from harness.browser import BrowserPage, chromium
from harness.demo import running_demo
from harness.exporter import Exporter
from harness.servers import RedisServer

from dashboards.pictures.draw import PICTURES

#: File name → width and height of the window in CSS pixels, and pixels of the picture for each of them.
WINDOWS = {"status": (1280, 800, 1), "status-phone": (390, 844, 2)}
UNCONSUMED = ("thumbnails", "thumbnail.make", 3)


def main() -> None:
    """Run the demo, and draw its status page."""
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
            draw(f"http://127.0.0.1:{exporter.port}/?sort=-rates.SUCCESS")


def draw(url: str) -> None:
    """Write screenshots of the whole page, one for each window size."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name, (width, height, scale) in WINDOWS.items():
            window = {"width": width, "height": height}
            visitor = BrowserPage(browser, url, viewport=window, device_scale_factor=scale)
            visitor.page.wait_for_load_state("networkidle")
            visitor.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
            visitor.close()


if __name__ == "__main__":
    main()
