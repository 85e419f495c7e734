"""Does a Prometheus scrape the exporter of this broker, and does it hold what is heard here?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

from celery_exporter.core.workers import host
from celery_exporter.doctor.http_client import fetch
from celery_exporter.quoting import shell_word
from celery_exporter.status.finding import Finding, names

#: Seconds for an answer, and bytes of one: some 5,000 workers.
TIMEOUT, MOST_BYTES = 5.0, 16 * 2**20

_SCRAPE = (
    "in prometheus.yml, under scrape_configs: {job_name: celery, scrape_interval: 15s, static_configs: "
    "[{targets: ['HOST:9808']}]}"
)


class _NoAnswerError(Exception):
    """It does not answer, or not as Prometheus does."""


#: The release from which on a key of the scrape configuration switches native histograms on, and the feature
#: flag does nothing (CHANGELOG of Prometheus 3.9).
_NATIVE_BY_KEY = (3, 9)


def look(url: str, prefix: str, up: set[str], native: Sequence[str] = ()) -> list[Finding]:
    """Return whether a target shows our metrics, and the workers that are `up` by what was received.

    `url` is that of Prometheus, with its path prefix if it has one; `prefix` what metric names begin with;
    `native` are the names of histograms that should be native ones there.
    """
    try:
        builds = _query(url, f"{prefix}exporter_build_info")
        if not builds:
            return [_not_scraped(url)]
        workers = _query(url, f"{prefix}worker_up == 1")
        shown = _query(url, f"{prefix}worker_up")
        known = _query(url, f"{prefix}exporter_events_missed_total")
        deaf = _query(url, f"{prefix}broker_up == 0")
        of_histograms = _native(url, native) if native else []
    except _NoAnswerError as error:
        place = _shown(url)
        remedy = f"correct --prometheus; it answers here: curl {shell_word(place + '/-/ready')}"
        return [
            Finding("prometheus", "critical", f"{place} does not answer as Prometheus does: {error}", remedy)
        ]
    scraped = Finding("prometheus", "ok", f"it scrapes {names([_target(each) for each in builds])}")
    held = {target: _held(_of(target, workers), up) for target in {*map(_target, [*builds, *workers])}}
    for target in held.keys() - set(map(_target, shown)):  # a profile without it, or nobody is heard there
        held[target] = up & {each.get("worker", "") for each in _of(target, known)}
    untold = set(map(_target, known)) - set(map(_target, shown))
    return [scraped, _agrees(held, untold, set(map(_target, deaf)), up), *of_histograms]


def _native(url: str, names_: Sequence[str]) -> list[Finding]:
    """Return whether it stores native histograms; nothing if no histogram has come yet."""
    pattern = "|".join(f"{name}|{name}_count" for name in names_)
    stored = {each["__name__"] for each in _query(url, f'count by (__name__) ({{__name__=~"{pattern}"}})')}
    if not stored:
        return []
    if not stored.isdisjoint(names_):
        return [Finding("prometheus-native", "ok", "it stores native histograms")]
    try:
        version = str(_get(url, "/api/v1/status/buildinfo").get("version"))
    except (_NoAnswerError, AttributeError):
        version = ""
    release = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    flag = "start Prometheus with --enable-feature=native-histograms"
    key = "add scrape_native_histograms: true to the job in prometheus.yml"
    remedy = f"{flag} (before 3.9), or {key} (from 3.9 on)"
    if release:
        remedy = key if release >= _NATIVE_BY_KEY else flag
    found = f"--native-histograms is on, and Prometheus {version} stores none".replace("  ", " ")
    return [Finding("prometheus-native", "warning", found, remedy)]


def _of(target: str, series: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    return [each for each in series if _target(each) == target]


def _held(series: Iterable[dict[str, str]], up: set[str]) -> set[str]:
    """Return the workers that are up there; of a profile that has hosts, those of `up` by these."""
    workers = {each["worker"] for each in series if "worker" in each}
    hosts = {each.get("hostname", "") for each in series if "worker" not in each}
    ours = {name for name in up if host(name) in hosts}
    return workers | ours | (hosts - {host(name) for name in ours})


def _agrees(held_by: dict[str, set[str]], untold: set[str], deaf: set[str], up: set[str]) -> Finding:
    """Compare with the target that has most in common: others may be of other brokers.

    Targets that are `untold` know workers, and do not show which of them are up.
    """
    best = max(sorted(held_by), key=lambda target: (len(held_by[target] & up), target not in deaf))
    held = held_by[best]
    if held == up and best not in untold:
        return Finding(
            "prometheus-agrees", "ok", f"{best} has the same {len(up)} workers up as are heard here"
        )
    if best in deaf:
        remedy = f"celery-exporter doctor, with the options that the exporter at {best} has"
        return Finding(
            "prometheus-agrees", "critical", f"the exporter at {best} hears nothing itself", remedy
        )
    if held == up:
        found = f"{best} runs a profile without worker_up, so workers cannot be compared"
        return Finding("prometheus-agrees", "ok", found)
    missing, extra = sorted(up - held), sorted(held - up)
    differs = [f"{what} {names(some)}" for what, some in (("without", missing), ("with", extra)) if some]
    return Finding(
        "prometheus-agrees",
        "warning",
        f"{best} has other workers up than are heard here: {', and '.join(differs)}",
        "wait for the next scrape, or give the exporter there this broker's URL",
    )


def _not_scraped(url: str) -> Finding:
    """Look for a target that is meant to be us, and is down."""
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
    if down:
        where, why = str(down[0].get("scrapeUrl")), down[0].get("lastError")
        address = shell_word(where)
        remedy = f"start the exporter, or correct its address in prometheus.yml; there, try: curl {address}"
        return Finding("prometheus", "critical", f"it cannot scrape {where}: {why}", remedy)
    return Finding("prometheus", "critical", f"{_shown(url)} scrapes no celery-exporter", _SCRAPE)


def _query(url: str, promql: str) -> list[dict[str, str]]:
    """Return the labels of each series that an instant query finds."""
    try:
        return [
            dict(each["metric"])
            for each in _get(url, f"/api/v1/query?{urlencode({'query': promql})}")["result"]
        ]
    except (KeyError, TypeError, ValueError):
        raise _NoAnswerError("its answer cannot be read") from None


def _get(url: str, path: str) -> Any:
    try:
        return json.loads(fetch(f"{url.rstrip('/')}{path}", timeout=TIMEOUT, most=MOST_BYTES))["data"]
    except OSError as error:
        raise _NoAnswerError(str(getattr(error, "reason", None) or error)) from None
    except Exception:  # noqa: BLE001  whatever answers there: no HTTP, no JSON, no Prometheus
        raise _NoAnswerError("its answer cannot be read") from None


def _target(labels: dict[str, str]) -> str:
    return labels.get("instance", "?")


def _shown(url: str) -> str:
    """Return the URL without a password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
