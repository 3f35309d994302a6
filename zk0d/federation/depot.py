"""Where a round's files lie on the coordinator: weights on their way down, updates on theirs up.

```text
FOLDER/down/RUN.SHA256       weights, whole; any node of the round fetches the same file
       up/TICKET.SHA256      pieces of updates, as nginx or ``zk0d superlink`` put them there
       up/.incoming/         pieces that have not come whole
       taken/RUN/            pieces of answers that came, out of every node's reach
```

The ServerApp writes ``down`` and ``taken``, the gateway ``up``. A name appears by a rename, so
nothing is ever seen half-written. None of it outlives its round, so nothing is fsynced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from zk0d.config.machine import TransferSettings
from zk0d.federation.capability import Denied
from zk0d.federation.messages import BLOCK_BYTES, Piece
from zk0d.federation.streams import cut
from zk0d.federation.update import Manifest, Payload, UpdateError
from zk0d.files import rename
from zk0d.record.journal import disk

#: Disk that transfers leave free.
KEPT_FREE = 64 * 2**20
#: What belongs to no open round is removed after this; a run may be resumed meanwhile.
ABANDONED_SECONDS = 3600.0
#: What a run that died has left is removed by the next after this.
FORGOTTEN_SECONDS = 86400.0
_NAME = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{64})")
_USED_SECONDS = 1.0


class Depot:
    """The folder, for whoever may write which part of it."""

    def __init__(self, settings: TransferSettings) -> None:
        self._settings = settings
        self._checked: dict[Path, tuple[int, int, int]] = {}
        self._orphans: dict[Path, float] = {}  #: since when nobody waits for them
        self._used, self._used_at = 0, float("-inf")

    def make(self) -> None:
        """Make what is missing; systemd-tmpfiles has made it where users differ.

        Raises
        ------
        TryAgainError
            If it cannot be made.
        """
        own = self._settings
        with disk(own.down.parent):
            for folder in (own.down, own.incoming, own.taken):
                folder.mkdir(parents=True, exist_ok=True)

    # --- the ServerApp's --------------------------------------------------------------------------

    def publish(self, run: str, payload: Payload) -> Piece:
        """Write a payload of a run as one file that is named by its SHA-256.

        Raises
        ------
        TryAgainError
            If the disk is full.
        """
        folder, sha256, size = self._settings.down, hashlib.sha256(), 0
        blocks: list[str] = []
        source = payload.stream()
        if self._settings.mirrors:
            source = _hashed(cut(source, BLOCK_BYTES), blocks)
        draft = folder / f".{secrets.token_hex(8)}"
        with disk(folder):
            try:
                with draft.open("xb") as file:
                    for chunk in source:
                        sha256.update(chunk)
                        size += file.write(chunk)
                    # The gateway reads it by the folder's group.
                    os.fchmod(file.fileno(), 0o640)
                rename(draft, self.weights(run, sha256.hexdigest()), durable=False)
            finally:
                draft.unlink(missing_ok=True)
        return Piece(sha256=sha256.hexdigest(), size=size, blocks=tuple(blocks))

    def withdraw(self, run: str, sha256: str) -> None:
        """Remove what was published."""
        self.weights(run, sha256).unlink(missing_ok=True)

    def take(self, run: str, ticket: str, pieces: Sequence[Piece]) -> tuple[Path, ...]:
        """Move a node's pieces out of its reach; their paths, in their order.

        Raises
        ------
        UpdateError
            If one is not there.
        TryAgainError
            If the disk fails.
        """
        folder = self._settings.taken / run
        taken: list[Path] = []
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for number, piece in enumerate(pieces):
                path = folder / f"{secrets.token_hex(8)}.{number}"
                try:
                    rename(self.piece(ticket, piece.sha256), path, durable=False)
                except FileNotFoundError:
                    for each in taken:
                        each.unlink(missing_ok=True)
                    raise UpdateError(
                        f"piece {number} of the update has not arrived, or was not what its name"
                        " says."
                    ) from None
                taken.append(path)
        return tuple(taken)

    def clear(self, run: str, tickets: Collection[str]) -> None:
        """Remove what a run took, and every piece that its nodes have sent."""
        shutil.rmtree(self._settings.taken / run, ignore_errors=True)
        for path, found in self._pieces():
            if found in tickets:
                path.unlink(missing_ok=True)

    def forget(self, run: str) -> None:
        """Remove what this run left when it died, and what other dead runs did long ago."""
        shutil.rmtree(self._settings.taken / run, ignore_errors=True)
        for folder in self._settings.taken.iterdir():
            if _age(folder) > FORGOTTEN_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        for path in self._settings.down.iterdir():
            if path.name.startswith(f"{run}.") or _age(path) > FORGOTTEN_SECONDS:
                path.unlink(missing_ok=True)

    # --- the application's ------------------------------------------------------------------------

    def weights(self, run: str, sha256: str) -> Path:
        """Where a published file lies; two runs may have the same content."""
        return self._settings.down / f"{run}.{sha256}"

    def piece(self, ticket: str, sha256: str) -> Path:
        """Where a piece of an update lies."""
        return self._settings.up / f"{ticket}.{sha256}"

    def held(self, ticket: str) -> list[Piece]:
        """The pieces that are there whole; one that is not what its name says is removed.

        nginx does not look at what it takes, and a power cut may tear what it took.
        """
        found = []
        for path, of in self._pieces():
            if of != ticket:
                continue
            name = path.name.partition(".")[2]
            try:
                seen = path.stat()
                mark = seen.st_ino, seen.st_mtime_ns, seen.st_size
                if self._checked.get(path) != mark:
                    with path.open("rb") as file:
                        if hashlib.file_digest(file, "sha256").hexdigest() != name:
                            path.unlink()
                            continue
                    self._checked[path] = mark
            except FileNotFoundError:
                continue
            found.append(Piece(sha256=name, size=seen.st_size))
        return found

    def check_room(self, size: int, *, keep: bool = True) -> None:
        """Refuse a piece of ``size`` bytes where it has no room.

        Parameters
        ----------
        keep
            Whether the piece comes, so that others find less room.

        Raises
        ------
        Denied
            With 507.
        """
        now, up = time.monotonic(), self._settings.up
        if now - self._used_at > _USED_SECONDS:
            self._used_at = now
            self._used = sum(map(_size, (up, self._settings.taken)))
        if self._used + size > self._settings.limit_gib * 2**30:
            raise Denied(507, "the coordinator holds as many updates as transfer.limit-gib allows.")
        if shutil.disk_usage(up).free - size < KEPT_FREE:
            raise Denied(507, "the coordinator's disk is full.")
        if keep:
            self._used += size

    @contextmanager
    def writing(self, ticket: str, sha256: str) -> Iterator[BinaryIO]:
        """A file for a piece's bytes, which gets its name if the block ends well."""
        draft = self._settings.incoming / secrets.token_hex(8)
        try:
            with draft.open("xb") as file:
                yield file
            rename(draft, self.piece(ticket, sha256), durable=False)
        finally:
            draft.unlink(missing_ok=True)

    def sweep(self, tickets: Collection[str]) -> None:
        """Remove what came too late or was given up: pieces of no open round, and half ones."""
        late = {path for path, ticket in self._pieces() if ticket not in tickets}
        late.update(self._settings.incoming.iterdir())
        now = time.monotonic()
        self._orphans = {path: self._orphans.get(path, now) for path in late}
        for path, since in self._orphans.items():
            if now - since > ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        self._checked = {path: mark for path, mark in self._checked.items() if path.exists()}

    def _pieces(self) -> Iterator[tuple[Path, str]]:
        """Every piece of an update, and its ticket."""
        for path in self._settings.up.iterdir():
            if found := _NAME.fullmatch(path.name):
                yield path, found[1]


