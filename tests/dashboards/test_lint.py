"""The rules of Grafana's dashboard-linter, a program in Go, and some of our own.

Two of its rules are left out: template-instance-rule and target-instance-rule. An exporter monitors one
broker, so the job identifies it.
"""

import itertools
import json
import re
from collections import Counter

import pytest

from dashboards.committed import BOARDS, IMPORTS, METRIC_UIDS, ROWS, UIDS, label, panels, targets, variables

#: Kind of data source → the variable that selects one, and its label.
SOURCES = {
    "prometheus": ("datasource", "Data source"),
    "loki": ("loki", "Loki"),
    "influxdb": ("influxdb", "InfluxDB"),
    "tempo": ("tempo", "Traces"),
}
#: Only links use this one. An import does not ask for it.
OPTIONAL = "tempo"
#: Filled in by Grafana.
BUILTIN = {"__rate_interval", "__range", "__auto", "__interval", "__interval_ms", "timeFilter"}
UNITS = {"short", "ops", "s", "percentunit", "bytes", "dateTimeFromNow"}  # formats of Grafana
MATCHERS = {"queue": "queue_name", "task": "task_name", "worker": "worker"}
#: A metric or a record of the rules.
NAME = r"(?<![\w:])(?:\w+:)?(?:celery|process)_\w+(?::\w+)?"
#: The functions and windows of queries.
WINDOWS = {("increase", "$__range"), ("sum_over_time", "$__range")}
COUNTERS = {row.name for row in ROWS.values() if row.type == "counter"} | {"process_cpu_seconds_total"}
HISTOGRAMS = {row.name for row in ROWS.values() if row.type == "histogram"}
SUMMED = HISTOGRAMS | {row.name for row in ROWS.values() if row.type == "summary"}

boards = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
metric_boards = pytest.mark.parametrize("board", [BOARDS[uid] for uid in METRIC_UIDS], ids=METRIC_UIDS)
every_panel = pytest.mark.parametrize(
    "panel", [pytest.param(panel, id=label(uid, panel)) for uid, panel in panels()]
)
every_target = pytest.mark.parametrize(
    ("uid", "expr"),
    [pytest.param(uid, target["expr"], id=label(uid, p, target)) for uid, p, target in targets()],
)


# -- template-…-rule -----------------------------------------------------------------------------------------


def source(plugin):
    """Return the reference to the data source that a variable selects."""
    return {"type": plugin, "uid": f"${{{SOURCES[plugin][0]}}}"}


def queries(board):
    """Return all queries of a dashboard: of its panels and variables."""
    texts = [
        target.get("expr") or target["query"]
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ]
    return [*texts, *(json.dumps(variable["query"]) for variable in board["templating"]["list"])]


@boards
def test_template_datasource_rule(board):
    content = json.dumps(board)
    used = {plugin for plugin, (name, _) in SOURCES.items() if f"${{{name}}}" in content}
    found = {
        variable["query"]: (variable["name"], variable["label"])
        for variable in variables(board).values()
        if variable["type"] == "datasource"
    }
    assert found == {plugin: SOURCES[plugin] for plugin in used}


@boards
def test_template_job_rule(board):
    """Metrics have a job; points do not."""
    if board["uid"] == "celery-points":
        assert "job" not in variables(board)
        return
    job = variables(board)["job"]
    assert (job["type"], job["label"], job["multi"], job["allValue"]) == ("query", "Job", True, ".+")
    assert job["datasource"] == source("prometheus")


@boards
def test_template_label_promql_rule(board):
    for name, variable in variables(board).items():
        if variable.get("datasource") == source("prometheus"):
            query = variable["query"]["query"]
            match = re.fullmatch(r"label_values\((celery_\w+)(\{job=~\"\$job\"\})?, (\w+)\)", query)
            assert match, query
            assert match[3] in ({"job"} if name == "job" else ROWS[match[1]].labels)


@boards
def test_template_on_time_change_reload_rule(board):
    for variable in variables(board).values():
        assert variable["type"] in {"datasource", "textbox"} or variable["refresh"] == 2, variable["name"]


