"""One HTML page of a run that needs no network: words, charts as SVG, what was odd."""

from __future__ import annotations

import html

from zk0d.report.analysis import Analysis, findings
from zk0d.report.charts import charts

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#222}"
    "svg{max-width:100%;height:auto}table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd}"
    "td:not(:first-child){overflow-wrap:anywhere}"
)


def page(analysis: Analysis) -> str:
    """The page; everything that came from elsewhere is escaped."""
    rows = "".join(
        f"<tr><td>{_e(f.rule)}</td><td>{_e(f.evidence)}</td><td>{_e(f.proposal)}</td></tr>"
        for f in findings(analysis)
    )
    odd = (
        f"<table><tr><th>rule</th><th>evidence</th><th>to try</th></tr>{rows}</table>"
        if rows
        else "<p>Nothing odd was found.</p>"
    )
    settings = "".join(
        f"<tr><td>{_e(key)}</td><td>{_e(str(value))}</td></tr>"
        for key, value in sorted(analysis.run.settings.items())
    )
    drawn = "".join(f"<h2>{_e(c.title)}</h2>{c.svg()}" for c in charts(analysis))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>run {_e(analysis.run.run)}</title><style>{STYLE}</style>"
        f"<h1>Run {_e(analysis.run.run)}</h1><p>{_e(analysis.summary())}</p>"
        f"<h2>What was odd</h2>{odd}{drawn}<h2>Settings</h2><table>{settings}</table></html>\n"
    )


def _e(text: str) -> str:
    return html.escape(text)
