"""The entry point: `celery-exporter` and `python -m celery_exporter`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit; Ctrl-C ends it without a traceback, during the imports too."""
    try:
        from celery_exporter.cli import run  # noqa: PLC0415

        sys.exit(run())
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
