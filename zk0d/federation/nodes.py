"""The nodes as the SuperLink sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # zk0d superlink knows nodes too, and has no use for the rest of Flower's server.
    from flwr.serverapp import Grid

ONLINE = "online"


@dataclass(frozen=True)
class Node:
    """A SuperNode, known by its key and not by Flower's number, which changes."""

    id: int
    key: str  #: fingerprint of its public key; its number where there is no key (simulation)
    name: str  #: what the roster calls it
    online: bool
    activated: float  #: seconds since the epoch when its session began; 0 if unknown
    counted_until: float = 0.0  #: when the SuperLink stops, or stopped, to count it online
    enrolled: str = ""  #: the roster's name, whichever key it has; empty where there is no roster

    @classmethod
    def of(cls, info: Any) -> Node:
        """Read Flower's ``NodeInfo``."""
        public_key = bytes(getattr(info, "public_key", b""))
        key = hashlib.sha256(public_key).hexdigest() if public_key else f"node-{info.node_id}"
        return cls(
            id=info.node_id,
            key=key,
            name=getattr(info, "name", "") or key[:12],
            online=info.status == ONLINE,
            activated=_timestamp(getattr(info, "last_activated_at", "")),
            counted_until=float(getattr(info, "online_until", 0.0) or 0.0),
            enrolled=getattr(info, "name", "") or "",
        )


def nodes_of(grid: Grid) -> dict[str, Node]:
    """All nodes of the grid by key; where a key has several sessions, the newest."""
    nodes: dict[str, Node] = {}
    for info in grid.get_nodes():
        node = Node.of(info)
        if node.key not in nodes or node.activated >= nodes[node.key].activated:
            nodes[node.key] = node
    return {node.key: node for node in current(nodes.values())}


def current(nodes: Iterable[Node]) -> list[Node]:
    """One for each name of the roster, in the order given.

    A node that changes its key has two keys for a while. Its newest session counts, so that nobody
    has two parts in a round.
    """
    newest: dict[str, Node] = {}
    for node in nodes:
        who = node.enrolled or node.key
        if who not in newest or node.activated >= newest[who].activated:
            newest[who] = node
    return list(newest.values())


def _timestamp(text: str) -> float:
    if not text:
        return 0.0
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
