"""The four dashboards, as Grafana reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableRefresh,
    VariableSort,
)

from zk0d.monitoring.panels import SOURCE, Panel
from zk0d.monitoring.rows import (
    anatomy,
    contributor,
    cost,
    hardware,
    learning,
    nodes,
    participation,
    schedule,
    services,
)

TAG = "zk0d"


@dataclass(frozen=True)
class Row:
    """A heading and what stands under it."""

    title: str
    panels: Callable[[], list[Panel]]


@dataclass(frozen=True)
class Page:
    """One dashboard."""

    name: str
    title: str
    text: str
    rows: tuple[Row, ...]
    span: str = "now-6h"

    @property
    def uid(self) -> str:
        """What links name it by."""
        return f"zk0d-{self.name}"


PAGES = (
    Page(
        "federation",
        "zk0d: federation",
        "Learning, participation and refused updates.",
        (
            Row(learning.TITLE, learning.panels),
            Row(participation.TITLE, participation.panels),
            Row(schedule.TITLE, schedule.panels),
        ),
    ),
    Page(
        "fleet",
        "zk0d: fleet",
        "Health of machines and services.",
        (
            Row(nodes.TITLE, nodes.panels),
            Row(services.TITLE, services.panels),
            Row(hardware.TITLE, hardware.panels),
        ),
    ),
    Page(
        "round-anatomy",
        "zk0d: round anatomy",
        "Where a round's time and bytes go.",
        (Row(anatomy.TITLE, anatomy.panels),),
    ),
    Page(
        "contributor",
        "zk0d: contributor",
        "The work of one machine, and its cost for the owner.",
        (
            Row(contributor.TITLE, contributor.panels),
            Row(cost.TITLE, cost.panels),
        ),
        span="now-24h",
    ),
)


def built(page: Page) -> dict[str, Any]:
    """A dashboard as plain data; panels are numbered from 1 in the order they stand in."""
    made = (
        dashboard.Dashboard(page.title)
        .uid(page.uid)
        .description(page.text)
        .tags([TAG])
        .refresh("30s")
        .time(page.span, "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(
            dashboard.QueryVariable("node")
            .label("Node")
            .description("Nodes by name; services of contributors need the label from the scrape.")
            .datasource(SOURCE)
            .query('label_values({__name__=~"zk0d_node_online|zk0d_online"}, node)')
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
        .link(
            dashboard.DashboardLink("zk0d")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .keep_time(True)
        )
    )
    number = 0
    for row in page.rows:
        made.with_row(dashboard.Row(row.title))
        for panel in row.panels():
            number += 1
            made.with_panel(panel.id(number))
    content: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    for row_number, row_panel in enumerate(p for p in content["panels"] if p["type"] == "row"):
        row_panel["id"] = 1000 + row_number
    return content


def text_of(page: Page) -> str:
    """The file: keys sorted, so that differences can be read."""
    return json.dumps(built(page), indent=2, sort_keys=True) + "\n"
