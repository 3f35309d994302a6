"""The audit log: who joined, left, was refused, and what was run by whom.

One JSON object a line; each holds the hash of the line before, so that an edited, removed or
reordered line shows. Removing the newest lines does not show in the file itself: the head (number
and hash of the last line) is kept beside it, and belongs where the log's owner cannot change it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0d.config.machine import ServerSettings
from zk0d.errors import not_written
from zk0d.files import whole_file
from zk0d.machine.rights import writing

AUDIT, HEAD = "audit.jsonl", "audit.head"
VERSION = 1
FIRST = "0" * 64  #: what the first line has for the line before


@dataclass(frozen=True)
class Verified:
    """What :func:`verify` found: ``lines`` in order, and the first thing wrong, or ``""``."""

    lines: int
    head: str
    problem: str = ""


class AuditLog:
    """The log at ``folder``, for appending; several processes may.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def append(self, kind: str, who: str, **facts: Any) -> str:
        """Add a line and make it durable; the new head, as ``N:HASH``."""
        with _locked(self._folder) as log:
            number, previous = _last(log)
            line = {
                "v": VERSION,
                "n": number + 1,
                "time": time.time(),
                "kind": kind,
                "who": who,
                **facts,
                "previous": previous,
            }
            line["hash"] = _hash(line)
            log.seek(0, os.SEEK_END)
            log.write(json.dumps(line).encode() + b"\n")
            log.flush()
            os.fsync(log.fileno())
            head = f"{line['n']}:{line['hash']}"
            _write_head(self._folder, head)
            return head


def note(config: Path, kind: str, **facts: Any) -> None:
    """Write what the caller of this program did, if ``config`` is a coordinator's folder."""
    if not (config / "server.toml").exists():
        return
    folder = of_coordinator(config)
    # Before the first start it is not there; systemd then gives it to the SuperLink's user.
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    AuditLog(folder).append(kind, caller(), **facts)


def of_coordinator(config: Path) -> Path:
    """The folder of the log whose coordinator has its settings in ``config``."""
    path = config / "server.toml"
    settings = ServerSettings.load(path) if path.exists() else ServerSettings()
    return settings.superlink.state


def caller() -> str:
    """The user who typed this, before sudo."""
    uid = os.environ.get("SUDO_UID") or str(os.getuid())
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return f"uid {uid}"


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines, oldest first; what is no line is passed over."""
    try:
        text = (folder / AUDIT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def verify(folder: Path, head: str = "") -> Verified:
    """Whether the log is as it was written.

    Parameters
    ----------
    head
        ``N:HASH`` that was noted earlier: the log must hold that line, unchanged.
    """
    try:
        lines = (folder / AUDIT).read_bytes().split(b"\n")
    except FileNotFoundError:
        lines = [b""]
    torn = lines.pop()
    previous, heads = FIRST, ["0:" + FIRST]
    for at, text in enumerate(lines, start=1):
        problem = ""
        try:
            line = json.loads(text)
            given = line.pop("hash")
        except (ValueError, KeyError, AttributeError, TypeError):
            return Verified(at - 1, heads[-1], f"line {at} is not an entry: it was edited")
        if line.get("n") != at:
            problem = f"line {at} has number {line.get('n')}: lines were removed or moved"
        elif line.get("previous") != previous:
            problem = f"line {at} does not follow the line before it: one of the two was changed"
        elif _hash(line) != given:
            problem = f"line {at} was edited"
        if problem:
            return Verified(at - 1, heads[-1], problem)
        previous = given
        heads.append(f"{at}:{given}")
    if torn:
        return Verified(len(lines), heads[-1], f"line {len(lines) + 1} breaks off")
    for known, where in ((_read_head(folder), HEAD), (head, "the head that was noted")):
        if known and known not in heads:
            number = known.partition(":")[0]
            return Verified(
                len(lines),
                heads[-1],
                f"entry {number}, named by {where}, is missing or was changed",
            )
    return Verified(len(lines), heads[-1])


def _hash(line: dict[str, Any]) -> str:
    text = json.dumps(line, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _last(log: Any) -> tuple[int, str]:
    """Number and hash of the last line; one that broke off when the power went is cut off."""
    log.seek(0)
    content = log.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        log.truncate(whole)
    lines = content[:whole].splitlines()
    if not lines:
        return 0, FIRST
    try:
        last = json.loads(lines[-1])
        return int(last["n"]), str(last["hash"])
    except (ValueError, KeyError, TypeError):
        # The log was edited here; the chain continues so that verify names the place.
        return len(lines), FIRST


@contextmanager
def _locked(folder: Path) -> Iterator[Any]:
    path = folder / AUDIT
    try:
        # Root appends, too: the file stays its folder's owner's.
        new = not path.exists()
        with path.open("ab+") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            if new:
                _like_the_folder(path)
            yield log
    except OSError as error:
        raise not_written(f"{path}: the audit log cannot be written", error) from None


def _like_the_folder(path: Path) -> None:
    path.chmod(0o640)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _write_head(folder: Path, head: str) -> None:
    with whole_file(folder / HEAD, mode=0o640) as draft:
        draft.write_text(head + "\n", encoding="utf-8")
        _like_the_folder(draft)


def _read_head(folder: Path) -> str:
    try:
        return (folder / HEAD).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
