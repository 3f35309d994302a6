"""The roster: a folder with one public key file per node that may join.

``NAME.pub`` is a node's key. While it changes its key, ``NAME.next.pub`` is valid beside it. The
folder is the truth: the SuperLink's list of nodes is made equal to it, and may be lost.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from zk0d.config.names import ALIAS_PATTERN
from zk0d.errors import ConfigError, UsageError
from zk0d.files import make_folder, rename, write_file
from zk0d.machine.enrolment import Request
from zk0d.machine.keys import fingerprint
from zk0d.machine.renewal import SignedRenewal
from zk0d.machine.rights import writing

log = logging.getLogger("zk0d")

NEXT = ".next"
#: Stands in the comment of a key that its node asked for itself: its overlap ends by itself, too.
_RENEWED = "[renewal]"
_APPROVED = re.compile(rf"(\d{{4}}-\d\d-\d\d)(?: {re.escape(_RENEWED)})?( .*)?")


@dataclass(frozen=True)
class Entry:
    """One key file of the roster."""

    path: Path
    key: str  #: fingerprint

    @property
    def name(self) -> str:
        return node_name(self.path)

    @property
    def next(self) -> bool:
        """Whether it is a key that its node changes to."""
        return self.path.stem.endswith(NEXT)

    @property
    def renewed(self) -> bool:
        """Whether it is such a key, and the node asked for it itself."""
        return self.next and f" {_RENEWED}" in self._comment()

    @property
    def contact(self) -> str:
        """What the request said, kept in the key file's comment."""
        found = _APPROVED.match(self._comment())
        return (found[2] or "").strip() if found else ""

    @property
    def approved(self) -> str:
        """The day it was approved, or empty for a file that something else put there."""
        found = _APPROVED.match(self._comment())
        return found[1] if found else ""

    def _comment(self) -> str:
        words = self.path.read_text(encoding="utf-8").strip().split(" ", 2)
        return words[2] if len(words) > 2 else ""


def node_name(path: Path) -> str:
    """What the node of a key file is called."""
    return path.stem.removesuffix(NEXT)


def read_roster(folder: Path) -> dict[str, Path]:
    """Key files by fingerprint; a file that holds no key is said and left out."""
    return {entry.key: entry.path for entry in entries(folder)}


def entries(folder: Path) -> list[Entry]:
    """The roster's keys by name; a file that holds no key is said and left out."""
    found: dict[str, Entry] = {}
    for path in sorted(folder.glob("*.pub")):
        if not ALIAS_PATTERN.fullmatch(node_name(path)):
            log.error("roster: %s: a node's name is 1 to 32 of a-z, 0-9 and '-'", path)
            continue
        try:
            entry = Entry(path, fingerprint(path))
        except ConfigError as error:
            log.error("roster: %s", error.message)
            continue
        # One key under two names would be one node for Flower.
        if entry.key in found:
            log.error("roster: %s holds the key of %s again", path, found[entry.key].path.name)
            continue
        found[entry.key] = entry
    return list(found.values())


def approve(folder: Path, request: Request, *, rotate: bool = False) -> Entry:
    """Let a node in; with ``rotate`` its new key, beside the one it has.

    Raises
    ------
    UsageError
        If the name or the key is there already, or there is no key to rotate.
    TryAgainError
        If the folder cannot be written.
    """
    known = entries(folder)
    for entry in known:
        if entry.key == request.fingerprint:
            raise UsageError(f"this key is approved already, as '{entry.name}'.")
    own = [entry for entry in known if entry.name == request.name]
    if own and not rotate:
        raise UsageError(
            f"there is a node '{request.name}' with another key ({own[0].key[:12]}); if it is the"
            " same node with a new key, add --rotate; otherwise it needs another name."
        )
    if rotate and not own:
        raise UsageError(f"there is no node '{request.name}', so its key cannot be changed.")
    name = f"{request.name}{NEXT}.pub" if rotate else f"{request.name}.pub"
    _write(folder / name, request.key, request.contact)
    return Entry(folder / name, request.fingerprint)


class RefusedRenewal(Exception):
    """Why a node does not get its new key, in one sentence."""


def renew(folder: Path, signed: SignedRenewal) -> Entry | None:
    """Put a node's new key beside its old one; ``None`` if the roster has it so already.

    Raises
    ------
    RefusedRenewal
        If the roster does not know the old key, or knows either under another name.
    ConfigError
        If a signature is not its key's.
    TryAgainError
        If the folder cannot be written.
    """
    asked, known = signed.renewal, {entry.key: entry for entry in entries(folder)}
    newer, older = known.get(asked.fingerprint), known.get(asked.old)
    if newer is not None and newer.name != asked.name:
        raise RefusedRenewal("the new key is another node's; remove node.next.key*, and try again")
    if older is None:
        raise RefusedRenewal("the coordinator does not know the key that this node has until now")
    signed.check(older.path)
    if older.name != asked.name:
        raise RefusedRenewal(
            f"the coordinator calls the node with this key otherwise than '{asked.name}'; set name"
            " in client.toml to what its operator sees in zk0bot node list"
        )
    if asked.fingerprint == older.key:
        raise RefusedRenewal("the new key is the old one")
    if newer is not None:
        return None
    if older.next:  # its node uses it: it signs with it
        older = rotate(folder, asked.name)
    path = folder / f"{asked.name}{NEXT}.pub"
    _write(path, asked.key, f"{_RENEWED} {older.contact}")
    return Entry(path, asked.fingerprint)


def _write(path: Path, key: str, said: str) -> None:
    """Write a key's file: with the day, and what its node said of itself."""
    today = datetime.now(UTC).date().isoformat()
    with writing(path.parent):
        make_folder(path.parent)
        text = f"{key} {today} {said}".strip() + "\n"
        write_file(path, text, mode=0o644)  # the SuperLink's user reads it


def remove(folder: Path, name: str) -> list[Entry]:
    """Let a node in no more, with all its keys; which these were."""
    gone = _of(folder, name)
    with writing(folder):
        for entry in gone:
            entry.path.unlink(missing_ok=True)
    return gone


def rotate(folder: Path, name: str) -> Entry:
    """End the overlap of a node's two keys: the new one stays.

    Raises
    ------
    UsageError
        If it has no second key.
    """
    newer = [entry for entry in _of(folder, name) if entry.next]
    if not newer:
        raise UsageError(
            f"node '{name}' has one key; it sends a request for a new one (zk0bot node keygen"
            " --next), which zk0bot node approve --rotate takes."
        )
    path = folder / f"{name}.pub"
    with writing(folder):
        rename(newer[0].path, path)
    return Entry(path, newer[0].key)


def _of(folder: Path, name: str) -> list[Entry]:
    found = [entry for entry in entries(folder) if entry.name == name]
    if not found:
        raise UsageError(
            f"there is no node '{name}' in {folder}; zk0bot node list shows all nodes."
        )
    return found
