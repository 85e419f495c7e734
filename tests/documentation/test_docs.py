"""The pages: what is printed is current, the site builds strictly and fetches nothing, examples are right.

Each block of a page has a language, and each language a check (`CHECKS`). After a change that is meant:
make golden.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
import pytest
import yaml
from celery.app.defaults import NAMESPACES, flatten
from harness.processes import ROOT, need
from harness.statuses import serve_status
from unit.test_golden_replay import exporter_state

from celery_exporter.cli.main import _command
from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.cluster import Cluster, Limits
from celery_exporter.core.snapshot import take_snapshot
from celery_exporter.doctor import problems as doctor_problems
from celery_exporter.status import problems as status_problems
from celery_exporter.status.model import Status
from celery_exporter.web import web_config
from tools.docgen import checks, metrics, printed
from tools.docgen.marks import filled

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = ROOT / "README.md"
API = "/api/v1/status"
#: As often as the stack is scraped.
INTERVAL = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"][
    "scrape_interval"
]


# -- what is printed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", printed.made(), ids=lambda path: path.name)
def test_what_is_committed_is_what_the_code_says(path):
    assert path.read_text() == printed.made()[path]


def test_marks_that_are_lost_are_told_of():
    assert filled("<!-- a -->\nold\n<!-- end of a -->", {"a": "new"}) == "<!-- a -->\nnew\n<!-- end of a -->"
    assert filled("<!-- a -->\n<!-- end of a -->\n", {"a": ""}) == "<!-- a -->\n\n<!-- end of a -->\n"
    with pytest.raises(ValueError, match="marks of b"):
        filled("<!-- b -->\nold", {"b": "new"})


def test_every_problem_is_in_the_table():
    lines = checks.table().splitlines()
    for module in (status_problems, doctor_problems):
        for name, row in checks.problems(module).items():
            words = re.split(r"\{.*?\}", row.message)  # around the fields
            assert any(
                line.startswith(f"| {row.check} | {row.severity} |") and all(word in line for word in words)
                for line in lines
            ), name


def test_what_brokers_say_is_in_the_table():
    lines = checks.table().splitlines()
    for check, found, remedy in [
        ("url", "unknown scheme", "kombu supports"),
        ("url", "cannot be read", "percent-encode"),
        ("login", "NOAUTH or WRONGPASS", "rabbitmqctl change_password USER PASSWORD"),
        ("login", "NOAUTH or WRONGPASS", "guest may log in from localhost only"),
        ("virtual-host", "vhost … not found", "rabbitmqctl add_vhost VHOST"),
        ("database", "DB index is out of range", "databases"),
        ("tls", "certificate verify failed", "RabbitMQ: --broker-ssl-option ca_certs="),
        ("answer", "connecting to /", "unixsocket /PATH"),
        ("subscription", "run the 'psubscribe' command", "+psubscribe"),
        ("subscription", "access one of the channels", "ACL SETUSER USER '&/0.celeryev/"),
        ("eviction", "maxmemory-policy is", "noeviction"),
    ]:
        assert any(line.startswith(f"| {check} |") and found in line and remedy in line for line in lines), (
            check
        )


# -- metrics -------------------------------------------------------------------------------------------


def test_each_metric_says_when_it_is_absent_if_it_can_be():
    """An exporter that has just begun, and knows nothing, is what shows it."""
    nothing = exporter_state(0.0)
    nothing = type(nothing)(
        **{field: getattr(nothing, field) for field in nothing.__struct_fields__}
        | {"queue_stats": {}, "unacked": None, "jobs": [], "event_lag": None, "last_event": None}
        | {"no_events": "memory:// has no fan-out"}
    )
    snapshot = take_snapshot(Cluster(Limits(), Aggregates((), ())), nothing)
    missing = {row.name for row in metrics.rows() if not list(row.samples(snapshot))}
    assert {row.name for row in metrics.rows() if row.absent} == missing


def test_each_metric_has_an_example_that_asks_for_it():
    for row in metrics.rows():
        assert re.search(rf"\b{row.name}(_bucket|_sum|_count)?\b", row.example), row.name


# -- the site ------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a built page links to, and what a browser fetches with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in {"href", "src", "data", "poster", "srcset", "action"} and value:
                (self.links if tag == "a" else self.fetched).append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    done = subprocess.run(
        [need("zensical"), "build", "--strict", "--clean"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_each_page_is_built_and_in_the_navigation(site):
    nav = re.findall(r'" = "(.+)" }', (ROOT / "zensical.toml").read_text())
    pages = {page.relative_to(DOCS) for page in PAGES}
    assert sorted(nav) == sorted(map(str, pages))
    built = {path.relative_to(site).with_suffix(".md") for path in site.rglob("*.html")}
    assert built == pages | {Path("404.md")}


def test_nothing_is_fetched_from_elsewhere(site):
    fetched = {what for path in site.rglob("*.html") for what in Page(path).fetched}
    assert fetched
    assert {what for what in fetched if urlsplit(what).netloc} == set()
    styles = "".join(path.read_text() for kind in ("css", "html") for path in site.rglob(f"*.{kind}"))
    assert re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*|@import[^;]*//[^;]*", styles) == []


def test_every_file_that_a_page_shows_or_links_to_is_there(site):
    for path in site.rglob("*.html"):
        page = Page(path)
        for target in (*page.links, *page.fetched):
            address = urlsplit(target)
            if not address.scheme and not address.netloc and address.path and path.name != "404.html":
                assert (path.parent / address.path).resolve().exists(), f"{path.name}: {target}"


# -- examples ------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A block of a page between its fences."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        fence = re.fullmatch(r"( *)```(.*)", line)
        if fence:
            inside = []
            for _, text in lines:
                if text.strip() == "```":
                    break
                inside.append(text.removeprefix(fence[1]))
            language = fence[2].partition(" ")[0]
            yield Block(str(page.relative_to(ROOT)), number, language, "\n".join(inside) + "\n")


BLOCKS = [block for page in (README, *PAGES) for block in blocks(page)]


def check_console(text: str, _folder: Path) -> None:
    """A dollar, and a command that is right as far as it is ours; lines without one are what it prints."""
    commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    assert commands, "a block of output is text"
    check_sh("\n".join(commands), _folder)


def check_sh(text: str, _folder: Path) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for command in text.splitlines():
        words = list(shlex.shlex(command, punctuation_chars=True, posix=True))
        for index, word in enumerate(words):
            if word.rpartition("/")[2] == "celery-exporter" and is_command(words[:index]):
                check_options(until_operator(words[index + 1 :]))
            elif word == "make":
                assert re.search(rf"^{words[index + 1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
            elif word.startswith(("deploy/", "alerts/", "dashboards/")):
                made = "deploy/secrets/" in word
                assert made or (ROOT / word).exists(), word


def is_command(before: list[str]) -> bool:
    """Tell whether a command begins after these words."""
    return not before or before[-1] in {"|", "||", "&&", ";", "(", "sudo", "exec"} or "=" in before[-1]


def until_operator(words: list[str]) -> list[str]:
    ends = (index for index, word in enumerate(words) if set(word) <= set("|&;<>()"))
    return words[: next(ends, len(words))]


def check_options(words: list[str]) -> None:
    named = [word for word in words if word in _command.commands]
    commands = [_command, *(_command.commands[name] for name in named)]
    ours = {flag for each in commands for parameter in each.params for flag in parameter.opts}
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert flags <= ours | {"--help", "-h"}, flags - ours


def check_promql(text: str, folder: Path) -> None:
    check_rules([{"record": "example", "expr": text}], folder)


def check_rules(rules: list[object], folder: Path) -> None:
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "example", "rules": rules}]}))
    promtool("check", "rules", str(path))


def promtool(*arguments: str) -> None:
    done = subprocess.run([need("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def check_yaml(text: str, folder: Path) -> None:
    """Prometheus' own are for promtool; what Kubernetes reads is held by tests/distribution, where it is."""
    for found in yaml.safe_load_all(text):
        if isinstance(found, list):
            check_rules(found, folder)
        elif "scrape_configs" in found:
            assert {job["scrape_interval"] for job in found["scrape_configs"]} == {INTERVAL}
            path = folder / "prometheus.yml"
            path.write_text(text)
            promtool("check", "config", "--syntax-only", str(path))
        elif "basic_auth_users" in found:
            web_config.parse(text.encode())
        else:
            assert "apiVersion" in found or "resources" in found, found.keys()


