"""The pages: generated parts are current, the site builds in strict mode, and examples are valid.

Each block of a page has a language, and each language has a check (`CHECKS`). Run `make golden` after an
intended change.
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
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jsonschema
import msgspec
import pytest
import yaml
from celery.app.defaults import NAMESPACES, flatten
from harness import logql
from harness import objectives as mixin
from harness.processes import ROOT, need
from harness.statuses import serve_status
from unit.test_golden_replay import exporter_state

from celery_exporter.cli.main import _command
from celery_exporter.config import config_file
from celery_exporter.core.aggregates import Aggregates
from celery_exporter.core.cluster import Cluster, Limits
from celery_exporter.core.snapshot import take_snapshot
from celery_exporter.doctor import problems as doctor_problems
from celery_exporter.errors import BadSettingError
from celery_exporter.sinks import points as influxdb_points
from celery_exporter.sinks.log_line import LogLine
from celery_exporter.sinks.loki import LABELS, _Metadata
from celery_exporter.status import problems as status_problems
from celery_exporter.status.model import Status
from celery_exporter.web import web_config
from tools.docgen import checks, event_log, metrics, printed
from tools.docgen.marks import filled

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = ROOT / "README.md"
#: The file with which Grafana of the stack reads the dashboards.
PROVIDER = ROOT / "deploy/grafana/provisioning/dashboards/celery.yml"
API = "/api/v1/status"
#: The scrape interval of the stack.
INTERVAL = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"][
    "scrape_interval"
]


# -- generated parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", printed.made(), ids=lambda path: path.name)
def test_generated_parts_are_current(path):
    assert path.read_text() == printed.made()[path]


def test_missing_marks_are_an_error():
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


def test_errors_of_brokers_are_in_the_table():
    lines = checks.table().splitlines()
    for check, message, remedy in [
        ("url", "unknown scheme", "kombu supports …"),
        ("url", "cannot be read", "percent-encode"),
        ("login", '"NOAUTH", "WRONGPASS"', "rabbitmqctl change_password USER PASSWORD"),
        ("login", '"NOAUTH", "WRONGPASS"', "guest may log in from localhost only"),
        ("virtual-host", "vhost … not found", "rabbitmqctl add_vhost VHOST"),
        ("database", "DB index is out of range", "databases"),
        ("tls", "certificate verify failed", "RabbitMQ: --broker-ssl-option ca_certs="),
        ("answer", "connecting to /", "unixsocket /PATH"),
        ("subscription", "run the 'psubscribe' command", "+psubscribe"),
        ("subscription", "access one of the channels", "ACL SETUSER USER '&/0.celeryev/"),
        ("eviction", "maxmemory-policy is", "noeviction"),
    ]:
        assert any(
            line.startswith(f"| {check} |") and message in line and remedy in line for line in lines
        ), check


# -- metrics -------------------------------------------------------------------------------------------


def test_every_metric_that_can_be_absent_says_when():
    """Such metrics are missing in an exporter that has just started."""
    exporter = exporter_state(0.0)
    exporter = type(exporter)(
        **{field: getattr(exporter, field) for field in exporter.__struct_fields__}
        | {"queue_stats": {}, "unacked": None, "jobs": [], "event_lag": None, "last_event": None}
        | {"no_events": "memory:// has no fan-out"}
    )
    snapshot = take_snapshot(Cluster(Limits(), Aggregates((), ())), exporter)
    missing = {row.name for row in metrics.rows() if not list(row.samples(snapshot))}
    assert {row.name for row in metrics.rows() if row.absent} == missing


def test_every_metric_has_an_example_that_uses_it():
    for row in metrics.rows():
        assert re.search(rf"\b{row.name}(_bucket|_sum|_count)?\b", row.example), row.name


# -- the site ------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The links of a built page, and the files that a browser loads with it."""

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
    """Return the folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    result = subprocess.run(
        [need("zensical"), "build", "--strict", "--clean"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "site"


def test_every_page_is_built_and_in_the_navigation(site):
    nav = re.findall(r'" = "(.+)" }', (ROOT / "zensical.toml").read_text())
    pages = {page.relative_to(DOCS) for page in PAGES}
    assert sorted(nav) == sorted(map(str, pages))
    built = {path.relative_to(site).with_suffix(".md") for path in site.rglob("*.html")}
    assert built == pages | {Path("404.md")}


def test_the_site_loads_no_external_files(site):
    urls = {url for path in site.rglob("*.html") for url in Page(path).fetched}
    assert urls
    assert {url for url in urls if urlsplit(url).netloc} == set()
    styles = "".join(path.read_text() for kind in ("css", "html") for path in site.rglob(f"*.{kind}"))
    assert re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*|@import[^;]*//[^;]*", styles) == []


def test_every_linked_or_loaded_file_exists(site):
    for path in site.rglob("*.html"):
        page = Page(path)
        for target in (*page.links, *page.fetched):
            address = urlsplit(target)
            if not address.scheme and not address.netloc and address.path and path.name != "404.html":
                assert (path.parent / address.path).resolve().exists(), f"{path.name}: {target}"


# -- examples ------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    title: str = ""  # the file that the reader writes it to


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        fence = re.fullmatch(r"( *)```(.*)", line)
        if fence:
            content = []
            for _, text in lines:
                if text.strip() == "```":
                    break
                content.append(text.removeprefix(fence[1]))
            language, _, attributes = fence[2].partition(" ")
            title = attributes.removeprefix('title="').removesuffix('"')
            yield Block(str(page.relative_to(ROOT)), number, language, "\n".join(content) + "\n", title)


BLOCKS = [block for page in (README, *PAGES) for block in blocks(page)]


def check_console(text: str, _folder: Path) -> None:
    """Check the commands, which begin with a dollar; other lines are output."""
    commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    assert commands, "a block of output has the language text"
    check_sh("\n".join(commands), _folder)


def check_sh(text: str, _folder: Path) -> None:
    """Check the syntax, and the options and files of this project."""
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for command in text.splitlines():
        words = list(shlex.shlex(command, punctuation_chars=True, posix=True))
        for index, word in enumerate(words):
            if word.rpartition("/")[2] == "celery-exporter" and is_command(words[:index]):
                check_options(until_operator(words[index + 1 :]))
            elif word == "make":
                assert re.search(rf"^{words[index + 1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
            elif word.startswith(("deploy/", "alerts/", "dashboards/")):
                is_generated = "deploy/secrets/" in word
                assert is_generated or (ROOT / word).exists(), word


def is_command(before: list[str]) -> bool:
    """Return whether a command begins after these words."""
    return not before or before[-1] in {"|", "||", "&&", ";", "(", "sudo", "exec"} or "=" in before[-1]


def until_operator(words: list[str]) -> list[str]:
    """Return the words of a command, up to a shell operator."""
    ends = (index for index, word in enumerate(words) if set(word) <= set("|&;<>()"))
    return words[: next(ends, len(words))]


def check_options(words: list[str]) -> None:
    """Check that the options of a celery-exporter command exist."""
    names = [word for word in words if word in _command.commands]
    commands = [_command, *(_command.commands[name] for name in names)]
    existing = {flag for command in commands for parameter in command.params for flag in parameter.opts}
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert flags <= existing | {"--help", "-h"}, flags - existing


def check_promql(text: str, folder: Path) -> None:
    """Check an expression."""
    check_rules([{"record": "example", "expr": text}], folder)


def check_rules(rules: list[object], folder: Path) -> None:
    """Check recording and alerting rules."""
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "example", "rules": rules}]}))
    promtool("check", "rules", str(path))


def promtool(*arguments: str) -> None:
    """Run promtool, which must succeed."""
    result = subprocess.run([need("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def check_yaml(text: str, folder: Path) -> None:
    """Check files of Prometheus with promtool; tests/distribution checks those of Kubernetes."""
    for document in yaml.safe_load_all(text):
        if isinstance(document, list):
            check_rules(document, folder)
        elif "scrape_configs" in document:
            assert {job["scrape_interval"] for job in document["scrape_configs"]} == {INTERVAL}
            path = folder / "prometheus.yml"
            path.write_text(text)
            promtool("check", "config", "--syntax-only", str(path))
        elif {"brokers", "expected"} & document.keys():
            path = folder / "config.yml"
            path.write_text(text)
            config_file.read(path)
        elif "basic_auth_users" in document:
            web_config.parse(text.encode())
        elif "sinks" in document:
            check_vector(document)
        elif "pipeline" in document:
            check_fluent_bit(document)
        elif "receivers" in document:  # of an OpenTelemetry Collector, which is not available here
            check_yaml(yaml.safe_dump(document["receivers"]["prometheus"]["config"]), folder)
        elif "instances" in document:
            check_datadog(document)
        else:  # of Kubernetes, of Grafana, or of Tempo
            assert {"apiVersion", "resources", "distributor"} & document.keys(), document.keys()


def check_vector(document: dict[str, Any]) -> None:
    """Check that the components of Vector read from others. Vector itself is not available here."""
    components = {**document["sources"], **document["transforms"], **document["sinks"]}
    assert all(component["type"] for component in components.values())
    readers = {**document["transforms"], **document["sinks"]}
    assert {name for reader in readers.values() for name in reader["inputs"]} == (
        components.keys() - document["sinks"].keys()
    )


def check_datadog(document: dict[str, Any]) -> None:
    """Check that the check of Datadog's Agent adds existing metrics. The Agent is not available here."""
    (instance,) = document["instances"]
    assert urlsplit(instance["openmetrics_endpoint"]).path == "/metrics"
    names = {name.removesuffix("_total") for name in (row.name for row in metrics.rows())}
    assert {name for row in instance.get("extra_metrics", []) for name in row} <= names


