"""Weights and updates on their way: named tensors, a manifest, and chunks of bytes.

A payload is the tensors' bytes one after the other, cut into chunks of at most 4 MiB, so that both
ends can hold, hash and free it piece by piece. The manifest says what the bytes are, hash by
tensor, so a difference is reported by the tensor's name; its own hash names the whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from zk0d.config.base import Settings
from zk0d.config.run import CodecName
from zk0d.errors import Zk0dError
from zk0d.federation.codec import PIECE, NotFinite, decode, encode, encoded, encoded_size
from zk0d.federation.streams import CHUNK_BYTES, Again, Once

Kind = Literal["weights", "delta", "variates"]
#: Gives named float32 tensors, one after the other.
Tensors = Callable[[], Iterable[tuple[str, NDArray[np.float32]]]]


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
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def signature(self) -> tuple[str, tuple[int, ...], str]:
        """What must agree between two machines before contents are compared."""
        return self.name, self.shape, self.dtype


class Manifest(Settings):
    """What a payload's bytes are. Tensors are in the order of their bytes, sorted by name."""

    kind: Kind
    codec: CodecName = "fp32"
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
        return sum(entry.count for entry in self.tensors)

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
            if entry.size != encoded_size(manifest.codec, entry.count):
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
    """A manifest with its bytes, as a list of chunks of at most 4 MiB.

    ``beside`` are other payloads of the same message, such as the variates beside an update.
    ``files`` are named if the chunks are views of these files, one each, which are never written
    to again.
    """

    def __init__(
        self,
        manifest: Manifest,
        chunks: list[bytes],
        beside: tuple[Payload, ...] = (),
        files: tuple[Path, ...] = (),
    ) -> None:
        self.manifest = manifest
        self._chunks = chunks
        self.beside = beside
        self.files = files

    @property
    def chunks(self) -> list[bytes]:
        """The bytes in order; who takes a chunk out of the list frees it."""
        return self._chunks

    def with_beside(self, *others: Payload) -> Payload:
        """The same bytes, with these beside them."""
        return Payload(self.manifest, self.chunks, others, self.files)

    @property
    def sizes(self) -> list[int]:
        """Length of each chunk in bytes."""
        return [len(chunk) for chunk in self.chunks]

    def stream(self) -> Iterator[bytes]:
        """The bytes in order, in pieces of any length."""
        yield from self.chunks

    def companion(self, kind: Kind) -> Payload | None:
        """The payload of this kind beside it."""
        return next((each for each in self.beside if each.manifest.kind == kind), None)

    @classmethod
    def of(
        cls, tensors: Mapping[str, NDArray[np.float32]], kind: Kind, codec: CodecName = "fp32"
    ) -> Payload:
        """Encode named float32 tensors."""
        encoder = PayloadEncoder(kind, codec)
        for name, tensor in sorted(tensors.items()):
            encoder.add(name, tensor)
        return encoder.finish()

    def encoded(self, *, consume: bool = False) -> Iterator[tuple[TensorEntry, memoryview]]:
        """Each tensor's bytes, verified, in order; a view where they lie in one chunk.

        Parameters
        ----------
        consume
            Free each chunk once its last tensor was given out. The payload is empty afterwards.

        Raises
        ------
        UpdateError
            Naming the tensor whose bytes are missing, too many or altered.
        """
        chunks = self.chunks
        number = at = 0
        for entry in self.manifest.tensors:
            parts: list[memoryview] = []
            missing = entry.size
            while missing:
                if number >= len(chunks):
                    raise UpdateError(f"tensor '{entry.name}': the payload ends before it does.")
                part = memoryview(chunks[number])[at : at + missing]
                parts.append(part)
                missing -= len(part)
                at += len(part)
                if at == len(chunks[number]):
                    if consume:
                        chunks[number] = b""
                    number, at = number + 1, 0
            whole = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
            if hashlib.sha256(whole).hexdigest() != entry.sha256:
                raise UpdateError(f"tensor '{entry.name}': its content is not what was sent.")
            yield entry, whole
        if number != len(chunks):
            raise UpdateError("the payload has bytes after its last tensor.")
        if consume:
            chunks.clear()

    def decode(self, *, consume: bool = False) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The tensors as float32, verified, in order; read-only views where no copy is needed."""
        for entry, data in self.encoded(consume=consume):
            if self.manifest.codec == "fp32":
                yield entry.name, np.frombuffer(data, dtype="<f4").reshape(entry.shape)
                continue
            values = np.empty(entry.count, np.float32)
            for start in range(0, entry.count, PIECE):
                decode(self.manifest.codec, data, entry.count, start, values[start : start + PIECE])
            yield entry.name, values.reshape(entry.shape)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All tensors, verified."""
        return dict(self.decode())


