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
        "Services whose metrics Prometheus cannot read. What is not read raises no other alert.",
        "short",
        Query('count(up{job=~"zk0d.*"} == 0) or vector(0)'),
        limits=((1, RED),),
        span=6,
    )


def offline() -> Panel:
    return number(
        "Nodes offline",
        "Registered nodes that the SuperLink does not count online. People turn machines off: one"
        " is no fault by itself.",
        "short",
        Query('sum(zk0d_nodes{state="offline"})'),
        limits=((1, ORANGE),),
        span=6,
    )


def versions() -> Panel:
    return number(
        "Versions in use",
        "Different versions of zk0d on all machines that are seen. More than one is a fleet in the"
        " middle of an upgrade, or one that stopped there.",
        "short",
        Query("zk0d:versions:count"),
        limits=((2, ORANGE),),
        span=6,
    )


def learners() -> Panel:
    return number(
        "Learners that answer",
        "Learners and evaluators that their SuperExec reaches, of the machines that are scraped.",
        "short",
        Query("sum(zk0d_learner_up)"),
        limits=((1, GREEN),),
        below=RED,
        span=6,
    )


def roster() -> Panel:
    return listing(
        "Nodes of the roster",
        "Each node: online by the SuperLink's word, seconds since it last was, seconds that its"
        " last round took, accepted updates, its version, and whether two machines use its key.",
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
        "Seconds since the SuperLink last counted a node online. The alert speaks after ten"
        " minutes.",
        "s",
        Query('time() - (zk0d_node_last_online_timestamp_seconds{node=~"$node"} > 0)', "{{node}}"),
        limits=((600, ORANGE),),
        span=8,
    )