def check_fluent_bit(document: dict[str, Any]) -> None:
    """Check that parsers and tags of Fluent Bit exist. Fluent Bit itself is not available here."""
    inputs, outputs = document["pipeline"]["inputs"], document["pipeline"]["outputs"]
    assert {parser["name"] for parser in document["parsers"]} == {each["parser"] for each in inputs}
    assert {each["tag"] for each in inputs} == {each["match"] for each in outputs}


def check_alloy(text: str, _folder: Path) -> None:
    """Check that brackets match and that components of Alloy exist. Alloy itself is not available here."""
    without_texts = re.sub(r'"[^"\\]*"', "", text)
    nested: list[str] = []
    for bracket in re.findall(r"[\[\](){}]", without_texts):
        assert bracket not in "])}" or nested.pop() == {"]": "[", ")": "(", "}": "{"}[bracket]
        nested += [bracket] if bracket in "[({" else []
    assert nested == []
    defined = {f"{kind}.{name}" for kind, name in re.findall(r'^([a-z._]+) "(\w+)" {', text, re.MULTILINE)}
    used = set(re.findall(r"\b([a-z]+\.[a-z_]+(?:\.\w+)?)\.receiver\b", text))
    assert used == {name for name in defined if not name.startswith("loki.source.")}


def check_logrotate(text: str, folder: Path) -> None:
    """Check the file with logrotate, without running it."""
    path = folder / "logrotate"
    path.write_text(text)
    path.chmod(0o644)  # logrotate ignores files that others can write to
    command = [need("logrotate"), "--debug", "--state", folder / "status", path]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "error" not in result.stderr.lower(), result.stderr