@boards
def test_every_variable_is_used_in_a_query(board):
    used = set(re.findall(r"\$(\w+)", " ".join(queries(board))))
    sources = {name for name, variable in variables(board).items() if variable["type"] == "datasource"}
    assert used - BUILTIN == variables(board).keys() - sources


def test_overview_has_all_variables():
    assert set(variables(BOARDS["celery-overview"])) == {"datasource", "job", "queue", "task", "worker"}


def test_equal_names_of_variables_have_equal_labels():
    """Links between dashboards pass the values of all variables on."""
    labels = {
        (name, variable["label"]) for board in BOARDS.values() for name, variable in variables(board).items()
    }
    assert max(Counter(name for name, _ in labels).values()) == 1


@boards
def test_uneditable_dashboard_rule(board):
    assert board["editable"] is False


# -- panel-…-rule --------------------------------------------------------------------------------------------


@every_panel
def test_panel_datasource_rule(panel):
    used = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert used == [source(panel["datasource"]["type"])] * len(used)


@every_panel
def test_panel_title_description_rule(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")


@every_panel
def test_panel_units_rule(panel):
    if panel["type"] == "logs":
        return
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    for override in panel["fieldConfig"]["overrides"]:
        for item in override["properties"]:
            assert item["id"] != "unit" or item["value"] in UNITS | {"string"}


@every_panel
def test_panel_no_targets_rule(panel):
    assert panel["targets"]
    assert all(target.get("expr") or target["query"] for target in panel["targets"])


@every_panel
def test_a_panel_links_to_other_dashboards(panel):
    links = [re.match(r"/(?:d/([\w-]+)|explore)\?", link["url"]) for link in panel["links"]]
    assert {link[1] for link in links} & set(UIDS)
    assert {link[1] for link in links} <= {*UIDS, None}


@every_panel
def test_no_data_has_a_text(panel):
    if panel["type"] == "stat" or panel["datasource"] != source("prometheus"):
        assert panel["fieldConfig"]["defaults"]["noValue"]


@every_panel
def test_every_line_has_a_legend(panel):
    if panel["type"] == "timeseries":
        legends = [target.get("legendFormat") or target.get("alias") for target in panel["targets"]]
        assert all(legends)
        assert len(set(legends)) == len(legends)


# -- target-…-rule (test_data checks that Prometheus accepts the expression) ---------------------------------


@every_target
def test_target_rate_interval_rule(uid, expr):  # noqa: ARG001
    ranges = re.findall(r"(\w+)\([^()]*?\[([^\]]+)\]", re.sub(r"\{[^}]*\}", "", expr))
    assert expr.count("[") == len(ranges)
    for function, window in ranges:
        assert window == "$__rate_interval" or (function, window) in WINDOWS


@every_panel
def test_an_average_covers_the_time_in_its_description(panel):
    """$__rate_interval is four times the minimum step, or that step plus the interval of a point."""
    (target, *_) = panel["targets"]
    if panel["type"] != "stat" or "$__rate_interval" not in target.get("expr", ""):
        assert "average" not in panel["description"]
        return
    match = re.search(r"(\d+)-minute average; longer if more than (\d+) days", panel["description"])
    step = int(re.fullmatch(r"(\d+)s", target["interval"])[1])
    seconds, max_range_seconds = int(match[1]) * 60, int(match[2]) * 86_400
    assert max_range_seconds >= 7 * 86_400
    assert max(4 * step, step + max_range_seconds / panel["maxDataPoints"]) == seconds


def test_exemplars_are_on_each_graph_of_times_of_tasks():
    """Buckets have exemplars. Grafana draws those of several queries above each other."""
    exemplars = Counter()
    for uid, panel, target in targets():
        if target.get("exemplar"):
            (histogram,) = re.findall(r"(\w+)_bucket", target["expr"])
            exemplars[uid, panel["title"], histogram] += 1
    assert {histogram for _, _, histogram in exemplars} == {
        name for name in HISTOGRAMS if name.startswith("celery_task_")
    }
    assert {uid for uid, _, _ in exemplars} == {"celery-tasks"}
    assert set(exemplars.values()) == {1}


@every_target
def test_target_job_rule(uid, expr):  # noqa: ARG001
    assert len(re.findall(NAME, without_matchers(expr))) == expr.count('{job=~"$job"')


@every_target
def test_target_required_matchers_rule(uid, expr):
    """A variable of the dashboard filters every metric that has its label."""
    for name, matchers in re.findall(rf"({NAME})\{{([^}}]*)\}}", expr):
        row = ROWS.get(re.sub("_(bucket|sum|count)$", "", name)) or ROWS.get(name)
        for variable in variables(BOARDS[uid]).keys() & MATCHERS.keys():
            has_label = row is not None and MATCHERS[variable] in row.labels
            assert (f'{MATCHERS[variable]}=~"${variable}"' in matchers) == has_label


@every_target
def test_target_counter_agg_rule(uid, expr):  # noqa: ARG001
    """Counters are used in rate or increase only, and gauges never are."""
    bare = without_matchers(expr)
    in_rate = set(re.findall(rf"(?:rate|increase)\(({NAME})\[", bare))
    for name in re.findall(NAME, bare):
        is_counter = name in COUNTERS or re.sub("_(bucket|sum|count)$", "", name) in SUMMED
        assert (name in in_rate) == is_counter, name


def without_matchers(expr: str) -> str:
    """Return an expression without its label matchers."""
    return re.sub(r"\{[^}]*\}", "", expr)


# -- the page ------------------------------------------------------------------------------------------------


@boards
def test_ids_are_unique(board):
    numbers = Counter(panel["id"] for panel in board["panels"])
    assert max(numbers.values()) == 1
    for panel in board["panels"]:
        refs = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(refs)) == len(refs)


