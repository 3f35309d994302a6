"""A round's updates on disk, between their arrival and the round's end.

A robust mean needs all of them at once, and even the plain one waits: floating-point sums depend on
their order, and a resumed run must add in the same order, whichever node answers first. They lie
here encoded, so the server's memory does not grow with the number of nodes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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
    """One verified update on disk. ``norm`` is its Euclidean norm."""

    path: Path
    manifest: Manifest
    norm: float


class Spool:
    """The folder of one round's updates; empty at the start and after :meth:`clear`.

    Raises
    ------
    TryAgainError
        From any method that writes, if the disk is full or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.clear()

    def clear(self) -> None:
        """Throw everything away."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def take(self, name: str, payload: Payload) -> SpooledUpdate:
        """Verify an update and write it, freeing its chunks on the way.

        Parameters
        ----------
        name
            A file name, one for each node.

        Raises
        ------
        UpdateError
            Naming the tensor that is altered or cut off.
        NotAdmitted
            With reason ``not_finite``.
        """
        manifest = payload.manifest
        path = self._folder / name
        with disk(path):
            make_folder(self._folder)
            with whole_file(path) as draft, draft.open("wb") as file:
                square = 0.0
                for entry, data in payload.encoded(consume=True):
                    square += _square(manifest.codec, entry, data)
                    file.write(data)
        return SpooledUpdate(path, manifest, float(np.sqrt(square)))

    @contextmanager
    def undoing(self) -> Iterator[Callable[[str, Payload], SpooledUpdate]]:
        """:meth:`take`; what it took is thrown away again if the block fails."""
        taken: list[SpooledUpdate] = []

        def take(name: str, payload: Payload) -> SpooledUpdate:
            taken.append(self.take(name, payload))
            return taken[-1]

        try:
            yield take
        except BaseException:
            for each in taken:
                each.path.unlink(missing_ok=True)
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
        self._file = os.open(update.path, os.O_RDONLY)

    def read(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """Values of tensor ``name`` from ``start`` (a multiple of :data:`PIECE`) into ``out``."""
        offset, count = self._offsets[name]
        parts = [
            memoryview(os.pread(self._file, length, offset + at))
            for at, length in piece_range(self._codec, count, start, out.size)
        ]
        decode_piece(self._codec, parts, out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


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
