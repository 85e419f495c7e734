"""docker-compose.yml with its variables filled in, and its files where the engine would mount them."""

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
    """Return the file's content. Variables have the values of `environment`, or their defaults."""
    text = VARIABLE.sub(lambda match: environment.get(match[1], match[2] or ""), FILE.read_text())
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def volumes(service: Service) -> list[tuple[str, str, str]]:
    """Return source, target and mode of each volume."""
    parts = [volume.split(":") for volume in service.get("volumes", [])]
    return [(source, target, mode[0] if mode else "rw") for source, target, *mode in parts]


def secrets(service: Service) -> dict[str, str]:
    """Return the paths of a service's secrets in the container, by name."""
    return {
        name: target
        for secret in service.get("secrets", [])
        for name, target in (
            [(secret["source"], secret["target"])]
            if isinstance(secret, dict)
            else [(secret, f"/run/secrets/{secret}")]
        )
    }


def mount(name: str, folder: Path, secrets_folder: Path, **environment: str) -> Path:
    """Copy the files and secrets of a service to their places below `folder`, and return that.

    `secrets_folder` has the secrets that secrets.sh created.
    """
    service = load(**environment)["services"][name]
    files = [(ROOT / source, target) for source, target, _ in volumes(service) if source.startswith("./")]
    files += [(secrets_folder / secret, target) for secret, target in secrets(service).items()]
    for source, target in files:
        copy = folder / target.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copy(source, copy)
    return folder
