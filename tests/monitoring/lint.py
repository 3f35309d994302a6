"""Our own rules for dashboards: what a panel must have to be of use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

#: Grafana's names of the units that we use; one that is misspelt shows bare numbers.
UNITS = {
    "none",
    "short",
    "s",
    "h",
    "percentunit",
    "bytes",
    "Bps",
    "sci",
    "celsius",
    "watt",
    "watth",
}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_TEXTS = re.compile(r"\"[^\"]*\"|'[^']*'")
_NAME = re.compile(r"\b(?:up|(?:zk0d|process)_[a-z0-9_]+|zk0d(?::[a-z0-9_]+)+)\b(?!\s*\()")


def names_in(expr: str) -> set[str]:
    """The metrics that a query asks for."""
    return set(_NAME.findall(_TEXTS.sub("", expr)))


def panels_of(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Its panels without the rows' headings."""
    yield from (panel for panel in dashboard["panels"] if panel["type"] != "row")


def faults(dashboard: dict[str, Any], known: set[str]) -> Iterator[str]:
    """What is wrong with a dashboard, a sentence each.

    Parameters
    ----------
    known
        The metrics and recording rules that exist.
    """
    titles: set[str] = set()
    for panel in panels_of(dashboard):
        title = panel.get("title", "")
        if not title or title in titles:
            yield f"'{title}': a panel has a title of its own"
        titles.add(title)
        yield from (f"'{title}': {fault}" for fault in _panel_faults(panel, known))
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    if variables.get("datasource", {}).get("type") != "datasource":
        yield "there is no variable for the data source"
    if "node" not in variables:
        yield "there is no variable for the node"
    for name, variable in variables.items():
        if variable["type"] == "query" and variable.get("datasource") != SOURCE:
            yield f"variable {name}: its data source is hard-wired"
    if not dashboard["description"] or not dashboard["uid"]:
        yield "a dashboard has a description and a uid"
    yield from _overlaps(dashboard)


def _panel_faults(panel: dict[str, Any], known: set[str]) -> Iterator[str]:
    text, defaults = panel.get("description", ""), panel["fieldConfig"]["defaults"]
    if len(text) < 20 or not text.endswith("."):
        yield "the description is no sentence"
    if defaults.get("unit") not in UNITS:
        yield f"the unit {defaults.get('unit')!r} is none of Grafana's"
    if not defaults.get("thresholds", {}).get("steps"):
        yield "it has no thresholds"
    if panel.get("datasource") != SOURCE:
        yield "its data source is hard-wired"
    if not panel["targets"]:
        yield "it asks nothing"
    for target in panel["targets"]:
        if target.get("datasource") != SOURCE:
            yield "a query's data source is hard-wired"
        names = names_in(target["expr"])
        if not names:
            yield f"no metric in {target['expr']}"
        for name in sorted(names - known):
            yield f"the metric {name} does not exist"
        if panel["type"] != "stat" and not target.get("legendFormat"):
            yield "a query has no legend"


def _overlaps(dashboard: dict[str, Any]) -> Iterator[str]:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        if at["x"] + at["w"] > 24:
            yield f"'{panel['title']}': wider than the page"
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                other = taken.setdefault((x, y), panel["title"])
                if other != panel["title"]:
                    yield f"'{panel['title']}' lies on '{other}'"
                    return