def check_python(text: str, _folder: Path) -> None:
    known = {name for name, _ in flatten(NAMESPACES)}
    tree = ast.parse(text)
    targets = [node.targets[0] for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    settings = {each.attr for each in targets if isinstance(each, ast.Attribute)}
    names = {each.id for each in targets if isinstance(each, ast.Name)}
    settings |= {name.removeprefix("CELERY_").lower() for name in names if name.startswith("CELERY_")}
    assert settings <= known


def check_json(text: str, _folder: Path) -> None:
    """What the API answers: with each field that there is, and none that there is not."""
    found = msgspec.json.decode(text, type=Status, strict=True)
    assert json.loads(msgspec.json.encode(found)) == json.loads(text)


def check_mermaid(text: str, _folder: Path) -> None:
    """A flowchart whose arrows go from box to box."""
    kind, *lines = text.splitlines()
    boxes = set(re.findall(r"^  (\w+)\[", text, re.MULTILINE))
    arrows = [re.fullmatch(r"  (\w+) --> (\w+)", line) for line in lines if "-->" in line]
    assert kind.startswith("flowchart ")
    assert arrows
    assert all(arrow and {*arrow.groups()} <= boxes for arrow in arrows)


CHECKS: dict[str, Callable[[str, Path], None]] = {
    "mermaid": check_mermaid,
    "console": check_console,
    "sh": check_sh,
    "promql": check_promql,
    "yaml": check_yaml,
    "python": check_python,
    "json": check_json,
    "text": lambda _text, _folder: None,  # what something printed
}


def test_every_block_has_a_language_and_every_language_a_check():
    assert [block[:3] for block in BLOCKS if block.language not in CHECKS] == []
    assert {block.language for block in BLOCKS} == set(CHECKS)


def test_what_is_in_a_list_is_indented_as_markdown_wants_it():
    """By four: with three GitHub sees a list, and the site's Markdown its end."""
    for page in PAGES:
        assert not re.search(r"^(?: {4})* {1,3}```", page.read_text(), re.MULTILINE), page.name


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.language != "promql"],
    ids=lambda each: f"{each.page}:{each.line}",
)
def test_an_example_is_right(block, tmp_path):
    CHECKS[block.language](block.text, tmp_path)


