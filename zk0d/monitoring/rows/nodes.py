"""The nodes as the coordinator sees them."""

from __future__ import annotations

from zk0d.monitoring.panels import GREEN, ORANGE, RED, Panel, Query, graph, listing, number

TITLE = "Nodes"


def panels() -> list[Panel]:
    """Top left to bottom right."""
    return [targets_down(), offline(), versions(), learners(), roster(), last_online()]


def targets_down() -> Panel:
    return number(
        "Targets that do not answer",
        "Services that Prometheus cannot read. No other alert watches them.",
        "short",
        Query('count(up{job=~"zk0d.*"} == 0) or vector(0)'),
        limits=((1, RED),),
        span=6,
    )


def offline() -> Panel:
    return number(
        "Nodes offline",
        "Registered nodes that the SuperLink does not count online. One alone is not a fault:"
        " people turn machines off.",
        "short",
        Query('sum(zk0d_nodes{state="offline"})'),
        limits=((1, ORANGE),),
        span=6,
    )


def versions() -> Panel:
    return number(
        "Versions in use",
        "Different versions of zk0d on all scraped machines. With more than one an upgrade is under"
        " way, or it stopped halfway.",
        "short",
        Query("zk0d:versions:count"),
        limits=((2, ORANGE),),
        span=6,
    )


def learners() -> Panel:
    return number(
        "Learners that answer",
        "Learners and evaluators that answer their SuperExec, on the scraped machines.",
        "short",
        Query("sum(zk0d_learner_up)"),
        limits=((1, GREEN),),
        below=RED,
        span=6,
    )


def roster() -> Panel:
    return listing(
        "Nodes of the roster",
        "Each node: whether the SuperLink counts it online, seconds since it last did, seconds of"
        " its last round, accepted updates, version, and whether two machines use its key.",
        "short",
        Query('zk0d_node_online{node=~"$node"}'),
        Query('time() - (zk0d_node_last_online_timestamp_seconds{node=~"$node"} > 0)'),
        Query('zk0d_node_answer_seconds{node=~"$node"}'),
        Query('zk0d_node_updates_total{result="accepted", node=~"$node"}'),
        Query('zk0d_node_info{node=~"$node"}'),
        Query('zk0d_node_key_shared{node=~"$node"}'),
        joined_by="node",
        names={
            "node": "Node",
            "Value #A": "Online",
            "Value #B": "Last online, s ago",
            "Value #C": "Last round, s",
            "Value #D": "Accepted",
            "Value #F": "Key shared",
            "version": "Version",
        },
        span=16,
    )


def last_online() -> Panel:
    return graph(
        "Since a node was online",
        "Seconds since the SuperLink last counted a node online. The alert fires after ten"
        " minutes.",
        "s",
        Query('time() - (zk0d_node_last_online_timestamp_seconds{node=~"$node"} > 0)', "{{node}}"),
        limits=((600, ORANGE),),
        span=8,
    )
