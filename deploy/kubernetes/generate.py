#!/usr/bin/env python3
"""Make what Kubernetes needs from `alerts/` and `dashboards/`: a PrometheusRule, and ConfigMaps for Grafana.

kustomize reads no files outside of its own folder, so what makes the ConfigMaps stands beside the dashboards,
and the rules are copied. Commit both; a test holds that they are current.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

RULE = """\
# Made by deploy/kubernetes/generate.py from alerts/celery.rules.yml. Change that, and make golden.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: celery-exporter
  labels:
    app.kubernetes.io/name: celery-exporter
spec:
"""
#: One each, for an object that kubectl applies may be of 256 KiB at most. Grafana's sidecar finds them by
#: their label, and would keep the old one beside the new one if the name had a hash in it.
DASHBOARDS = """\
# Made by deploy/kubernetes/generate.py from the files here: make golden. deploy/kubernetes takes it in.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
generatorOptions:
  disableNameSuffixHash: true
  labels:
    grafana_dashboard: "1"
configMapGenerator:
"""


def prometheus_rule(rules: str) -> str:
    """Return the rule file as an object: its own text, comments and all, two columns further to the right."""
    lines = [line for line in rules.splitlines() if line != "---"]
    return RULE + "".join(f"  {line}".rstrip() + "\n" for line in lines)


def dashboards(names: list[str]) -> str:
    """Return a kustomization that makes a ConfigMap of each file."""
    return DASHBOARDS + "".join(
        f"  - name: dashboard-{name.removesuffix('.json')}\n    files: [{name}]\n" for name in sorted(names)
    )


def made(root: Path = ROOT) -> dict[Path, str]:
    """Return what has to be in which file."""
    folder = root / "dashboards/provisioning"
    return {
        root / "deploy/kubernetes/prometheusrule.yaml": prometheus_rule(
            (root / "alerts/celery.rules.yml").read_text()
        ),
        folder / "kustomization.yaml": dashboards([path.name for path in folder.glob("*.json")]),
    }


def main() -> None:
    """Write them."""
    for path, text in made().items():
        path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
