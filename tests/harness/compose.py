"""docker-compose.yml as an engine sees it: variables at their defaults, and files where they are mounted."""

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from harness.processes import ROOT

FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::-([^}]*))?\}")

Service = dict[str, Any]


def load(**environment: str) -> dict[str, Any]:
    """Return it with its variables filled in: from here, or with their defaults."""
    text = VARIABLE.sub(lambda found: environment.get(found[1], found[2] or ""), FILE.read_text())
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def volumes(service: Service) -> list[tuple[str, str, str]]:
    """Return source, target and mode of each."""
    split = [volume.split(":") for volume in service.get("volumes", [])]
    return [(source, target, mode[0] if mode else "rw") for source, target, *mode in split]


def secrets(service: Service) -> dict[str, str]:
    """Return the names of its secrets, and where each is in the container."""
    return {
        name: target
        for secret in service.get("secrets", [])
        for name, target in (
            [(secret["source"], secret["target"])]
            if isinstance(secret, dict)
            else [(secret, f"/run/secrets/{secret}")]
        )
    }


def mount(name: str, folder: Path, made: Path, **environment: str) -> Path:
    """Copy a service's files, and its secrets from what secrets.sh made, below this folder; return it."""
    service = load(**environment)["services"][name]
    files = [(ROOT / source, target) for source, target, _ in volumes(service) if source.startswith("./")]
    files += [(made / secret, target) for secret, target in secrets(service).items()]
    for source, target in files:
        copy = folder / target.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copy(source, copy)
    return folder
