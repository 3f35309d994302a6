"""A round's updates on disk, between their arrival and the round's end.

A robust mean needs all of them at once, and even the plain one waits: floating-point sums depend on
their order, and a resumed run must add in the same order, whichever node answers first. They lie
here encoded, so the server's memory does not grow with the number of nodes.
"""

from __future__ import annotations

import bisect
import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from zk0d.config.run import CodecName
from zk0d.errors import Zk0dError
from zk0d.federation.codec import PIECE, decode, decode_piece, piece_range
from zk0d.federation.update import Manifest, Payload, TensorEntry
from zk0d.files import make_folder, whole_file
from zk0d.record.journal import disk


class NotAdmitted(Zk0dError):
    """An update that is refused; ``reason`` is what is counted."""

    default_reason = "not_admitted"


@dataclass(frozen=True)
class SpooledUpdate:
    """One verified update on disk: its bytes are those of ``files``, one after the other.

    ``norm`` is its Euclidean norm.
    """

    files: tuple[Path, ...]
    manifest: Manifest
    norm: float

    @property
    def path(self) -> Path:
        """Its file, if it is one."""
        (path,) = self.files
        return path


class Spool:
    """The folder of one round's updates; empty at the start and after :meth:`clear`.

    Raises
    ------
    TryAgainError
        From any method that writes, if the disk is full or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._elsewhere: list[Path] = []
        self.clear()

    def clear(self) -> None:
        """Throw everything away."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for path in self._elsewhere:
            path.unlink(missing_ok=True)
        self._elsewhere.clear()

    def take(self, name: str, payload: Payload, *, one_file: bool = False) -> SpooledUpdate:
        """Verify an update and write it, freeing its chunks on the way.

        One that lies in files stays in them, and is this spool's from then on.

        Parameters
        ----------
        name
            A file name, one for each node.
        one_file
            Write it in any case.

        Raises
        ------
        UpdateError
            Naming the tensor that is altered or cut off.
        NotAdmitted
            With reason ``not_finite``.
        """
        kept: tuple[Path, ...] = ()
        try:
            with disk(self._folder):
                if payload.files and not one_file:
                    norm = _norm(payload)
                    kept = payload.files
                    self._elsewhere += kept
                    return SpooledUpdate(kept, payload.manifest, norm)
                path = self._folder / name
                make_folder(self._folder)
                with whole_file(path) as draft, draft.open("wb") as file:
                    norm = _norm(payload, file)
            return SpooledUpdate((path,), payload.manifest, norm)
        finally:
            for each in set(payload.files) - set(kept):
                each.unlink(missing_ok=True)

    @contextmanager
    def undoing(self) -> Iterator[Callable[..., SpooledUpdate]]:
        """:meth:`take`; what it took is thrown away again if the block fails."""
        taken: list[SpooledUpdate] = []

        def take(name: str, payload: Payload, *, one_file: bool = False) -> SpooledUpdate:
            taken.append(self.take(name, payload, one_file=one_file))
            return taken[-1]

        try:
            yield take
        except BaseException:
            for path in (path for each in taken for path in each.files):
                path.unlink(missing_ok=True)
            raise


class SpoolReader:
    """Reads one spooled update piece by piece."""

    def __init__(self, update: SpooledUpdate) -> None:
        self._codec: CodecName = update.manifest.codec
        self._offsets: dict[str, tuple[int, int]] = {}
        at = 0
        for entry in update.manifest.tensors:
            self._offsets[entry.name] = at, entry.count
            at += entry.size
        self._files = [os.open(path, os.O_RDONLY) for path in update.files]
        #: Where each file's bytes begin, and where the last one's end.
        self._starts = [0, *itertools.accumulate(os.fstat(file).st_size for file in self._files)]

    def read(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """Values of tensor ``name`` from ``start`` (a multiple of :data:`PIECE`) into ``out``."""
        offset, count = self._offsets[name]
        parts = [
            memoryview(self._bytes(length, offset + at))
            for at, length in piece_range(self._codec, count, start, out.size)
        ]
        decode_piece(self._codec, parts, out)

    def _bytes(self, length: int, at: int) -> bytes:
        """So many bytes from place ``at``, which may lie in several files."""
        number = bisect.bisect_right(self._starts, at) - 1
        parts = []
        while length:
            start, end = self._starts[number], self._starts[number + 1]
            part = os.pread(self._files[number], min(length, end - at), at - start)
            if not part:
                raise OSError(errno.EIO, "an update on disk is shorter than it was")
            parts.append(part)
            length, at = length - len(part), at + len(part)
            number += at == end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            os.close(file)


def _norm(payload: Payload, file: BinaryIO | None = None) -> float:
    """A payload's norm, verified; its bytes also go to ``file``. The payload is empty then."""
    square = 0.0
    for entry, data in payload.encoded(consume=True):
        square += _square(payload.manifest.codec, entry, data)
        if file is not None:
            file.write(data)
    return float(np.sqrt(square))


def _square(codec: CodecName, entry: TensorEntry, data: memoryview) -> float:
    scratch = np.empty(min(PIECE, entry.count), np.float32)
    total = 0.0
    for start in range(0, entry.count, PIECE):
        values = scratch[: min(PIECE, entry.count - start)]
        decode(codec, data, entry.count, start, values)
        part = float(np.dot(values, values))
        # A sum of squares can also overflow: such an update is as little use as a NaN.
        if not np.isfinite(part):
            raise NotAdmitted(f"tensor '{entry.name}' holds NaN or infinity.", reason="not_finite")
        total += part
    return total