def check_logql(text: str, _folder: Path) -> None:
    """Check the syntax of a query, and that its labels exist."""
    assert logql.syntax_errors([text]) == []
    names = {*LABELS, *_Metadata.__struct_fields__, *LogLine.__struct_fields__}
    assert set(re.findall(r"(\w+)\s*(?:=~?|!=|>|<)", text)) | set(re.findall(r"by \((\w+)\)", text)) <= names


def check_influxql(text: str, _folder: Path) -> None:
    """Check that measurements, tags and fields exist; tests/integration/test_influxdb.py runs the query."""
    measurements = {"worker_requests", "worker_queue", "subtask_errors", "subtask_final", "requests"}
    assert set(re.findall(r"FROM (\w+)", text)) <= measurements
    words = {"SELECT", "FROM", "WHERE", "AND", "GROUP", "BY", "now", "fill", "none", "tag"}
    functions = {"count", "max", "mean", "percentile", "top"}
    names = set(re.findall(r"\b[A-Za-z_]+\b", re.sub("'[^']*'", "", text))) - words - functions - measurements
    assert names <= influxdb_points.NAMES, names


def check_flux(text: str, _folder: Path) -> None:
    """Check the shape of a query, and that its tags and fields exist. No server here knows Flux."""
    first, *steps = text.splitlines()
    assert re.fullmatch(r'from\(bucket: "\w+"\)', first)
    assert all(re.fullmatch(r"  \|> \w+\(.+\)", step) for step in steps)
    assert all(text.count(opening) == text.count(closing) for opening, closing in ("()", "[]"))
    fields, columns = re.findall(r'r\._field == "(\w+)"', text), re.findall(r'columns: \["(\w+)"\]', text)
    assert {*fields, *columns} <= influxdb_points.NAMES


