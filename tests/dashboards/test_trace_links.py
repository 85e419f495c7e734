"""Links to traces search for an attribute that spans of tasks have."""

import json
import re
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from celery_exporter.core.records import Record
from celery_exporter.core.types import State
from celery_exporter.sinks.otlp_spans import encode, encode_resource, encode_scope
from dashboards.committed import BOARDS

RECORD = Record(
    *("uuid-1", "root", None, "tasks.add", "emails", "w@box", None, 0, 0, State.SUCCESS, 7.0), is_final=True
)


def trace_links(node) -> list[str]:
    """Return the URLs of links to Explore, with `uuid-1` for the variables of a task."""
    if isinstance(node, dict):
        return [url for value in node.values() for url in trace_links(value)]
    if isinstance(node, list):
        return [url for value in node for url in trace_links(value)]
    if isinstance(node, str) and node.startswith("/explore"):
        return [re.sub(r"\$\{(__value\.raw|uuid)\}", "uuid-1", node)]
    return []


def test_a_link_finds_the_spans_of_its_task():
    urls = {url for board in BOARDS.values() for url in trace_links(board)}
    (url,) = urls
    (pane,) = json.loads(parse_qs(urlsplit(url).query)["panes"][0]).values()
    (query,) = pane["queries"]
    assert pane["datasource"] == query["datasource"]["uid"] == "${tempo}"
    assert pane["range"] == {"from": "${__from}", "to": "${__to}"}
    name, value = re.fullmatch(r'\{ span\.([\w.]+) = "(.*)" \}', query["query"]).groups()

    request = ExportTraceServiceRequest.FromString(encode([RECORD], encode_resource({}), encode_scope("1")))
    spans = request.resource_spans[0].scope_spans[0].spans
    assert len(spans) == 2  # of the task and its attempt
    for span in spans:
        assert (name, value) in [(item.key, item.value.string_value) for item in span.attributes]
