"""Small files by which a machine's services tell ``zk0bot`` how they are."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from zk0d.errors import TryAgainError
from zk0d.files import write_file
from zk0d.machine.rights import writing

log = logging.getLogger("zk0d")

STATE = "state.json"
VERSION = 1


class StateFile:
    """What a service tells, in its state folder; written when it changes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE
        self._told: dict[str, Any] = {}

    def tell(self, **facts: Any) -> None:
        """Write the facts, if they are others than before."""
        if facts == self._told:
            return
        self._told = facts
        try:
            write_json(self._path, {"version": VERSION, **facts})
        except TryAgainError as error:  # a full disk is no reason to end
            log.error("%s", error.message)

    def end(self) -> None:
        """Remove the file: the service runs no more."""
        if self._told:
            self._path.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any], *, durable: bool = False) -> None:
    """Write a small file, whole or not at all, that every user may read.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    """
    with writing(path):
        write_file(path, json.dumps(content), mode=0o644, durable=durable)


def read_json(path: Path) -> dict[str, Any]:
    """What :func:`write_json` wrote; empty if it is not there or may not be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content