def check_python(text: str, _folder: Path) -> None:
    """Check that assigned Celery settings exist."""
    existing = {name for name, _ in flatten(NAMESPACES)}
    tree = ast.parse(text)
    targets = [node.targets[0] for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    settings = {target.attr for target in targets if isinstance(target, ast.Attribute)}
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    settings |= {name.removeprefix("CELERY_").lower() for name in names if name.startswith("CELERY_")}
    assert settings <= existing


def check_json(text: str, _folder: Path) -> None:
    """Check that a response of the status API has all fields and no others, or that a line is valid."""
    if "uuid" in json.loads(text):
        jsonschema.validate(json.loads(text), json.loads(event_log.PATH.read_text()))
        return
    status = msgspec.json.decode(text, type=Status, strict=True)
    assert json.loads(msgspec.json.encode(status)) == json.loads(text)


def check_jsonnet(text: str, folder: Path) -> None:
    """Check that the mixin generates valid rules with this addition to its configuration."""
    known = mixin.evaluate('std.objectFieldsAll((import "mixin.libsonnet")._config)')
    added = mixin.evaluate(f"std.objectFieldsAll({text})")
    assert set(json.loads(added.stdout)) <= set(json.loads(known.stdout))
    result = mixin.evaluate(f'((import "mixin.libsonnet") + {{ _config+:: {text} }}).prometheusAlerts')
    assert result.returncode == 0, result.stderr
    path = folder / "rules.json"
    path.write_text(result.stdout)
    promtool("check", "rules", str(path))


def check_dockerfile(text: str, _folder: Path) -> None:
    """Check the syntax. Examples have no versions of packages (DL3013)."""
    command = [need("hadolint"), "--ignore", "DL3013", "-"]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def check_mermaid(text: str, _folder: Path) -> None:
    """Check that the arrows of a flowchart connect existing boxes."""
    kind, *lines = text.splitlines()
    boxes = set(re.findall(r"^  (\w+)\[", text, re.MULTILINE))
    arrows = [re.fullmatch(r"  (\w+) --> (\w+)", line) for line in lines if "-->" in line]
    assert kind.startswith("flowchart ")
    assert arrows
    assert all(arrow and {*arrow.groups()} <= boxes for arrow in arrows)


CHECKS: dict[str, Callable[[str, Path], None]] = {
    "mermaid": check_mermaid,
    "dockerfile": check_dockerfile,
    "console": check_console,
    "sh": check_sh,
    "promql": check_promql,
    "yaml": check_yaml,
    "python": check_python,
    "json": check_json,
    "jsonnet": check_jsonnet,
    "alloy": check_alloy,
    "logrotate": check_logrotate,
    "logql": check_logql,
    "influxql": check_influxql,
    "flux": check_flux,
    "text": lambda _text, _folder: None,  # output of a program
}


def test_every_block_has_a_language_and_every_language_a_check():
    assert [block[:3] for block in BLOCKS if block.language not in CHECKS] == []
    assert {block.language for block in BLOCKS} == set(CHECKS)


def test_blocks_in_lists_are_indented_by_four():
    """With three spaces, the Markdown of the site ends the list, unlike GitHub's."""
    for page in PAGES:
        assert not re.search(r"^(?: {4})* {1,3}```", page.read_text(), re.MULTILINE), page.name


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.language != "promql"],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_an_example_is_valid(block, tmp_path):
    CHECKS[block.language](block.text, tmp_path)


