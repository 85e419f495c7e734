"""Does a Prometheus scrape the exporter of this broker, and does it hold what is heard here?"""

from __future__ import annotations

import json
import urllib.request
from typing import Any
from urllib.parse import urlencode, urlsplit

from celery_exporter.advice import Finding, names

#: Seconds for an answer, and bytes of one: some 5,000 workers.
TIMEOUT, MOST_BYTES = 5.0, 16 * 2**20

_SCRAPE = (
    "in prometheus.yml, under scrape_configs: {job_name: celery, static_configs: [{targets: ['HOST:9808']}]}"
)


class _NoAnswerError(Exception):
    """It does not answer, or not as Prometheus does."""


def look(url: str, prefix: str, up: set[str]) -> list[Finding]:
    """Return whether a target shows our metrics, and the workers that are `up` by what was heard.

    `url` is that of Prometheus, with its path prefix if it has one; `prefix` what metric names begin with.
    """
    try:
        builds = _query(url, f"{prefix}exporter_build_info")
        if not builds:
            return [_not_scraped(url)]
        workers = _query(url, f"{prefix}worker_up == 1")
        deaf = _query(url, f"{prefix}broker_up == 0")
    except _NoAnswerError as error:
        place = _shown(url)
        mend = f"correct --prometheus; it answers here: curl {place}/-/ready"
        return [Finding("prometheus", "fail", f"{place} does not answer as Prometheus does: {error}", mend)]
    scraped = Finding("prometheus", "ok", f"it scrapes {names([_target(each) for each in builds])}")
    return [scraped, _agrees(builds, workers, deaf, up)]


def _agrees(
    builds: list[dict[str, str]], workers: list[dict[str, str]], deaf: list[dict[str, str]], up: set[str]
) -> Finding:
    """Compare with the target that has most in common: others may be of other brokers."""
    by_target: dict[str, set[str]] = {_target(each): set() for each in builds}
    for each in workers:
        by_target.setdefault(_target(each), set()).add(each.get("worker", ""))
    best = max(
        sorted(by_target), key=lambda target: (len(by_target[target] & up), target not in map(_target, deaf))
    )
    held = by_target[best]
    if held == up:
        return Finding(
            "prometheus-agrees", "ok", f"{best} has the same {len(up)} workers up as are heard here"
        )
    if best in map(_target, deaf):
        mend = f"celery-exporter doctor, with the options that the exporter at {best} has"
        return Finding("prometheus-agrees", "fail", f"the exporter at {best} hears nothing itself", mend)
    missing, extra = sorted(up - held), sorted(held - up)
    differs = [f"{what} {names(some)}" for what, some in (("without", missing), ("with", extra)) if some]
    return Finding(
        "prometheus-agrees",
        "warn",
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
        where, why = down[0].get("scrapeUrl"), down[0].get("lastError")
        mend = f"start the exporter, or correct its address in prometheus.yml; there, try: curl {where}"
        return Finding("prometheus", "fail", f"it cannot scrape {where}: {why}", mend)
    return Finding("prometheus", "fail", f"{_shown(url)} scrapes no celery-exporter", _SCRAPE)


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
        with urllib.request.urlopen(f"{url.rstrip('/')}{path}", timeout=TIMEOUT) as answer:  # noqa: S310  --prometheus
            return json.loads(answer.read(MOST_BYTES))["data"]
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