class Streamed(Payload):
    """A payload whose bytes come from elsewhere while they are read.

    :meth:`stream` gives them on and keeps none: once, or as often as wanted, by their source.
    Everything else that reads them, such as :meth:`decode`, has them in memory from then on.

    Parameters
    ----------
    source
        Gives exactly the manifest's bytes, or raises.
    """

    def __init__(
        self,
        manifest: Manifest,
        source: Iterator[bytes] | Once | Again,
        beside: tuple[Payload, ...] = (),
    ) -> None:
        super().__init__(manifest, [], beside)
        self._source = source if isinstance(source, Once | Again) else Once(source)

    @property
    def chunks(self) -> list[bytes]:
        return self._source.keep()

    def with_beside(self, *others: Payload) -> Payload:
        return Streamed(self.manifest, self._source, others)

    @property
    def sizes(self) -> list[int]:
        whole, rest = divmod(self.manifest.size, CHUNK_BYTES)
        return [CHUNK_BYTES] * whole + [rest] * bool(rest)

    def stream(self) -> Iterator[bytes]:
        return self._source.stream()


def encoding(kind: Kind, codec: CodecName, tensors: Tensors) -> Streamed:
    """Tensors as a payload that takes no memory: they are encoded each time that it is read.

    Parameters
    ----------
    tensors
        In the order of their names, with the same values until the payload was read for the last
        time.

    Raises
    ------
    NotFinite
        Naming the tensor.
    """
    encoder = Encoder(kind, codec)
    for name, tensor in tensors():
        encoder.encode(name, tensor)
    return Streamed(encoder.manifest, Again(lambda: encoded_pieces(codec, tensors())))


def encoded_pieces(
    codec: CodecName, tensors: Iterable[tuple[str, NDArray[np.float32]]]
) -> Iterator[bytes]:
    """The bytes of tensors, one after the other."""
    for _, tensor in tensors:
        data = encoded(codec, np.asarray(tensor, np.float32, order="C"))
        for at in range(0, len(data), CHUNK_BYTES):
            yield bytes(data[at : at + CHUNK_BYTES])


class Encoder:
    """Encodes one tensor after the other, in the order of their names, and keeps no bytes."""

    def __init__(self, kind: Kind, codec: CodecName) -> None:
        self._kind: Kind = kind
        self._codec: CodecName = codec
        self._entries: list[TensorEntry] = []

    def encode(
        self, name: str, tensor: NDArray[np.float32], lost: NDArray[np.float32] | None = None
    ) -> memoryview:
        """A tensor's bytes, perhaps its own; ``lost``, of its shape, receives what they lack.

        Raises
        ------
        NotFinite
            Naming the tensor.
        """
        array = np.asarray(tensor, dtype=np.float32, order="C")
        try:
            if lost is None:
                data = encoded(self._codec, array)
            else:
                data = memoryview(encode(self._codec, array, lost))
        except NotFinite:
            raise NotFinite(f"tensor '{name}' holds NaN or infinity.") from None
        sha256 = hashlib.sha256(data).hexdigest()
        self._entries.append(
            TensorEntry(name=name, shape=array.shape, size=len(data), sha256=sha256)
        )
        return data

    @property
    def manifest(self) -> Manifest:
        """Of what was encoded so far."""
        return Manifest(kind=self._kind, codec=self._codec, tensors=tuple(self._entries))


class PayloadEncoder(Encoder):
    """Makes a payload, one tensor at a time, given in the order of their names."""

    def __init__(self, kind: Kind, codec: CodecName) -> None:
        super().__init__(kind, codec)
        self._chunks: list[bytes] = []
        self._open = bytearray()

    def add(
        self, name: str, tensor: NDArray[np.float32], lost: NDArray[np.float32] | None = None
    ) -> None:
        """Encode a tensor; ``lost``, of its shape, receives what the encoding loses.

        Raises
        ------
        NotFinite
            Naming the tensor.
        """
        view = self.encode(name, tensor, lost)
        while view:
            take = min(CHUNK_BYTES - len(self._open), len(view))
            self._open += view[:take]
            view = view[take:]
            if len(self._open) == CHUNK_BYTES:
                self._chunks.append(bytes(self._open))
                self._open.clear()

    def finish(self) -> Payload:
        """The payload; the encoder is spent."""
        if self._open:
            self._chunks.append(bytes(self._open))
        return Payload(self.manifest, self._chunks)
