"""Pages in a headless Chromium, with their requests, console messages and errors.

Playwright controls the system's Chromium. Each page has its own browser context.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from harness import npm
from harness.processes import TESTS, need
from harness.waiting import ANSWER_TIMEOUT

AXE = TESTS / "browser"
#: A name of this machine that browsers do not trust as they trust localhost.
OTHER_HOST = "exporter.test"
#: Chromium has no sandbox for root.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", f"--host-resolver-rules=MAP {OTHER_HOST} 127.0.0.1")
TIMEOUT_MILLISECONDS = 1_000 * ANSWER_TIMEOUT
#: Impacts of axe violations that are errors.
SERIOUS = {"serious", "critical"}


class BrowserPage:
    """An open page, its console messages, its errors, and the URLs that it requested."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(TIMEOUT_MILLISECONDS)
        self.page: Page = self.context.new_page()
        self.console: list[str] = []
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def _on_console(self, message: ConsoleMessage) -> None:
        self.console.append(f"{message.type}: {message.text}")

    def problems(self) -> list[str]:
        """Return errors, and console messages except those about failed requests."""
        messages = [line for line in self.console if "Failed to load resource" not in line]
        return [*messages, *self.errors]

    def column(self, table: str, title: str) -> list[str]:
        """Return the texts of a column of a table, from top to bottom."""
        titles = self.page.locator(f"#{table} th").evaluate_all("all => all.map(head => head.dataset.title)")
        number = titles.index(title) + 1
        return self.page.locator(f"#{table} tbody td:nth-child({number})").all_text_contents()

    def row(self, table: str, name: str) -> dict[str, str]:
        """Return the texts of the first row with this name in a cell, by column; {} if there is none."""
        rows: list[dict[str, str]] = self.page.evaluate(ROWS, table)
        return next((row for row in rows if name in row.values()), {})

    def evaluate_all(self, selector: str, function: str) -> Any:
        """Call a JavaScript function with all elements of a CSS selector, in one call.

        The script of the page may replace the elements that a locator passes, and these have no size then.
        """
        return self.page.evaluate(f"({function})([...document.querySelectorAll({json.dumps(selector)})])")

    def axe(self) -> list[str]:
        """Return the serious and critical violations that axe reports for the page."""
        self.page.evaluate((axe_installed() / "axe.min.js").read_text())
        result = self.page.evaluate("axe.run(document, {resultTypes: ['violations', 'incomplete']})")
        assert result["passes"]
        return [
            f"{violation['impact']} {violation['id']}: {node['html'][:200]}"
            for violation in result["violations"]
            if violation["impact"] in SERIOUS
            for node in violation["nodes"]
        ]

    def close(self) -> None:
        self.context.close()


#: Returns all rows of a table in one call, so that the page's script cannot change them in between.
ROWS = """(id) => {
  const table = document.getElementById(id);
  const titles = [...table.querySelectorAll("th")].map((cell) => cell.dataset.title);
  return [...table.tBodies[0].rows].map((row) =>
    Object.fromEntries([...row.cells].map((cell, index) => [titles[index], cell.textContent.trim()])));
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the system's Chromium in headless mode."""
    program = need("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def axe_installed() -> Path:
    """Return the folder of axe, installed at the version and hash of the lock file."""
    npm.install(AXE, "axe-core")
    return AXE / "node_modules" / "axe-core"
