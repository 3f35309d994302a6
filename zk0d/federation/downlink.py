"""The weights on their way down: whole, or also as a difference to what the nodes hold.

With ``int8-delta`` the nodes hold weights H in bfloat16, the server keeps its own G in float32. A
round's difference is D = int8(G - H), and everybody goes on with bf16(H + D). So all have the same
bits, whether these came whole or as a difference. What an encoding loses is not lost: the next
difference is taken to what the nodes hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zk0d.config.run import DELTA, CodecName, DownlinkName
from zk0d.federation.aggregate import Arrays
from zk0d.federation.codec import PIECE, decode_all
from zk0d.federation.spool import SpooledUpdate, SpoolReader
from zk0d.federation.streams import Again, pieces_of
from zk0d.federation.update import (
    Encoder,
    Manifest,
    Payload,
    PayloadEncoder,
    Streamed,
    encoded_pieces,
    encoding,
)
from zk0d.files import link_file, make_folder, whole_file
from zk0d.record.journal import disk

#: In a round's folder: what its nodes hold, if the next difference is to that.
HELD, HELD_MANIFEST = "held.weights", "held.json"
#: What nodes hold is encoded so, and a difference to it.
HELD_CODEC: CodecName = "bf16"
DELTA_CODEC: CodecName = "int8"


def rebuilt(held: Iterable[tuple[str, NDArray[np.float32]]], difference: Payload) -> Payload:
    """The weights that a difference leads to, the same bits on every machine.

    Parameters
    ----------
    held
        The tensors that it is to, in the order of their names.

    Raises
    ------
    UpdateError
        If the difference is not what its manifest says.
    """
    encoder = PayloadEncoder("weights", HELD_CODEC)
    for (name, values), (_, change) in zip(held, difference.decode(), strict=True):
        encoder.add(name, values + change)
    return encoder.finish()


class Downlink:
    """What the nodes get, and what they hold from then on.

    Parameters
    ----------
    folder
        Where what a round sends lies until the round's own folder has it.
    """

    def __init__(self, folder: Path, codec: DownlinkName) -> None:
        self._folder = folder
        self._codec = codec
        self._held: SpooledUpdate | None = None
        self._sent: SpooledUpdate | None = None  #: by the round that is under way

    @property
    def is_held(self) -> bool:
        """Whether nodes keep what they get."""
        return self._codec == DELTA

    @property
    def held(self) -> str:
        """Manifest hash of what the nodes of the last committed round hold; empty if nothing."""
        return self._held.manifest.sha256 if self._held is not None else ""

    def payload(self, weights: Arrays) -> Payload:
        """The weights as nodes get them, and beside them the difference, if there is one.

        Its bytes are made, or read from disk, while they are read.

        Raises
        ------
        TryAgainError
            If the disk is full.
        """
        held = self._held
        if self._codec != DELTA:
            return encoding("weights", self._codec, lambda: sorted(weights.items()))
        if held is None:
            return self._keep(sorted(weights.items()))

        def changes() -> Iterator[tuple[str, NDArray[np.float32]]]:
            for name, values in _read(held, weights):
                yield name, np.subtract(weights[name], values, out=values)

        difference = Encoder("delta", DELTA_CODEC)

        def rebuilt_here() -> Iterator[tuple[str, NDArray[np.float32]]]:
            # As a node does it: by the encoding's bits, not by what was meant.
            for name, values in _read(held, weights):
                data = difference.encode(name, weights[name] - values)
                values += decode_all(DELTA_CODEC, data, values.size).reshape(values.shape)
                yield name, values

        whole = self._keep(rebuilt_here())
        source = Again(lambda: encoded_pieces(DELTA_CODEC, changes()))
        return whole.with_beside(Streamed(difference.manifest, source))

    def _keep(self, tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> Payload:
        """Write what the nodes hold from this round on; a payload that reads it there."""
        path, encoder = self._folder / HELD, Encoder("weights", HELD_CODEC)
        with disk(self._folder):
            make_folder(self._folder)
            # The round's folder makes it durable.
            with whole_file(path, durable=False) as draft, draft.open("wb") as out:
                for name, tensor in tensors:
                    out.write(encoder.encode(name, tensor))
            file = path.open("rb")  # it stays readable when its name goes
        self._sent = SpooledUpdate((path,), encoder.manifest, 0.0)
        return Streamed(encoder.manifest, Again(lambda: pieces_of(file)))

    def files(self) -> dict[str, Callable[[Path], None]]:
        """What a round's folder holds of it."""
        sent = self._sent
        if sent is None:
            return {}
        return {
            HELD: lambda path: link_file(sent.path, path),
            HELD_MANIFEST: lambda path: _write(path, sent.manifest.to_json()),
        }

    def moved(self, folder: Path) -> None:
        """A round is committed, in this folder: its nodes hold what it sent."""
        if self._sent is not None:
            self._held = SpooledUpdate((folder / HELD,), self._sent.manifest, 0.0)
            self._sent = None
            (self._folder / HELD).unlink(missing_ok=True)

    def load(self, folder: Path) -> None:
        """Take what the nodes of a committed round hold."""
        self.clear()
        if self.is_held and (folder / HELD_MANIFEST).exists():
            text = (folder / HELD_MANIFEST).read_text(encoding="utf-8")
            self._held = SpooledUpdate((folder / HELD,), Manifest.from_json(text), 0.0)

    def clear(self) -> None:
        """Send everybody the whole weights next."""
        self._held = self._sent = None


def _read(held: SpooledUpdate, like: Arrays) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """What lies on disk, one tensor at a time, in the order of their names."""
    with SpoolReader(held) as reader:
        for name, array in sorted(like.items()):
            values = np.empty(array.size, np.float32)
            for start in range(0, array.size, PIECE):
                reader.read(name, start, values[start : start + PIECE])
            yield name, values.reshape(array.shape)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
