"""Which part of which page is printed from what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tools.docgen import (
    alert_review,
    api,
    checks,
    config_file,
    costs,
    event_log,
    explanations,
    helm,
    layers,
    metrics,
    migrating,
    options,
    runbooks,
    thresholds,
)
from tools.docgen.marks import filled

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
REFERENCE, EXPLANATION = DOCS / "reference", DOCS / "explanation"
PERFORMANCE = EXPLANATION / "performance.md"
STUCK_TASK = DOCS / "how-to" / "stuck-task.md"
RUNBOOKS, SERVED = DOCS / "runbooks.md", ROOT / "celery_exporter/web/static/runbooks.html"


def parts() -> Mapping[Path, Mapping[str, str]]:
    """Return what stands between which marks of which page."""
    return {
        REFERENCE / "options.md": {"options": options.long()},
        REFERENCE / "config-file.md": {
            "broker": config_file.broker_keys(),
            "expected": config_file.expected_keys(),
        },
        REFERENCE / "metrics.md": {"metrics": metrics.long(), "profiles": metrics.others()},
        REFERENCE / "status-api.md": {"api": api.fields("status-api")},
        REFERENCE / "pages-api.md": {"api": api.fields("pages-api")},
        REFERENCE / "task-api.md": {"parameters": api.parameters(), "api": api.fields("task-api")},
        REFERENCE / "records.md": {"fields": event_log.fields()},
        REFERENCE / "checks.md": {"checks": checks.table()},
        helm.README: {"values": helm.values()},
        REFERENCE / "alerts.md": {
            "thresholds": thresholds.table(f"../{RUNBOOKS.name}"),
            "detection": alert_review.detection(),
            "inhibitions": alert_review.inhibitions(),
            "faults": alert_review.faults(),
        },
        STUCK_TASK: {"diagnoses": explanations.diagnoses(), "explain": explanations.fields()},
        RUNBOOKS: {"thresholds": thresholds.table()},
        PERFORMANCE: {"costs": costs.short(PERFORMANCE.read_text())},
        EXPLANATION / "architecture.md": {"layers": f"{layers.picture()}\n\n{layers.table()}"},
        **{
            migrating.page(profile): {profile.name: migrating.chapter(profile)}
            for profile in migrating.OTHERS
        },
    }


def made() -> Mapping[Path, str]:
    """Return what has to be in which file."""
    pages = {path: filled(path.read_text(), filling) for path, filling in parts().items()}
    served = {SERVED: runbooks.page(pages[RUNBOOKS])}
    return {
        **pages,
        **served,
        **api.made(),
        **config_file.made(),
        **event_log.made(),
        **explanations.made(),
        **helm.made(),
        **migrating.made(),
        **thresholds.made(),
        **alert_review.made(),
    }