@boards
def test_titles_are_unique_in_a_row(board):
    titles = itertools.groupby(board["panels"], key=lambda panel: panel["gridPos"]["y"])
    for _, row in titles:
        assert max(Counter(panel["title"] for panel in row).values()) == 1


@boards
def test_panels_fill_the_page_without_overlap(board):
    cells = Counter(
        (x, y)
        for panel in board["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    height = max(y for _, y in cells) + 1
    assert set(cells.values()) == {1}
    assert len(cells) == 24 * height


@boards
def test_a_dashboard_links_to_the_others(board):
    (link,) = board["links"]
    assert link["type"] == "dashboards"
    assert link["tags"] == board["tags"] == ["celery"]
    assert link["includeVars"]
    assert link["keepTime"]


# -- the variant for an import by hand -----------------------------------------------------------------------


@pytest.mark.parametrize("uid", UIDS)
def test_an_import_differs_by_the_inputs_for_data_sources_only(uid):
    board, imported = BOARDS[uid], dict(IMPORTS[uid])
    asked = {
        variable["name"]: variable["query"]
        for variable in variables(board).values()
        if variable["type"] == "datasource" and variable["query"] != OPTIONAL
    }
    inputs = imported.pop("__inputs")
    assert [(item["name"], item["type"], item["pluginId"]) for item in inputs] == [
        (f"DS_{plugin.upper()}", "datasource", plugin) for plugin in asked.values()
    ]
    required = {(plugin["type"], plugin["id"]) for plugin in imported.pop("__requires")}
    kinds = {("panel", panel["type"]) for panel in board["panels"] if panel["type"] != "row"}
    assert required == {
        ("grafana", "grafana"),
        *(("datasource", plugin) for plugin in asked.values()),
        *kinds,
    }
    assert imported.pop("__elements") == {}
    assert imported.pop("id") is None
    assert imported["editable"] is True

    others = [variable for variable in board["templating"]["list"] if variable["name"] not in asked]
    text = json.dumps({**board, "editable": True, "templating": {"list": others}})
    for name, plugin in asked.items():
        text = text.replace(f"${{{name}}}", f"${{DS_{plugin.upper()}}}")
    assert imported == json.loads(text)
    assert not any(f"${{{name}}}" in str(imported) for name in asked)
