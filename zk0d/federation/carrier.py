"""A node's way to the coordinator's files: weights down, pieces of an update up, over HTTP.

A transfer that is cut goes on where it was: the rest of a file by a range, an update with the
pieces that are missing. Both ends are streams; of an update one piece is in memory.

Weights may also lie at mirrors, which nobody has to trust: each block is checked before it is
given on, and a mirror that is slow or wrong is left for the coordinator.
"""

from __future__ import annotations

import hashlib
import logging
import random
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import httpx
from pydantic import TypeAdapter

from zk0d.config.limits import LimitsSettings
from zk0d.errors import TryAgainError, Zk0dError
from zk0d.federation.line import Line
from zk0d.federation.messages import BLOCK_BYTES, Mirror, Piece, Route
from zk0d.federation.streams import cut, gathered

log = logging.getLogger("flwr")

#: An update's pieces, in bytes.
PIECE_BYTES = 8 * 2**20
#: So long without a byte moved, and the transfer is given up.
PATIENCE_SECONDS = 120.0
#: Silence of a mirror, and time for a block of it, after which it is left.
MIRROR_SILENCE, MIRROR_BLOCK_SECONDS = 10.0, 20.0
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0
_PASSES = {408, 425, 429, 500, 502, 503, 504, 507}
_HELD = TypeAdapter(list[Piece])
_FULL = 507