def test_promql_examples_are_right(tmp_path):
    """All of them in one go, for promtool takes a while to start."""
    queries = [block.text for block in BLOCKS if block.language == "promql"]
    assert len(queries) > len(metrics.rows())
    check_rules(
        [{"record": f"example_{index}", "expr": text} for index, text in enumerate(queries)], tmp_path
    )


def test_what_the_pages_ask_the_api_is_answered_so():
    """Each command that asks it is run, on an exporter that shows the example."""
    own = [block for block in BLOCKS if block.page == "docs/reference/status-api.md"]
    (example,) = (block.text for block in own if block.language == "json")
    (console,) = (block.text for block in own if block.language == "console")
    assert console.count(API) > 1
    need("curl")
    need("jq")
    with serve_status(msgspec.json.decode(example, type=Status)) as served:
        for part in console.removeprefix("$ ").split("\n$ "):
            command, _, printed_ = part.partition("\n")
            here = command.replace("http://127.0.0.1:9808/", served.url)
            done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=True)
            assert done.stdout.strip() == printed_.strip()


def test_only_what_needs_newer_servers_fetches_them():
    def does(target: str) -> str:
        command = [need("make"), "--dry-run", "--directory", ROOT, target]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "install-newer.sh" in does("test")
    for target in ("servers", "stack", "truth", "faults", "screenshots", "bench"):
        assert "install-servers.sh" in does(target)
        assert "install-newer.sh" not in does(target)


def test_a_wrong_example_is_found(tmp_path):
    errors = (
        AssertionError,
        subprocess.CalledProcessError,
        msgspec.ValidationError,
        web_config.BadWebConfigError,
    )
    for language, text in [
        ("console", "$ celery-exporter --broker-uri redis://\n"),
        ("console", "$ make nosuch\n"),
        ("console", "$ sudo cp deploy/nosuch /etc\n"),
        ("sh", "eval $(celery-exporter record --nosuch)\n"),
        ("promql", "sum by (rate(celery_tasks_total[5m])\n"),
        ("yaml", "scrape_configs: [{job: celery, scrape_interval: 15s}]\n"),
        ("yaml", "scrape_configs: [{job_name: celery, scrape_interval: 1m}]\n"),
        ("yaml", "basic_auth_users: {prometheus: secret}\n"),
        ("python", "app.conf.task_send_send_event = True\n"),
        ("python", "CELERY_SEND_TASK_EVENTS = True\n"),
        ("json", '{"version": 1}'),
    ]:
        with pytest.raises(errors):
            CHECKS[language](text, tmp_path)
