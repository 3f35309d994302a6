"""A run's page and charts in its own folder: ``report/``. ``python -m zk0d.report.folder RUN``."""

from __future__ import annotations

import sys
from pathlib import Path

from zk0d.daemon.program import guarded
from zk0d.errors import TryAgainError
from zk0d.files import whole_folder
from zk0d.report import PAGE, REPORT
from zk0d.report.analysis import analyse
from zk0d.report.charts import charts
from zk0d.report.page import page


def write_report(run: Path) -> Path:
    """Write ``report/index.html`` and a PNG of each chart into a run's folder; the page's path.

    Raises
    ------
    ConfigError
        If there is no run.
    TryAgainError
        If it cannot be written.
    """
    analysis = analyse(run)
    there = run / REPORT
    try:
        with whole_folder(there) as draft:
            for chart in charts(analysis):
                chart.save(draft / f"{chart.name}.png")
            (draft / PAGE).write_text(page(analysis), encoding="utf-8")
    except OSError as error:
        raise TryAgainError(
            f"{there}: cannot be written ({error.strerror or error}); free space there."
        ) from None
    return there / PAGE


def main() -> int:
    """Write the report of the run that is named."""
    write_report(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(guarded("zk0d report", main))
