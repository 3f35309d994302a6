"""The SuperLink's nodes: those of the roster, and who comes, leaves and shares a key."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from zk0d.errors import Zk0dError
from zk0d.federation.nodes import Node
from zk0d.flower.control import Control
from zk0d.flower.sessions import KeyUse
from zk0d.machine import roster
from zk0d.machine.roster import node_name

log = logging.getLogger("zk0d")

RECONCILE_SECONDS = 10.0
#: A node's old key stays valid for so long while it uses its new one: what it answered with the old
#: one is thrown away with that.
OVERLAP_SECONDS = 60.0


class Members:
    """Makes the SuperLink's nodes those of the roster.

    Parameters
    ----------
    folder
        The roster.
    note
        Takes an entry for the audit log: its kind, and facts.
    """

    def __init__(self, control: Control, folder: Path, note: Callable[..., None]) -> None:
        self._control = control
        self._folder = folder
        self._note = note
        self._next_reconcile = 0.0
        self._online: dict[str, str] = {}  #: names by key
        self._renewed: dict[str, float] = {}  #: new keys in use, by key: since when
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
        present = {node.key: node for node in nodes}
        self._end_renewals(present)
        known = roster.read_roster(self._folder)
        for key, path in known.items():
            if key not in present:
                self._control.register(path, node_name(path))
                log.info("node %s may join (key %s)", node_name(path), key[:12])
                self._note("node.admitted", node=node_name(path), key=key)
        for key, node in present.items():
            if key not in known:
                self._control.unregister(node.id)
                log.info("node %s may not join any more", node.name)
                self._note("node.cut_off", node=node.name, key=key)

    def _end_renewals(self, present: dict[str, Node]) -> None:
        """End the old keys of nodes that have used the new ones that they asked for long enough."""
        in_use: dict[str, float] = {}
        for entry in roster.entries(self._folder):
            node = present.get(entry.key)
            if not entry.renewed or node is None or not node.online:
                continue
            in_use[entry.key] = self._renewed.get(entry.key, time.monotonic())
            if time.monotonic() - in_use[entry.key] >= OVERLAP_SECONDS:
                try:
                    roster.rotate(self._folder, entry.name)
                except Zk0dError as error:  # a full disk is no reason to lose the other nodes
                    log.error("%s", error.message)
                    continue
                log.info("node %s uses its new key: its old one is not valid any more", entry.name)
                self._note("key.rotated", node=entry.name, key=entry.key, renewal=True)
        self._renewed = in_use
