"""Weights and updates on their way: named tensors, a manifest, and chunks of bytes.

A payload is the tensors' bytes one after the other, cut into chunks of at most 4 MiB, so that both
ends can hold, hash and free it piece by piece. The manifest says what the bytes are, hash by
tensor, so a difference is reported by the tensor's name; its own hash names the whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from zk0d.config.base import Settings
from zk0d.errors import Zk0dError

CHUNK_BYTES = 4 * 2**20

Kind = Literal["weights", "delta"]


class UpdateError(Zk0dError):
    """A payload is not what its manifest, or the model, says it is."""

    default_reason = "manifest_mismatch"


class TensorEntry(Settings):
    """One tensor of a payload. ``size`` is its encoded length in bytes."""

    name: str
    shape: tuple[NonNegativeInt, ...]
    dtype: Literal["float32"] = "float32"
    size: NonNegativeInt
    sha256: str

    @property
    def signature(self) -> tuple[str, tuple[int, ...], str]:
        """What must agree between two machines before contents are compared."""
        return self.name, self.shape, self.dtype


class Manifest(Settings):
    """What a payload's bytes are. Tensors are in the order of their bytes, sorted by name."""

    kind: Kind
    codec: Literal["fp32"] = "fp32"
    tensors: tuple[TensorEntry, ...]

    @cached_property
    def sha256(self) -> str:
        """Names this exact payload: names, shapes, dtypes and content."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def size(self) -> int:
        """Length of the payload in bytes."""
        return sum(entry.size for entry in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of values."""
        return sum(int(np.prod(entry.shape)) for entry in self.tensors)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse a manifest from the network; raises :class:`UpdateError` if it is none."""
        try:
            manifest = cls.model_validate_json(text)
        except ValueError:
            raise UpdateError("the payload's manifest cannot be read.") from None
        for entry in manifest.tensors:
            if entry.size != 4 * int(np.prod(entry.shape)):
                raise UpdateError(f"tensor '{entry.name}': its size does not fit its shape.")
        return manifest

    def check_same_tensors(self, other: Manifest) -> None:
        """Raise :class:`UpdateError` naming the first tensor in which ``other`` differs."""
        mine = {entry.name: entry for entry in self.tensors}
        theirs = {entry.name: entry for entry in other.tensors}
        for name in sorted(set(mine) | set(theirs)):
            if name not in theirs:
                raise UpdateError(f"tensor '{name}' is missing.")
            if name not in mine:
                raise UpdateError(f"tensor '{name}' does not belong to the model.")
            if mine[name].signature != theirs[name].signature:
                raise UpdateError(
                    f"tensor '{name}' is {theirs[name].dtype} {list(theirs[name].shape)},"
                    f" the model's is {mine[name].dtype} {list(mine[name].shape)}."
                )
        if [entry.name for entry in self.tensors] != [entry.name for entry in other.tensors]:
            raise UpdateError("the tensors are not in the order of their names.")


class Payload:
    """A manifest with its bytes, as a list of chunks of at most 4 MiB."""

    def __init__(self, manifest: Manifest, chunks: list[bytes]) -> None:
        self.manifest = manifest
        self.chunks = chunks

    @classmethod
    def encode(cls, tensors: Iterable[tuple[str, NDArray[np.float32]]], kind: Kind) -> Payload:
        """Encode float32 tensors, given in the order of their names, one at a time."""
        entries: list[TensorEntry] = []
        chunks: list[bytes] = []
        open_chunk = bytearray()
        for name, tensor in tensors:
            array = np.asarray(tensor, dtype="<f4", order="C")
            view = memoryview(array.reshape(-1)).cast("B")
            entries.append(
                TensorEntry(
                    name=name,
                    shape=array.shape,
                    size=len(view),
                    sha256=hashlib.sha256(view).hexdigest(),
                )
            )
            start = 0
            while start < len(view):
                take = min(CHUNK_BYTES - len(open_chunk), len(view) - start)
                open_chunk += view[start : start + take]
                start += take
                if len(open_chunk) == CHUNK_BYTES:
                    chunks.append(bytes(open_chunk))
                    open_chunk.clear()
        if open_chunk:
            chunks.append(bytes(open_chunk))
        return cls(Manifest(kind=kind, tensors=tuple(entries)), chunks)

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[np.float32]], kind: Kind) -> Payload:
        """Encode named float32 tensors."""
        return cls.encode(sorted(tensors.items()), kind)

    def decode(
        self, *, consume: bool = False, verify: bool = True
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The tensors, float32, in order; read-only views where a tensor lies in one chunk.

        Parameters
        ----------
        consume
            Free each chunk once its last tensor was given out. The payload is empty afterwards.
        verify
            Compare each tensor's content with its hash.

        Raises
        ------
        UpdateError
            Naming the tensor whose bytes are missing, too many or altered.
        """
        number = at = 0
        for entry in self.manifest.tensors:
            parts: list[memoryview] = []
            missing = entry.size
            while missing:
                if number >= len(self.chunks):
                    raise UpdateError(f"tensor '{entry.name}': the payload ends before it does.")
                part = memoryview(self.chunks[number])[at : at + missing]
                parts.append(part)
                missing -= len(part)
                at += len(part)
                if at == len(self.chunks[number]):
                    if consume:
                        self.chunks[number] = b""
                    number, at = number + 1, 0
            whole = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
            if verify and hashlib.sha256(whole).hexdigest() != entry.sha256:
                raise UpdateError(f"tensor '{entry.name}': its content is not what was sent.")
            yield entry.name, np.frombuffer(whole, dtype="<f4").reshape(entry.shape)
        if number != len(self.chunks):
            raise UpdateError("the payload goes on after its last tensor.")
        if consume:
            self.chunks.clear()

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All tensors, verified."""
        return dict(self.decode())