class FileChunks(list[bytes]):
    """A payload's chunks that lie in files; one at a time is in memory."""

    def __init__(self, files: Sequence[Path], sizes: Sequence[int]) -> None:
        super().__init__([b""] * len(files))
        self._files = files
        self._sizes = sizes
        self._now: tuple[int, bytes] = -1, b""

    def __getitem__(self, number: int) -> bytes:  # type: ignore[override]
        if self._now[0] != number:
            self._now = number, b""
            data = self._files[number].read_bytes()
            if len(data) != self._sizes[number]:
                raise UpdateError(
                    f"piece {number} of the update has another length than the answer names."
                )
            self._now = number, data
        return self._now[1]

    def __iter__(self) -> Iterator[bytes]:
        return (self[number] for number in range(len(self)))


def in_files(manifest: Manifest, files: tuple[Path, ...], pieces: Sequence[Piece]) -> Payload:
    """The payload whose bytes are these files."""
    chunks = FileChunks(files, [piece.size for piece in pieces])
    return Payload(manifest, chunks, files=files)


def _hashed(blocks: Iterator[bytes], names: list[str]) -> Iterator[bytes]:
    """The same blocks; the SHA-256 of each is appended to ``names``."""
    for block in blocks:
        names.append(hashlib.sha256(block).hexdigest())
        yield block


def _size(folder: Path) -> int:
    """Bytes of the files beneath; what goes away meanwhile counts no more."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _age(path: Path) -> float:
    """Seconds since it was written."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
