"""One HTML page of a run that needs no network: words, charts as SVG, what was odd."""

from __future__ import annotations

from zk0d import pages
from zk0d.report.analysis import Analysis, findings
from zk0d.report.charts import charts


def page(analysis: Analysis) -> str:
    """The page; everything that came from elsewhere is escaped."""
    return pages.render(
        "report",
        run=analysis.run,
        summary=analysis.summary(),
        findings=findings(analysis),
        charts=charts(analysis),
    )