def test_the_provider_of_dashboards_is_that_of_the_stack():
    texts = [block.text for block in BLOCKS if block.language == "yaml" and "providers:" in block.text]
    assert [yaml.safe_load(text) for text in texts] == [yaml.safe_load(PROVIDER.read_text())]


def test_promql_examples_are_valid(tmp_path):
    """One run of promtool checks all of them, because it starts slowly."""
    queries = [block.text for block in BLOCKS if block.language == "promql"]
    assert len(queries) > len(metrics.rows())
    check_rules(
        [{"record": f"example_{index}", "expr": text} for index, text in enumerate(queries)], tmp_path
    )


def test_the_commands_for_the_status_api_print_the_shown_output():
    """The commands run against a server that responds with the example of the page."""
    page_blocks = [block for block in BLOCKS if block.page == "docs/reference/status-api.md"]
    (example,) = (block.text for block in page_blocks if block.language == "json")
    (console,) = (block.text for block in page_blocks if block.language == "console")
    assert console.count(API) > 1
    need("curl")
    need("jq")
    with serve_status(msgspec.json.decode(example, type=Status)) as served:
        for part in console.removeprefix("$ ").split("\n$ "):
            command, _, output = part.partition("\n")
            command = command.replace("http://127.0.0.1:9808/", served.url)
            result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
            assert result.stdout.strip() == output.strip()


def test_only_targets_that_need_newer_servers_download_them():
    def commands_of(target: str) -> str:
        command = [need("make"), "--dry-run", "--directory", ROOT, target]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "install-newer.sh" in commands_of("test")
    for target in ("servers", "stack", "truth", "faults", "screenshots", "bench"):
        assert "install-servers.sh" in commands_of(target)
        assert "install-newer.sh" not in commands_of(target)


def test_a_wrong_example_is_found(tmp_path):
    errors = (
        AssertionError,
        subprocess.CalledProcessError,
        msgspec.ValidationError,
        BadSettingError,
        jsonschema.ValidationError,
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
        ("yaml", "brokers: {shop: {ulr: redis://redis}}\n"),
        ("python", "app.conf.task_send_send_event = True\n"),
        ("python", "CELERY_SEND_TASK_EVENTS = True\n"),
        ("json", '{"version": 1}'),
        ("json", '{"uuid": "u1"}'),
        ("yaml", "sources: {a: {type: file}}\ntransforms: {}\nsinks: {b: {type: kafka, inputs: [c]}}\n"),
        ("yaml", "parsers: []\npipeline: {inputs: [{parser: a, tag: b}], outputs: [{match: b}]}\n"),
        ("alloy", 'loki.process "a" {\n  forward_to = [loki.write.b.receiver]\n}\n'),
        ("alloy", 'loki.write "b" {\n  url = ["x"}\n'),
        ("logrotate", "/var/log/x {\n    dayly\n}\n"),
        ("logql", '{service="celery"} |= '),
        ("logql", '{service="celery", task="x"} | nosuch="x"'),
        ("influxql", "SELECT nosuch FROM subtask_final"),
        ("influxql", "SELECT execution_time FROM nosuch"),
        ("flux", 'from(bucket: "celery")\n  |> range(start: -1h\n'),
    ]:
        with pytest.raises(errors):
            CHECKS[language](text, tmp_path)
