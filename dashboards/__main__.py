"""Write every dashboard: `python -m dashboards [folder]`."""

from __future__ import annotations

import sys
from pathlib import Path

from dashboards import exporter, objectives, overview, points, task_log, tasks, workers
from dashboards.build import importable, provisioned, text

BOARDS = (
    overview.BOARD,
    tasks.BOARD,
    workers.BOARD,
    exporter.BOARD,
    objectives.BOARD,
    task_log.BOARD,
    points.BOARD,
)
VARIANTS = {"provisioning": provisioned, "import": importable}


def main(folder: Path) -> None:
    """Write the dashboards below this folder."""
    for name, variant in VARIANTS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for board in BOARDS:
            (folder / name / f"{board.uid}.json").write_text(text(variant(board)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
