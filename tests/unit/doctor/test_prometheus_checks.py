"""Answers of Prometheus that no release here gives; the rest is in integration/test_doctor.py."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from celery_exporter.core.shards import Shard
from celery_exporter.doctor import prometheus_checks
from celery_exporter.doctor.prometheus_checks import run_prometheus_checks
from celery_exporter.doctor.runner import workers_up_of


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        ("3.9.0", "add scrape_native_histograms: true to the job in prometheus.yml"),
        ("3.13.1-rc.0", "add scrape_native_histograms: true to the job in prometheus.yml"),
        ("2.55.1", "start Prometheus with --enable-feature=native-histograms"),
        ("", "(before 3.9), or add"),
        (["3.9"], "add scrape_native_histograms"),
    ],
)
def test_native_histograms_are_switched_on_as_the_release_wants_it(version, remedy):
    """Of releases that cannot be had here; the answers are what theirs look like."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            series = [{"metric": {"__name__": "celery_h_count", "instance": "a"}, "value": [0, "1"]}]
            data = {"version": version} if "buildinfo" in self.path else {"result": series}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "success", "data": data}).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            *_, finding = run_prometheus_checks(url, "celery_", set(), ["celery_h"])
        finally:
            server.shutdown()
    assert (finding.check, finding.severity) == ("prometheus-native", "warning")
    assert remedy in finding.remedy


def test_a_prometheus_that_sends_its_answer_byte_by_byte(monkeypatch):
    over = threading.Event()

    class Drips(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while not over.wait(0.1):
                    self.wfile.write(b" ")

        def log_message(self, *_):
            pass

    monkeypatch.setattr(prometheus_checks, "TIMEOUT_SECONDS", 0.5)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Drips)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    late = threading.Timer(10, over.set)
    late.start()
    try:
        (finding,) = run_prometheus_checks(f"http://127.0.0.1:{server.server_port}", "celery_", set())
        assert not over.is_set()
        assert (finding.severity, "no complete answer within" in finding.message) == ("critical", True)
    finally:
        late.cancel()
        over.set()
        server.shutdown()
        server.server_close()


def test_workers_of_a_shard_are_compared_with_those_of_its_exporter():
    workers = [SimpleNamespace(name=f"w@box-{number}", up=number < 8) for number in range(10)]
    shards = [workers_up_of(Shard(index, 2), workers) for index in range(2)]
    assert all(shards)
    assert sorted([*shards[0], *shards[1]]) == [worker.name for worker in workers[:8]]
