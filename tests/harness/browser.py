"""Pages as people see them, in a headless Chromium, and what else happened there: requests, console, errors.

Playwright drives the Chromium of the system. Each page has a context of its own: nothing is shared.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from harness.processes import TESTS, missing, need
from harness.waiting import ANSWER_TIMEOUT

AXE = TESTS / "browser"
#: Root has no sandbox, and the pages are our own.
ARGUMENTS = ("--no-sandbox", "--disable-gpu")
#: Milliseconds for what takes a second where nothing else runs.
PATIENCE = 1_000 * ANSWER_TIMEOUT
SERIOUS = {"serious", "critical"}


class Visitor:
    """A window on one page. `console` and `errors` are what it had to say, `asked` the URLs it fetched."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE)
        self.page: Page = self.context.new_page()
        self.console: list[str] = []
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)

    def _heard(self, message: ConsoleMessage) -> None:
        self.console.append(f"{message.type}: {message.text}")

    def complaints(self) -> list[str]:
        """Return what the console was told, but for answers that did not come, and errors of the script."""
        loud = [line for line in self.console if "Failed to load resource" not in line]
        return [*loud, *self.errors]

    def column(self, table: str, title: str) -> list[str]:
        """Return the texts of a column of a table, from the top down."""
        heads = [head.rstrip(" ▲▼") for head in self.page.locator(f"#{table} th").all_text_contents()]
        place = heads.index(title) + 1
        return self.page.locator(f"#{table} tbody td:nth-child({place})").all_text_contents()

    def row(self, table: str, name: str) -> dict[str, str]:
        """Return the texts of the row whose first cell says this, by column; empty where there is none."""
        rows: list[dict[str, str]] = self.page.evaluate(ROWS, table)
        return next((row for row in rows if name in row.values()), {})

    def axe(self) -> list[str]:
        """Return what axe holds against the page that is serious or worse."""
        self.page.evaluate((axe_installed() / "axe.min.js").read_text())
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations', 'incomplete']})")
        assert found["passes"]
        return [
            f"{one['impact']} {one['id']}: {node['html'][:200]}"
            for one in found["violations"]
            if one["impact"] in SERIOUS
            for node in one["nodes"]
        ]

    def close(self) -> None:
        self.context.close()


#: Rows of a table, by column. One look, so that the script does not change them meanwhile.
ROWS = """(id) => {
  const table = document.getElementById(id);
  const heads = [...table.querySelectorAll("th")].map((head) => head.textContent);
  return [...table.tBodies[0].rows].map((row) =>
    Object.fromEntries([...row.cells].map((cell, place) => [heads[place], cell.textContent.trim()])));
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the system's Chromium, without a window."""
    program = need("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def axe_installed() -> Path:
    """Return the folder of axe, at the version and hash that are locked."""
    folder, lock = AXE / "node_modules" / "axe-core", AXE / "package-lock.json"
    wanted = json.loads(lock.read_text())["packages"]["node_modules/axe-core"]["version"]
    package = folder / "package.json"
    if not package.exists() or json.loads(package.read_text())["version"] != wanted:
        command = [need("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=AXE, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            missing(f"axe-core (npm ci: {done.stderr.strip()[-300:]})")
    return folder
