"""Check or build a part of a release: `python -m tools.release sources|files|image`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.release import files, sources

ROOT = Path(__file__).resolve().parents[2]


def check_sources() -> list[str]:
    """Check the sources."""
    problems = sources.problems(ROOT)
    if problems:
        raise files.ReleaseError("\n".join(problems))
    return []


PARTS: Mapping[str, Callable[[], list[str]]] = {
    "sources": check_sources,
    "files": lambda: files.build(ROOT, ROOT / "dist"),
    "image": lambda: files.build_image(ROOT),
}


def main() -> None:
    """Run one part, and print what is wrong, or what was left out."""
    (part,) = sys.argv[1:]
    try:
        left_out = PARTS[part]()
    except (files.ReleaseError, ValueError) as error:
        sys.exit(f"{error}\n{sources.version_of(ROOT)}: {part}: cannot be released")
    for why in left_out:
        print(why)  # noqa: T201  a command
    print(f"{sources.version_of(ROOT)}: {part}: ready")  # noqa: T201


if __name__ == "__main__":
    main()
