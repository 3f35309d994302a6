"""How a dashboard's layout looks, as plain HTML with a Prometheus' figures: for tests and eyes.

No Grafana can run here. Places, sizes, titles, units, thresholds and queries are the dashboard's
own; how lines are drawn is not Grafana's.

    python -m tests.monitoring.preview URL FOLDER
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tests.monitoring.server import Prometheus, filled
from zk0d.monitoring.dashboards import PAGES, Page, built

COLUMN, ROW = 50, 38  #: pixels of one step of Grafana's grid
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
_STYLE = f"""
body {{ font: 12px system-ui, sans-serif; background: #f4f5f5; margin: 12px; }}
main {{ position: relative; width: {24 * COLUMN}px; }}
section {{ position: absolute; overflow: hidden; box-sizing: border-box; padding: 6px; margin: 0;
  background: #fff; border: 1px solid #d0d3d6; border-radius: 3px; }}
section.row {{ background: none; border: 0; font-size: 15px; font-weight: 600; }}
b {{ display: block; white-space: nowrap; }} .figure {{ font-size: 26px; margin-top: 10px; }}
small {{ color: #666; }} td, th {{ text-align: left; padding: 1px 8px 1px 0; }}
"""


def shown(value: float, unit: str) -> str:
    """A figure with its unit, about as Grafana writes it."""
    if not math.isfinite(value):
        return "–"
    if unit == "percentunit":
        return f"{value:.1%}"
    if unit in ("bytes", "Bps"):
        power = min(int(math.log(max(abs(value), 1), 1024)), 4)
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    names = {"s": " s", "celsius": " °C", "watt": " W", "watth": " Wh", "h": " h"}
    return f"{value:.4g}{names.get(unit, '')}"


def colour(value: float, steps: Sequence[dict[str, Any]]) -> str:
    """That of the last threshold which the value reaches."""
    reached = [s for s in steps if s["value"] is None or value >= s["value"]]
    return str(reached[-1]["color"])


def preview(page: Page, server: Prometheus, span: float = 300.0) -> str:
    """The document; ``span`` is the seconds that graphs show."""
    parts = [_panel(panel, server, span) for panel in built(page)["panels"]]
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in built(page)["panels"]) * ROW
    return (
        f'<!doctype html><meta charset="utf-8"><title>{escape(page.title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(page.title)}</h1><p>{escape(page.text)}</p>"
        f'<main style="height:{height}px">{"".join(parts)}</main>'
    )


def _panel(panel: dict[str, Any], server: Prometheus, span: float) -> str:
    at = panel["gridPos"]
    place = (
        f"left:{at['x'] * COLUMN}px;top:{at['y'] * ROW}px;"
        f"width:{at['w'] * COLUMN - 4}px;height:{at['h'] * ROW - 4}px"
    )
    title = escape(panel["title"])
    if panel["type"] == "row":
        return f'<section class="row" style="{place}">{title}</section>'
    draw = {"stat": _stat, "timeseries": _graph, "table": _table}[panel["type"]]
    inside = draw(panel, server, span)
    text = escape(panel["description"])
    return f'<section style="{place}" title="{text}"><b>{title}</b>{inside}</section>'


def _stat(panel: dict[str, Any], server: Prometheus, _: float) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    words = {
        value: mapped["text"]
        for mapping in defaults.get("mappings", [])
        for value, mapped in mapping["options"].items()
    }
    found = [s for t in panel["targets"] for s in server.query(filled(t["expr"]))]
    parts = []
    for series in found:
        value = float(series["value"][1])
        text = words.get(f"{value:.0f}") or shown(value, defaults["unit"])
        ink = colour(value, defaults["thresholds"]["steps"])
        parts.append(f'<div class="figure" style="color:{ink}">{escape(text)}</div>')
    return "".join(parts) or "no data"


def _graph(panel: dict[str, Any], server: Prometheus, span: float) -> str:
    defaults, now = panel["fieldConfig"]["defaults"], time.time()
    lines: list[tuple[str, list[tuple[float, float]]]] = []
    for target in panel["targets"]:
        found = server.ask(
            "query_range", query=filled(target["expr"]), start=now - span, end=now, step=2
        )["result"]
        for series in found:
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            name = re.sub(r"\{\{\w+\}\}", "", name).strip()
            points = [(float(t), float(v)) for t, v in series["values"]]
            lines.append((name, [p for p in points if math.isfinite(p[1])]))
    at = panel["gridPos"]
    width, height = at["w"] * COLUMN - 90, at["h"] * ROW - 110
    values = [v for _, points in lines for _, v in points]
    if not values:
        return "no data"
    low, high = min([*values, defaults.get("min", math.inf)]), max(values)
    high = high if high > low else low + 1
    drawn, legend = [], []
    for number, (name, points) in enumerate(lines):
        ink = COLOURS[number % len(COLOURS)]
        path = " ".join(
            f"{60 + (t - now + span) / span * width:.0f},"
            f"{8 + (high - v) / (high - low) * height:.0f}"
            for t, v in points
        )
        drawn.append(f'<polyline fill="none" stroke="{ink}" stroke-width="2" points="{path}"/>')
        last = shown(points[-1][1], defaults["unit"]) if points else ""
        legend.append(f'<span style="color:{ink}">{escape(name)} {last}</span>')
    ends = "".join(
        f'<text x="0" y="{y}">{escape(shown(v, defaults["unit"]))}</text>'
        for y, v in ((14, high), (height + 8, low))
    )
    return (
        f'<svg width="{width + 70}" height="{height + 16}" font-size="11">{ends}'
        f"{''.join(drawn)}</svg><br><small>{' · '.join(legend[:12])}</small>"
    )


def _table(panel: dict[str, Any], server: Prometheus, _: float) -> str:
    """Rows joined and columns named as the panel's transformations say."""
    settings = {each["id"]: each["options"] for each in panel["transformations"]}
    joined, order = settings["joinByField"]["byField"], settings["organize"]["indexByName"]
    names = {
        name: settings["organize"]["renameByName"][name] for name in sorted(order, key=order.get)
    }
    rows: dict[str, dict[str, str]] = {}
    for target in panel["targets"]:
        for series in server.query(filled(target["expr"])):
            key = series["metric"].get(joined, "")
            value = f"{float(series['value'][1]):.4g}"
            rows.setdefault(key, {}).update(
                {**series["metric"], f"Value #{target['refId']}": value}
            )
    head = "".join(f"<th>{escape(name)}</th>" for name in names.values())
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(row.get(n, ""))}</td>' for n in names)}</tr>"
        for _, row in sorted(rows.items())
    )
    return f"<table><tr>{head}</tr>{body}</table>"


if __name__ == "__main__":
    asked, folder = Prometheus(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for each in PAGES:
        (folder / f"{each.name}.html").write_text(preview(each, asked))
