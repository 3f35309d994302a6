"""Bytes that come from elsewhere, once or as often as they are wanted, and are kept by nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import IO, Literal

#: A payload's chunks in memory are at most so long.
CHUNK_BYTES = 4 * 2**20
#: What comes in small parts is given on in parts of this size, or after so long.
GATHERED_BYTES, GATHERED_SECONDS = 2**20, 1.0


class Once:
    """Bytes that come once: they are given on as they come, or kept.

    Parameters
    ----------
    pieces
        The bytes in order, in pieces of any length.
    after
        What comes before them on the same way. It is kept if nobody has read it when these are
        wanted.
    """

    def __init__(self, pieces: Iterator[bytes], after: Once | None = None) -> None:
        self._pieces = pieces
        self._after = after
        self._state: Literal["not begun", "under way", "given on"] = "not begun"
        self._kept: list[bytes] | None = None

    def stream(self) -> Iterator[bytes]:
        """The bytes as they come; nothing of them stays here.

        Raises
        ------
        RuntimeError
            If they were given on already: whoever reads them twice has to keep them first.
        """
        if self._kept is not None:
            yield from self._kept
            return
        if self._state != "not begun":
            raise RuntimeError(f"these bytes are {self._state}; keep them to read them twice")
        if self._after is not None:
            self._after.pass_by()
        self._state = "under way"
        yield from self._pieces
        self._state = "given on"

    def keep(self) -> list[bytes]:
        """The bytes in memory, in chunks; the same list each time."""
        if self._kept is None:
            self._kept = list(cut(self.stream(), CHUNK_BYTES))
        return self._kept

    def pass_by(self) -> None:
        """Make way for what comes after them."""
        if self._state != "given on":
            self.keep()


class Again:
    """Bytes that are made anew each time that they are read, or kept.

    Parameters
    ----------
    make
        The bytes in order, in pieces of any length; the same bytes each time.
    """

    def __init__(self, make: Callable[[], Iterator[bytes]]) -> None:
        self._make = make
        self._kept: list[bytes] | None = None

    def stream(self) -> Iterator[bytes]:
        """The bytes; nothing of them stays here."""
        return iter(self._kept) if self._kept is not None else self._make()

    def keep(self) -> list[bytes]:
        """The bytes in memory, in chunks; the same list each time."""
        if self._kept is None:
            self._kept = list(cut(self._make(), CHUNK_BYTES))
        return self._kept


def cut(source: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in blocks of ``size``; the last may be shorter."""
    block = bytearray()
    for piece in source:
        view = memoryview(piece)
        while view:
            take = min(size - len(block), len(view))
            block += view[:take]
            view = view[take:]
            if len(block) == size:
                yield bytes(block)
                block.clear()
    if block:
        yield bytes(block)


def gathered(
    source: Iterator[bytes], clock: Callable[[], float] = time.monotonic
) -> Iterator[bytes]:
    """The same bytes in larger parts: each part costs its reader the same, however short it is.

    A slow source's bytes are held back for :data:`GATHERED_SECONDS` at most once they came and
    others follow. The bytes of one that breaks are given on before its error is raised.
    """
    block, began, broken = bytearray(), 0.0, None
    try:
        for part in source:
            if not block:
                began = clock()
            block += part
            if len(block) >= GATHERED_BYTES or clock() - began >= GATHERED_SECONDS:
                yield bytes(block)
                block.clear()
    except Exception as error:
        broken = error
    if block:
        yield bytes(block)
    if broken is not None:
        raise broken


def pieces_of(file: IO[bytes]) -> Iterator[bytes]:
    """A file's bytes from its beginning, in chunks; one reader at a time."""
    file.seek(0)
    while piece := file.read(CHUNK_BYTES):
        yield piece
