"""The SuperLink's nodes: those of the roster, and who comes, leaves and shares a key."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from zk0d.federation.nodes import Node
from zk0d.flower.control import Control
from zk0d.flower.sessions import KeyUse
from zk0d.machine.roster import node_name, read_roster

log = logging.getLogger("zk0d")

RECONCILE_SECONDS = 10.0


class Members:
    """Makes the SuperLink's nodes those of the roster.

    Parameters
    ----------
    note
        Takes an entry for the audit log: its kind, and facts.
    """

    def __init__(self, control: Control, roster: Path, note: Callable[..., None]) -> None:
        self._control = control
        self._roster = roster
        self._note = note
        self._next_reconcile = 0.0
        self._online: dict[str, str] = {}  #: names by key
        self.shared: dict[str, str] = {}  #: names by key, of keys that two machines use

    def look(self) -> list[Node]:
        """The nodes; from time to time they are made those of the roster.

        Raises
        ------
        Zk0dError
            If the SuperLink does not answer, or refuses.
        """
        nodes = self._control.nodes()
        if time.monotonic() >= self._next_reconcile:
            self._next_reconcile = time.monotonic() + RECONCILE_SECONDS
            self._reconcile(nodes)
        return nodes

    def reconcile_soon(self) -> None:
        """Have the next look read the roster."""
        self._next_reconcile = 0.0

    def tell(self, nodes: list[Node], uses: Mapping[str, KeyUse]) -> None:
        """Note who came, who left, and whose key two machines use."""
        online = {node.key: node.name for node in nodes if node.online}
        for key in online.keys() - self._online.keys():
            self._note("node.online", node=online[key], key=key)
        for key in self._online.keys() - online.keys():
            self._note("node.offline", node=self._online[key], key=key)
        self._online = online
        shared = {n.key: n.name for n in nodes if n.key in uses and uses[n.key].shared}
        for key in shared.keys() - self.shared.keys():
            log.warning("two machines use the key of node %s (%s)", shared[key], key[:12])
            self._note("key.shared", node=shared[key], key=key)
        self.shared = shared

    def _reconcile(self, nodes: list[Node]) -> None:
        roster = read_roster(self._roster)
        present = {node.key: node for node in nodes}
        for key, path in roster.items():
            if key not in present:
                self._control.register(path, node_name(path))
                log.info("node %s may join (key %s)", node_name(path), key[:12])
                self._note("node.admitted", node=node_name(path), key=key)
        for key, node in present.items():
            if key not in roster:
                self._control.unregister(node.id)
                log.info("node %s may not join any more", node.name)
                self._note("node.cut_off", node=node.name, key=key)
