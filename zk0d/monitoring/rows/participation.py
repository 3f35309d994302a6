"""Who takes part, and whose updates count."""

from __future__ import annotations

from zk0d.monitoring.panels import GREEN, ORANGE, RED, Panel, Query, graph

TITLE = "Participation"


def panels() -> list[Panel]:
    """Top left to bottom right."""
    return [nodes(), participation(), results(), refusals()]


def nodes() -> Panel:
    return graph(
        "Nodes and quorum",
        "Registered nodes online and offline, and the updates that a round needs (quorum). Below"
        " the quorum no round can be committed.",
        "short",
        Query("sum by (state) (zk0d_nodes)", "{{state}}"),
        Query("max(zk0d_quorum_nodes)", "quorum"),
        span=12,
    )


def participation() -> Panel:
    return graph(
        "Participation by node",
        "Accepted share of the updates that a node was asked for in this run.",
        "percentunit",
        Query(
            'sum by (node) (zk0d_node_updates_total{result="accepted", node=~"$node"})'
            ' / (sum by (node) (zk0d_node_updates_total{node=~"$node"}) > 0)',
            "{{node}}",
        ),
        limits=((0.5, ORANGE), (0.9, GREEN)),
        below=RED,
    )


def results() -> Panel:
    return graph(
        "Updates by result",
        "Requested updates by result: accepted, refused, or lost because the node left or was too"
        " late.",
        "short",
        Query("sum by (result) (zk0d_node_updates_total)", "{{result}}"),
    )


def refusals() -> Panel:
    return graph(
        "Refused updates by reason and node",
        "Refused updates of this run, the twenty most frequent. not_finite means that a node's"
        " training failed; norm_outlier and norm_cap may mean an attack.",
        "short",
        Query('topk(20, zk0d_updates_rejected_total{node=~"$node"})', "{{node}}: {{reason}}"),
        Query("sum(zk0d_updates_rejected_total)", "all"),
        limits=((1, RED),),
    )