class Carrier:
    """One coordinator, by the URL of its pages, with the certificate of its authority.

    Parameters
    ----------
    authorities
        Those by which it is known instead (PEM).
    patience
        Seconds.
    sleep
        Replaced in tests.
    line
        What the owner lends; by default all of it, and nothing is counted.

    Raises
    ------
    TryAgainError
        From any method, if nothing moves for longer than ``patience``, the coordinator's disk is
        full, it refuses, or what comes is not what was named.
    """

    def __init__(
        self,
        url: str,
        ca: Path | None,
        *,
        authorities: str = "",
        patience: float = PATIENCE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
        line: Line | None = None,
    ) -> None:
        self._url = url
        self._line = line or Line(LimitsSettings())
        self._patience = patience
        self._sleep = sleep
        trust: ssl.SSLContext | bool = True
        if authorities:
            trust = ssl.create_default_context(cadata=authorities)
        elif ca:
            trust = ssl.create_default_context(cafile=str(ca))
        self._http = httpx.Client(
            base_url=url, verify=trust, timeout=httpx.Timeout(30.0), trust_env=False
        )
        #: Made when one is asked; none is asked again that was left.
        self._mirrors_http: httpx.Client | None = None
        self._left: set[str] = set()

    def close(self) -> None:
        self._http.close()
        if self._mirrors_http is not None:
            self._mirrors_http.close()

    def download(self, piece: Piece, route: Route) -> Iterator[bytes]:
        """A file's bytes, checked by its name before the last of them is given out."""
        sha256, size, last = hashlib.sha256(), 0, b""
        for part in self._from_anywhere(piece, route):
            if last:
                yield last
            last = part
            size += len(part)
            sha256.update(part)
        if size != piece.size or sha256.hexdigest() != piece.sha256:
            raise TryAgainError(
                f"the weights that {self._url} sends are not those that the round names."
            )
        yield last

    def _from_anywhere(self, piece: Piece, route: Route) -> Iterator[bytes]:
        """A file's bytes: from mirrors, as far as they give them, and the rest from there."""
        at = 0
        # Nodes do not all ask the same one first.
        for mirror in random.sample(route.mirrors, len(route.mirrors)):
            if piece.blocks and at < piece.size and mirror.url not in self._left:
                at = yield from self._from_mirror(mirror, piece, at)
        yield from self._from_coordinator(piece, route, at)

    def _from_mirror(self, mirror: Mirror, piece: Piece, at: int) -> Generator[bytes, None, int]:
        """The blocks from ``at`` on, while they are what is named; where they ended."""
        if self._mirrors_http is None:
            self._mirrors_http = httpx.Client(timeout=MIRROR_SILENCE, trust_env=False)
        headers = {"authorization": f"Bearer {mirror.down}", "accept-encoding": "identity"}
        if at:
            headers["range"] = f"bytes={at}-"
        url = f"{mirror.url}/down/{piece.sha256}"
        try:
            with self._mirrors_http.stream("GET", url, headers=headers) as answer:
                if answer.status_code != (206 if at else 200):
                    raise _NoMirror(f"status {answer.status_code}")
                # The time in which whoever reads takes a block is none of the mirror's.
                parts = _Timed(answer.iter_raw(), self._line)
                blocks = cut(iter(parts), BLOCK_BYTES)
                for name in piece.blocks[at // BLOCK_BYTES :]:
                    parts.begin()
                    block = next(blocks, b"")
                    if hashlib.sha256(block).hexdigest() != name:
                        raise _NoMirror("it sends other bytes than the round names")
                    yield block
                    at += len(block)
        except (httpx.HTTPError, httpx.InvalidURL, _NoMirror) as error:
            self._left.add(mirror.url)
            said = f"{type(error).__name__} {error}".removeprefix("_NoMirror ")
            log.warning("zk0d: mirror %s is left for this round (%s).", mirror.url, said)
        return at

    def _from_coordinator(self, piece: Piece, route: Route, at: int) -> Iterator[bytes]:
        """A file's bytes from ``at`` on."""
        waits = self._waits()
        while at < piece.size:
            headers = {"authorization": f"Bearer {route.down}", "accept-encoding": "identity"}
            end = min(piece.size, at + (self._line.part or piece.size))
            whole = not at and end == piece.size
            if not whole:
                headers["range"] = f"bytes={at}-{end - 1}"
            try:
                with self._http.stream("GET", f"/down/{piece.sha256}", headers=headers) as answer:
                    if answer.status_code != (200 if whole else 206):
                        answer.read()
                        waits.refused(answer)
                        continue
                    for part in gathered(self._received(answer, waits)):
                        at += len(part)
                        yield part
            except httpx.TransportError as error:
                waits.cut(error)

    def _received(self, answer: httpx.Response, waits: Waits) -> Iterator[bytes]:
        """An answer's bytes as they come: one TLS record at a time."""
        for part in answer.iter_raw():
            self._line.received(len(part))
            waits.moved()
            yield part

    def upload(self, source: Iterator[bytes], route: Route) -> tuple[Piece, ...]:
        """Send an update's bytes, but for pieces that are there; what names them."""
        headers = {"authorization": f"Bearer {route.up}"}
        path = f"/up/{route.ticket}"
        waits = self._waits()
        listed = self._get(path, headers, waits)
        there = {piece.sha256 for piece in _HELD.validate_json(listed.content)}
        pieces = []
        for block in cut(source, PIECE_BYTES):
            sha256 = hashlib.sha256(block).hexdigest()
            if sha256 not in there:
                self._send(path, sha256, headers, block, waits)
                there.add(sha256)
            pieces.append(Piece(sha256=sha256, size=len(block)))
        return tuple(pieces)

    def _send(
        self, path: str, sha256: str, headers: dict[str, str], block: bytes, waits: Waits
    ) -> None:
        """Send a piece. Where there is no room, that is found out before it is sent again."""
        # A stream, whose length only we know.
        with_length = {**headers, "content-length": str(len(block))}
        while True:
            body = self._line.send(block)
            try:
                answer = self._http.put(f"{path}/{sha256}", headers=with_length, content=body)
            except httpx.TransportError as error:
                waits.cut(error)
                continue
            if answer.is_success:
                waits.moved()
                return
            waits.refused(answer)
            if answer.status_code == _FULL:
                self._get(f"{path}?room={len(block)}", headers, waits, moves=False)

    def _get(
        self, path: str, headers: dict[str, str], waits: Waits, *, moves: bool = True
    ) -> httpx.Response:
        """Ask until there is an answer; ``moves`` is whether that ends the patience's count."""
        while True:
            try:
                answer = self._http.get(path, headers=headers)
            except httpx.TransportError as error:
                waits.cut(error)
                continue
            if answer.is_success:
                if moves:
                    waits.moved()
                return answer
            waits.refused(answer)

    def _waits(self) -> Waits:
        return Waits(self._url, self._patience, self._sleep)


class _NoMirror(Exception):
    """Why a mirror is left."""


class _Timed:
    """What a mirror sends, as long as it does so in time; the owner's rate is no fault of it."""

    def __init__(self, parts: Iterator[bytes], line: Line) -> None:
        self._parts = parts
        self._line = line
        self._end = 0.0

    def begin(self) -> None:
        """A block is asked for."""
        self._end = time.monotonic() + MIRROR_BLOCK_SECONDS

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if time.monotonic() > self._end:
                raise _NoMirror("it is slow")
            self._end += self._line.received(len(part))
            yield part


class Waits:
    """Waits ever longer while nothing moves; then gives up."""

    def __init__(self, url: str, patience: float, sleep: Callable[[float], None]) -> None:
        self._url = url
        self._patience = patience
        self._sleep = sleep
        self.moved()

    def moved(self) -> None:
        """Bytes went through."""
        self._last = time.monotonic()
        self._wait = _FIRST_WAIT

    def cut(self, error: httpx.TransportError) -> None:
        """The connection broke."""
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        self._again(TryAgainError(f"the transfer with {self._url} was cut ({said})."))

    def refused(self, answer: httpx.Response) -> None:
        """The coordinator answered otherwise than hoped."""
        said = " ".join(answer.text.split())[:200] or "it says nothing"
        error = TryAgainError(
            f"{self._url} refuses a transfer ({answer.status_code}): {said}",
            reason="disk_full" if answer.status_code == _FULL else None,
        )
        if answer.status_code not in _PASSES:
            raise error
        self._again(error)

    def _again(self, error: Zk0dError) -> None:
        if time.monotonic() - self._last > self._patience:
            raise error
        log.warning("zk0d: %s It goes on in %.1f s.", error.message, self._wait)
        # Nodes that were cut off together do not come back together.
        self._sleep(self._wait * random.uniform(0.5, 1.0))
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
