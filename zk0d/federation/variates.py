"""Control variates: which way each node's recordings pull, and which way all of them do.

SCAFFOLD's option II (Karimireddy et al. 2020): a node's variate c_i is the mean of the gradients of
its last round, before the correction; c is the mean of all nodes' variates. A node trains on its
gradient + c - c_i, so that in a round of many steps it goes where all recordings together would
lead, and not where its own do. A node that is away keeps its variate here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveInt, RootModel

from zk0d.config.base import Settings
from zk0d.config.run import AggregationSettings, CodecName
from zk0d.federation.aggregate import RULES, Arrays, Weighted, clipped, combine
from zk0d.federation.answers import Accepted
from zk0d.federation.spool import SpooledUpdate
from zk0d.federation.streams import Again, pieces_of
from zk0d.federation.update import Encoder, Manifest, Payload, Streamed
from zk0d.files import link_file, make_folder, rename
from zk0d.record.journal import disk

INDEX = "variates.json"
#: Rounds for which the variate of a node that is away counts.
MAX_AGE = 20
_FILE = "{}.variates"


class _Line(Settings):
    """A node's variate in a round's folder."""

    round: PositiveInt
    weight: NonNegativeFloat
    norm: NonNegativeFloat
    manifest: Manifest


class _Index(RootModel[dict[str, _Line]]):
    """All of them, by the nodes' keys."""


@dataclass(frozen=True)
class Held:
    """A node's newest variate that counts, and the round in which it was made."""

    round: int
    weight: float
    update: SpooledUpdate


class Variates:
    """Every node's variate and their mean, encoded on disk.

    Parameters
    ----------
    folder
        Where the newest lie until a round's folder has them.
    codec
        Of the mean; the nodes encode theirs in the same one.
    """

    def __init__(self, folder: Path, codec: CodecName, settings: AggregationSettings) -> None:
        self._folder = folder
        self._codec = codec
        self._settings = settings
        self._held: dict[str, Held] = {}
        self.mean: Payload | None = None  #: none before the first round

    @property
    def rounds(self) -> dict[str, int]:
        """By key, the round of the variate that counts."""
        return {key: held.round for key, held in self._held.items()}

    def advance(self, accepted: Sequence[Accepted], number: int, full: int, like: Arrays) -> None:
        """Take a round's variates in place of the nodes' old ones, and their mean.

        Parameters
        ----------
        full
            Samples of a whole round, which weigh 1.
        like
            The weights, whose names and shapes the variates have.

        Raises
        ------
        TryAgainError
            If the disk is full or the folder cannot be written.
        """
        for each in accepted:
            assert each.variate is not None
            # Updates are thrown away after a round, variates outlive it.
            path = self._folder / _FILE.format(each.key)
            with disk(self._folder):
                make_folder(self._folder)
                rename(each.variate.path, path)
            held = replace(each.variate, files=(path,))
            # The node knows its variate by the round that it was asked for.
            self._held[each.key] = Held(each.round, each.reply.figures.samples / full, held)
        oldest = number - MAX_AGE
        self._held = {key: held for key, held in self._held.items() if held.round > oldest}
        self._average(like)

    def _average(self, like: Arrays) -> None:
        settings, held = self._settings, [self._held[key] for key in sorted(self._held)]
        parts = clipped(like, [Weighted(each.update, each.weight) for each in held], settings)
        rule = RULES[settings.rule](len(parts))
        encoder = Encoder("variates", self._codec)
        tensor: NDArray[np.float32] = np.empty(0, np.float32)
        with disk(self._folder):
            make_folder(self._folder)
            # It has no name, and lives as long as whoever reads it.
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            for piece in combine(like, parts, rule):
                if piece.start == 0:
                    tensor = np.empty_like(like[piece.name])
                end = piece.start + piece.combined.size
                tensor.reshape(-1)[piece.start : end] = piece.combined
                if end == tensor.size:
                    file.write(encoder.encode(piece.name, tensor))
            file.flush()
        self.mean = Streamed(encoder.manifest, Again(lambda: pieces_of(file)))

    def files(self) -> dict[str, Callable[[Path], None]]:
        """What a round's folder holds of them: links, since most stay as they are."""
        if not self._held:
            return {}
        every = sorted(self._held.items())
        files = {_FILE.format(key): _linked(held.update.path) for key, held in every}
        lines = {
            key: _Line(
                round=held.round,
                weight=held.weight,
                norm=held.update.norm,
                manifest=held.update.manifest,
            )
            for key, held in every
        }
        text = json.dumps(_Index(lines).model_dump(mode="json"), sort_keys=True)
        return files | {INDEX: lambda path: _write(path, text)}

    def moved(self, folder: Path) -> None:
        """They lie in a committed round's folder now."""
        for key, held in self._held.items():
            update = replace(held.update, files=(folder / _FILE.format(key),))
            self._held[key] = replace(held, update=update)
        shutil.rmtree(self._folder, ignore_errors=True)

    def load(self, folder: Path, like: Arrays) -> None:
        """Take those of a committed round."""
        self.clear()
        if not (folder / INDEX).exists():
            return
        lines = _Index.model_validate_json((folder / INDEX).read_text(encoding="utf-8")).root
        self._held = {
            key: Held(
                line.round,
                line.weight,
                SpooledUpdate((folder / _FILE.format(key),), line.manifest, line.norm),
            )
            for key, line in lines.items()
        }
        self._average(like)

    def clear(self) -> None:
        """Begin with none, as moments do."""
        self._held, self.mean = {}, None
        shutil.rmtree(self._folder, ignore_errors=True)


def _linked(source: Path) -> Callable[[Path], None]:
    return lambda path: link_file(source, path)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
