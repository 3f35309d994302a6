"""The federation's policy between rounds: its weights, the server's momentum, its statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors
import safetensors.numpy

from zk0d.config.run import DELTA, CodecName, RunSettings
from zk0d.federation.aggregate import (
    RULES,
    Arrays,
    Combined,
    ServerStep,
    Weighted,
    aggregate,
    clipped,
    norm,
)
from zk0d.federation.answers import Accepted
from zk0d.federation.downlink import HELD_CODEC, Downlink
from zk0d.federation.messages import Train
from zk0d.federation.normalization import Normalization
from zk0d.federation.update import Payload, encoding
from zk0d.federation.variates import Variates
from zk0d.learning.spec import PolicySpec
from zk0d.learning.statistics import RunStatistics
from zk0d.record.journal import MOMENTUM, WEIGHTS, Journal


class GlobalModel:
    """What a round begins with and leaves behind.

    Parameters
    ----------
    weights
        The trainable ones, float32.
    folder
        The run's own.
    """

    def __init__(
        self,
        spec: PolicySpec,
        normalization: Normalization,
        weights: Arrays,
        settings: RunSettings,
        folder: Path,
    ) -> None:
        self.spec = spec
        self._normalization = normalization
        self.weights = weights
        self._settings = settings.aggregation
        self._step = ServerStep(
            self._settings.server_momentum,
            self._settings.server_learning_rate,
            nesterov=self._settings.server_nesterov,
        )
        self.downlink = Downlink(folder / "down", self._settings.downlink_codec)
        training = settings.training
        self._variates: Variates | None = None
        if training.drift_correction == "control-variates":
            codec = training.variate_codec
            self._variates = Variates(folder / "variates", codec, self._settings)

    @property
    def statistics(self) -> RunStatistics:
        """What it reads and writes is normalized with."""
        return self._normalization.statistics

    @property
    def norm(self) -> float:
        """Of the weights that updates move; an adapter's begin at 0, and move those beside it."""
        return math.hypot(norm(self.weights), self.spec.frozen_norm)

    @property
    def variate_rounds(self) -> dict[str, int]:
        """By key, the round of each node's variate that counts."""
        return self._variates.rounds if self._variates is not None else {}

    def payload(self) -> Payload:
        """The weights as they are; its bytes are theirs, so it is to be used before they move."""
        return encoding("weights", "fp32", lambda: sorted(self.weights.items()))

    def for_nodes(self) -> Payload:
        """The weights as nodes get them, and the mean variate beside them once there is one.

        Its bytes are made while they are read, so it is to be used before the weights move.

        Raises
        ------
        TryAgainError
            If the disk is full.
        """
        weights = self.downlink.payload(self.weights)
        if self._variates is None or self._variates.mean is None:
            return weights
        return weights.with_beside(*weights.beside, self._variates.mean)

    def to_measure(self) -> Payload:
        """The weights as nodes get them whole; to be used before they move.

        What nodes hold stays what it is: a difference would be to those of a round.
        """
        codec = self._settings.downlink_codec
        encoded: CodecName = HELD_CODEC if codec == DELTA else codec
        return encoding("weights", encoded, lambda: sorted(self.weights.items()))

    def advance(self, accepted: Sequence[Accepted], task: Train) -> Combined:
        """Move the weights by a round's updates, in their order; how those go together."""
        settings = self._settings
        came = [Weighted(each.update, each.share(task.training)) for each in accepted]
        updates = clipped(self.weights, came, settings)
        rule = RULES[settings.rule](len(updates))
        combined = aggregate(self.weights, updates, rule, self._step)
        if self._variates is not None:
            self._variates.advance(accepted, task.round, task.training.frames, self.weights)
        return combined

    def commit(self, journal: Journal, number: int) -> None:
        """Write the folder of round ``number``."""
        files: dict[str, Callable[[Path], None]] = {WEIGHTS: lambda path: _save(self.weights, path)}
        if self._step.velocity is not None:
            velocity = self._step.velocity
            files[MOMENTUM] = lambda path: _save(velocity, path)
        files |= self.downlink.files()
        if self._variates is not None:
            files |= self._variates.files()
        folder = journal.commit(number, files)
        self.downlink.moved(folder)
        if self._variates is not None:
            self._variates.moved(folder)

    def load(self, journal: Journal, number: int) -> None:
        """Take the weights of a committed round, and all that lies beside them."""
        folder = journal.round_folder(number)
        # One of both is in memory.
        self.weights, self._step.velocity = {}, None
        self.weights = _load(folder / WEIGHTS)
        if self._settings.server_momentum and (folder / MOMENTUM).exists():
            self._step.velocity = _load(folder / MOMENTUM)
        self.downlink.load(folder)
        if self._variates is not None:
            self._variates.load(folder, self.weights)

    def roll_back(self, journal: Journal, number: int) -> None:
        """Take the weights of a committed round, and begin with nothing else."""
        self.load(journal, number)
        self._step.velocity = None
        self.downlink.clear()
        if self._variates is not None:
            self._variates.clear()


def _load(path: Path) -> Arrays:
    """Read tensors. A mapped file would be in memory a second time, as far as it was read."""
    with safetensors.safe_open(path, framework="np", backend="pread") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _save(arrays: Arrays, path: Path) -> None:
    """Write tensors; a full disk is an ``OSError`` as everywhere, and none of safetensors' own."""
    try:
        safetensors.numpy.save_file(arrays, path)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from None
