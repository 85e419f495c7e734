"""The settings of the HTTP listener, which `healthcheck` and `top` read as well."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct


class ListenConfig(Struct, frozen=True, kw_only=True):
    """Where the exporter listens. Fields are named after their options; port 0 is any free port."""

    host: str
    port: int
    web_config_file: Path | None
