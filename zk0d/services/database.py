"""The SuperLink's database: whether it takes writes, and when it is rebuilt."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from zk0d.errors import UnavailableError

LOOK_SECONDS = 60.0


class Database:
    """One that holds nothing that is not elsewhere: the nodes are the roster's, past runs have
    their journals. So one that is too large is removed while nothing needs it.

    Parameters
    ----------
    limit
        Bytes; a larger one is rebuilt.
    """

    def __init__(self, path: Path, limit: float) -> None:
        self.path = path
        self._limit = limit
        self._next_look = 0.0
        self._fresh, self._smallest = False, 0  #: it was just made; bytes of an empty one

    @property
    def size(self) -> int:
        """In bytes, with what lies beside it."""
        return sum(path.stat().st_size for path in self._files())

    def probe(self) -> None:
        """Take its write lock and give it back; raises :class:`UnavailableError`."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=5.0)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
        except sqlite3.Error as error:
            raise UnavailableError(
                f"{self.path}: the database takes no write ({error}); is the disk full?"
            ) from None

    def is_too_large(self) -> bool:
        """Whether it must be rebuilt; checked each minute."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        size = self.size
        if self._fresh:
            self._fresh, self._smallest = False, size
        # Otherwise a limit below an empty database's size would rebuild it for ever.
        return size >= max(self._limit, 2 * self._smallest)

    def remove(self) -> None:
        """Remove it; the SuperLink, which does not run, makes the next."""
        for path in self._files():
            path.unlink(missing_ok=True)
        self._fresh = True

    def _files(self) -> list[Path]:
        return list(self.path.parent.glob(f"{self.path.name}*"))
