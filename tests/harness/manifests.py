"""Objects of Kubernetes: built by kustomize, found by kind, and validated with schemas."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from harness import npm
from harness.processes import TESTS, need

#: Kinds of operators, which Kubernetes itself does not know.
CUSTOM = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject"}
#: Maximum size of an object, which `kubectl apply` stores in an annotation.
MAX_OBJECT_BYTES = 262_144
SCHEMAS = TESTS / "distribution" / "schemas"


def build(folder: Path) -> list[Any]:
    """Return the objects of a kustomization."""
    command = [need("kubectl"), "kustomize", folder]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stderr, result.returncode) == ("", 0)
    return list(yaml.safe_load_all(result.stdout))


def only(objects: Iterable[Any], kind: str) -> Any:
    """Return the only object of a kind."""
    (match,) = [item for item in objects if item["kind"] == kind]
    return match


def assert_accepted(objects: Iterable[Any], file: Path) -> None:
    """Assert that Kubernetes knows each key of the objects, except of those of operators."""
    builtin = [item for item in objects if item["kind"] not in CUSTOM]
    file.write_text(yaml.safe_dump_all(builtin))
    command = [need("kubernetes-validate"), "--strict", file]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("passed") == len(builtin), result.stdout


class CustomSchemas:
    """Schemas of the operators of Prometheus and KEDA, from npm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in SCHEMAS.iterdir():
            if path.is_file():
                shutil.copy(path, folder)
        npm.clean_install(folder, "schemas of operators")

    def errors(self, objects: list[Any]) -> list[str]:
        """Return a line for each object that is not valid."""
        command = [need("node"), self.folder / "validate.mjs"]
        result = subprocess.run(
            command, input=json.dumps(objects), capture_output=True, text=True, cwd=self.folder, check=False
        )
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert len(lines) == len(objects)
        return [line for line in lines if not line.endswith(": ok")]
