"""Check that Prometheus scrapes an exporter of the workers on this broker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

from celery_exporter.core.workers import host
from celery_exporter.doctor.http_client import fetch
from celery_exporter.doctor.problems import (
    EXPORTER_BLIND,
    NATIVE_HISTOGRAMS_OFF,
    NO_PROMETHEUS,
    NOT_SCRAPED,
    SCRAPE_FAILED,
    WORKERS_DIFFER,
)
from celery_exporter.quoting import shell_word
from celery_exporter.status.finding import Finding, names

TIMEOUT_SECONDS = 5.0
#: Size of an answer: some 5,000 workers.
MAX_ANSWER_BYTES = 16 * 2**20

#: From this release on, a key of the scrape configuration enables native histograms, and the feature flag has
#: no effect (CHANGELOG of Prometheus 3.9).
_ENABLED_BY_KEY_SINCE = (3, 9)
_NATIVE_FLAG = "start Prometheus with --enable-feature=native-histograms"
_NATIVE_KEY = "add scrape_native_histograms: true to the job in prometheus.yml"
ENABLE_NATIVE_HISTOGRAMS = f"{_NATIVE_FLAG} (before 3.9), or {_NATIVE_KEY} (from 3.9 on)"


class _NoAnswerError(Exception):
    """It does not answer, or not as Prometheus does."""


def run_prometheus_checks(
    url: str, prefix: str, up: set[str], native_histograms: Sequence[str] = ()
) -> list[Finding]:
    """Return whether a target has the exporter's metrics, and the workers that are `up` on this broker.

    `url` is that of Prometheus, with its path prefix if it has one; `prefix` is that of metric names;
    `native_histograms` are the names of histograms that are exposed as native ones too.
    """
    try:
        builds = _query(url, f"{prefix}exporter_build_info")
        if not builds:
            return [_not_scraped(url)]
        workers = _query(url, f"{prefix}worker_up == 1")
        with_worker_up = _targets(_query(url, f"{prefix}worker_up"))
        worker_series = _query(url, f"{prefix}exporter_events_missed_total")
        blind = _targets(_query(url, f"{prefix}broker_up == 0"))
        native = _check_native_histograms(url, native_histograms) if native_histograms else []
    except _NoAnswerError as error:
        shown = _without_password(url)
        return [NO_PROMETHEUS.finding(url=shown, error=error, quoted_url=shell_word(f"{shown}/-/ready"))]
    scraped = NO_PROMETHEUS.ok(f"Prometheus scrapes {names(_target(build) for build in builds)}")
    up_by_target = {
        target: _workers_of(_of_target(target, workers), up) for target in _targets([*builds, *workers])
    }
    for target in up_by_target.keys() - with_worker_up:  # a profile without it, or no worker there
        up_by_target[target] = up & {series.get("worker", "") for series in _of_target(target, worker_series)}
    without_worker_up = _targets(worker_series) - with_worker_up
    return [scraped, _check_workers(up_by_target, without_worker_up, blind, up), *native]


def _check_native_histograms(url: str, names_: Sequence[str]) -> list[Finding]:
    """Check that Prometheus stores native histograms; no finding before the first histogram is stored."""
    pattern = "|".join(f"{name}|{name}_count" for name in names_)
    query = f'count by (__name__) ({{__name__=~"{pattern}"}})'
    stored = {series["__name__"] for series in _query(url, query)}
    if not stored:
        return []
    if not stored.isdisjoint(names_):
        return [NATIVE_HISTOGRAMS_OFF.ok("Prometheus stores native histograms")]
    try:
        version = str(_get(url, "/api/v1/status/buildinfo").get("version"))
    except (_NoAnswerError, AttributeError):
        version = ""
    release = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    enable = ENABLE_NATIVE_HISTOGRAMS
    if release:
        enable = _NATIVE_KEY if release >= _ENABLED_BY_KEY_SINCE else _NATIVE_FLAG
    return [NATIVE_HISTOGRAMS_OFF.finding(version=version or "(unknown version)", enable=enable)]


def _check_workers(
    up_by_target: dict[str, set[str]], without_worker_up: set[str], blind: set[str], up: set[str]
) -> Finding:
    """Compare `up` with the target that has most in common: others may be of other brokers."""
    best = max(sorted(up_by_target), key=lambda target: (len(up_by_target[target] & up), target not in blind))
    there = up_by_target[best]
    if there == up and best not in without_worker_up:
        return WORKERS_DIFFER.ok(f"{best} has the same {len(up)} workers up as this broker")
    if best in blind:
        return EXPORTER_BLIND.finding(target=best)
    if there == up:
        return WORKERS_DIFFER.ok(f"{best} has a profile without worker_up, so workers cannot be compared")
    differences = [("without", sorted(up - there)), ("with", sorted(there - up))]
    difference = ", and ".join(f"{word} {names(workers)}" for word, workers in differences if workers)
    return WORKERS_DIFFER.finding(target=best, difference=difference)


def _workers_of(series: Iterable[dict[str, str]], up: set[str]) -> set[str]:
    """Return the workers of these series; a profile with hosts only has those of `up` on these hosts."""
    workers = {labels["worker"] for labels in series if "worker" in labels}
    hosts = {labels.get("hostname", "") for labels in series if "worker" not in labels}
    on_hosts = {name for name in up if host(name) in hosts}
    return workers | on_hosts | (hosts - {host(name) for name in on_hosts})


def _not_scraped(url: str) -> Finding:
    """Look for a target that seems to be an exporter, and is down."""
    try:
        targets = _get(url, "/api/v1/targets?state=active").get("activeTargets", [])
    except _NoAnswerError:
        targets = []
    down = [
        target
        for target in targets
        if target.get("health") == "down"
        and ("celery" in str(target.get("labels")) or ":9808" in str(target.get("scrapeUrl")))
    ]
    if not down:
        return NOT_SCRAPED.finding(url=_without_password(url))
    target, error = str(down[0].get("scrapeUrl")), down[0].get("lastError")
    return SCRAPE_FAILED.finding(target=target, error=error, quoted_target=shell_word(target))


# -- the API of Prometheus -------------------------------------------------------------------------------


def _query(url: str, promql: str) -> list[dict[str, str]]:
    """Return the labels of each series of an instant query."""
    answer = _get(url, f"/api/v1/query?{urlencode({'query': promql})}")
    try:
        return [dict(series["metric"]) for series in answer["result"]]
    except (KeyError, TypeError, ValueError):
        raise _NoAnswerError("its answer cannot be read") from None


def _get(url: str, path: str) -> Any:
    try:
        body = fetch(f"{url.rstrip('/')}{path}", timeout=TIMEOUT_SECONDS, max_bytes=MAX_ANSWER_BYTES)
        return json.loads(body)["data"]
    except OSError as error:
        raise _NoAnswerError(str(getattr(error, "reason", None) or error)) from None
    except Exception:  # noqa: BLE001  any server may answer: no HTTP, no JSON, no Prometheus
        raise _NoAnswerError("its answer cannot be read") from None


def _of_target(target: str, series: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    return [labels for labels in series if _target(labels) == target]


def _targets(series: Iterable[dict[str, str]]) -> set[str]:
    return set(map(_target, series))


def _target(labels: dict[str, str]) -> str:
    return labels.get("instance", "?")


def _without_password(url: str) -> str:
    address = urlsplit(url)
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl().rstrip("/")
