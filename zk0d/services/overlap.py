"""The overlap of two CAs, by the coordinator's service: it tells nodes, and notes who has both.

``zk0bot server renew-ca`` begins and ends it (:mod:`zk0d.machine.rollover`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zk0d.config.machine import SuperlinkSettings
from zk0d.errors import TryAgainError, Zk0dError
from zk0d.machine import rollover, roster

log = logging.getLogger("zk0d")


class Overlap:
    """Follows the files of the CAs.

    Parameters
    ----------
    certificate
        The gateway's.
    note
        Takes an entry for the audit log: its kind, and facts.
    """

    def __init__(
        self, link: SuperlinkSettings, certificate: Path, note: Callable[..., None]
    ) -> None:
        self._link = link
        self._files = (link.ca, certificate, rollover.next_file(link.ca))
        self._note = note
        self._lock = threading.Lock()  # requests come in several threads
        self._seen: tuple[object, ...] = ()
        self._next = ""
        self._has: dict[str, float] = {}
        #: For nodes: the CA whose certificate the gateway has, and what names the next one.
        self.told: dict[str, Any] | None = None

    def look(self) -> None:
        """Read the files again, if they changed."""
        seen = tuple(_mark(path) for path in self._files)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            cas = rollover.read_cas(self._link.ca, self._files[1])
        except Zk0dError as error:
            log.error("%s", error.message)
            return
        self.told = None
        following = cas.next
        if cas.shown:
            self.told = {"fingerprint": cas.shown}
            if following is not None:
                self.told["next"] = following.to_json()
        with self._lock:
            self._next = following.fingerprint if following is not None else ""
            self._has = rollover.who_has(self._link.state, self._next)

    def wants(self, key: str) -> bool:
        """Whether a node's word that it has the next CA is news."""
        return bool(self._next) and key not in self._has

    def has(self, key: str, ca: str) -> None:
        """A node has a CA."""
        with self._lock:
            if ca != self._next or key in self._has:
                return
            self._has[key] = time.time()
            try:
                rollover.keep_who_has(self._link.state, self._next, self._has)
            except TryAgainError as error:  # the node says it again
                del self._has[key]
                log.error("%s", error.message)
                return
        name = next((e.name for e in roster.entries(self._link.roster) if e.key == key), key[:12])
        log.info("node %s has the next CA %s", name, ca[:16])
        self._note("ca.known", node=name, key=key, ca=ca)


def _mark(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
