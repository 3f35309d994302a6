"""Messages as HTTP bodies: a safetensors file, written and read as a stream.

The file's metadata holds the message and the payloads' manifests, its tensors are their chunks, one
payload's after the other's. Any safetensors library can read it; nothing here needs the whole of it
in one piece, and nothing can run code.
"""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Iterator
from typing import Any

from zk0d.errors import Zk0dError
from zk0d.federation.messages import Message
from zk0d.federation.streams import CHUNK_BYTES, Once
from zk0d.federation.update import Manifest, Payload, Streamed, UpdateError

CONTENT_TYPE = "application/vnd.safetensors"
MAX_HEADER_BYTES = 16 * 2**20
MAX_BODY_BYTES = 8 * 2**30


def write_body(message: Message, payload: Payload | None = None) -> Iterator[bytes]:
    """The body of a request or response, piece by piece; frees nothing, copies nothing."""
    payloads = (payload, *payload.beside) if payload else ()
    sizes = [each.sizes for each in payloads]
    metadata = {
        "kind": type(message).__name__,
        "body": message.model_dump_json(),
        "payloads": json.dumps(
            [[p.manifest.to_json(), len(own)] for p, own in zip(payloads, sizes, strict=True)]
        ),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for number, size in enumerate(size for own in sizes for size in own):
        header[f"{number:06d}"] = {
            "dtype": "U8",
            "shape": [size],
            "data_offsets": [start, start + size],
        }
        start += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for each in payloads:
        yield from each.stream()


def open_body[M: Message](pieces: Iterator[bytes], expected: type[M]) -> tuple[M, Payload | None]:
    """Read a body as far as its message; the payloads' bytes come while they are read.

    Who reads a later one first has the earlier ones in memory.

    Raises
    ------
    UpdateError
        As :meth:`BodyReader.finish`; also from a payload's stream.
    """
    reader = BodyReader()
    rest = reader.begin(pieces)
    message, payloads = reader.header(expected)
    source = _Source(rest, pieces)
    opened, last = [], None
    for manifest, _ in payloads:
        last = Once(source.take(manifest.size), after=last)
        opened.append(Streamed(manifest, last))
    if not opened:
        return message, None
    return message, opened[0].with_beside(*opened[1:])


class _Source:
    """Bytes that several take from, one after the other."""

    def __init__(self, first: bytes, pieces: Iterator[bytes]) -> None:
        self._open = first
        self._pieces = pieces

    def take(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._open:
                piece = next(self._pieces, None)
                if piece is None:
                    raise UpdateError("the body ends too early.", reason="bad_body")
                self._open = piece
            part, self._open = self._open[:size], self._open[size:]
            size -= len(part)
            yield part


class BodyReader:
    """Reads such a body as its bytes come in, within limits.

    Call :meth:`feed` with every piece, then :meth:`finish` once.
    """

    def __init__(self) -> None:
        self._header: dict[str, Any] | None = None
        self._start = bytearray()
        self._sizes: list[int] = []
        self._chunks: list[bytes] = []
        self._open = bytearray()

    def feed(self, piece: bytes) -> None:
        """Take the next bytes; raises :class:`UpdateError` if they cannot belong to a message."""
        if self._header is None:
            rest = self._begin(piece)
            if rest is None:
                return
            piece = rest
        view = memoryview(piece)
        while view:
            if len(self._chunks) == len(self._sizes):
                raise UpdateError("the body has bytes after its last chunk.", reason="bad_body")
            size = self._sizes[len(self._chunks)]
            take = min(size - len(self._open), len(view))
            self._open += view[:take]
            view = view[take:]
            self._close_full_chunk(size)

    def begin(self, pieces: Iterator[bytes]) -> bytes:
        """Read as far as the header; what came after it."""
        for piece in pieces:
            rest = self._begin(piece)
            if rest is not None:
                return rest
        raise UpdateError("the body ends too early.", reason="bad_body")

    def _begin(self, piece: bytes) -> bytes | None:
        """Take bytes of the header; what follows it, once it is whole."""
        self._start += piece
        if len(self._start) < 8:
            return None
        (length,) = struct.unpack_from("<Q", self._start)
        if length > MAX_HEADER_BYTES:
            raise UpdateError("the body's header is too long.", reason="bad_body")
        if len(self._start) < 8 + length:
            return None
        self._read_header(bytes(self._start[8 : 8 + length]))
        rest = bytes(self._start[8 + length :])
        self._start.clear()
        return rest

    def _close_full_chunk(self, size: int) -> None:
        if len(self._open) == size:
            self._chunks.append(bytes(self._open))
            self._open = bytearray()

    def _read_header(self, text: bytes) -> None:
        try:
            header = json.loads(text)
            metadata = header.pop("__metadata__")
            at = 0
            for _, tensor in sorted(header.items()):
                begin, end = tensor["data_offsets"]
                if tensor["dtype"] != "U8" or begin != at or not 0 < end - begin <= CHUNK_BYTES:
                    raise ValueError("chunks")
                self._sizes.append(end - begin)
                at = end
            if at > MAX_BODY_BYTES:
                raise ValueError("size")
            self._header = {str(key): str(value) for key, value in metadata.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UpdateError("the body is not a message of zk0d.", reason="bad_body") from None

    def finish[M: Message](self, expected: type[M]) -> tuple[M, Payload | None]:
        """The message, of the expected kind, and its payload with those beside it, unverified."""
        if self._header is None or len(self._chunks) != len(self._sizes):
            raise UpdateError("the body ends too early.", reason="bad_body")
        message, listed = self.header(expected)
        payloads, at = [], 0
        for manifest, count in listed:
            payloads.append(Payload(manifest, self._chunks[at : at + count]))
            at += count
        if not payloads:
            return message, None
        return message, payloads[0].with_beside(*payloads[1:])

    def header[M: Message](self, expected: type[M]) -> tuple[M, list[tuple[Manifest, int]]]:
        """The message, and each payload's manifest and number of chunks."""
        assert self._header is not None
        try:
            if self._header["kind"] != expected.__name__:
                raise ValueError("kind")
            message = expected.model_validate_json(self._header["body"])
        except (KeyError, ValueError) as error:
            raise UpdateError(
                f"the body is not a {expected.__name__} message that this version reads"
                f" ({type(error).__name__}).",
                reason="protocol_mismatch",
            ) from None
        payloads = [(Manifest.from_json(text), count) for text, count in self._payloads()]
        if sum(count for _, count in payloads) != len(self._sizes):
            raise UpdateError("the body has chunks without a manifest.", reason="bad_body")
        return message, payloads

    def _payloads(self) -> list[tuple[str, int]]:
        """Each payload's manifest and number of chunks."""
        assert self._header is not None
        try:
            listed = json.loads(self._header["payloads"])
            return [(str(text), operator.index(count)) for text, count in listed]
        except (KeyError, ValueError, TypeError):
            raise UpdateError("the body is not a message of zk0d.", reason="bad_body") from None


def require_payload(payload: Payload | None) -> Payload:
    """The payload, or an error if there is none."""
    if payload is None:
        raise Zk0dError("the message has no tensors.", reason="bad_body")
    return payload
