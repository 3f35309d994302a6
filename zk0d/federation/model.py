"""The federation's policy between rounds: its weights, the server's momentum, its statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors
import safetensors.numpy

from zk0d.config.run import AggregationSettings, CodecName
from zk0d.federation.aggregate import (
    RULES,
    Arrays,
    ServerStep,
    Weighted,
    aggregate,
    clip_scales,
    norm,
)
from zk0d.federation.answers import Accepted
from zk0d.federation.messages import Train
from zk0d.federation.update import Payload
from zk0d.learning.spec import PolicySpec
from zk0d.learning.statistics import Statistics
from zk0d.record.journal import MOMENTUM, WEIGHTS, Journal


class GlobalModel:
    """What a round begins with and leaves behind.

    Parameters
    ----------
    weights
        The trainable ones, float32.
    """

    def __init__(
        self,
        spec: PolicySpec,
        statistics: Statistics,
        weights: Arrays,
        settings: AggregationSettings,
    ) -> None:
        self.spec = spec
        self.statistics = statistics
        self.weights = weights
        self._settings = settings
        self._step = ServerStep(
            settings.server_momentum,
            settings.server_learning_rate,
            nesterov=settings.server_nesterov,
        )

    @property
    def norm(self) -> float:
        return norm(self.weights)

    def payload(self, codec: CodecName = "fp32") -> Payload:
        """The weights as they are sent."""
        return Payload.of(self.weights, "weights", codec)

    def advance(self, accepted: Sequence[Accepted], task: Train) -> float:
        """Move the weights by a round's updates, in their order; the norm of their mean."""
        settings = self._settings
        scales = clip_scales([each.update.norm for each in accepted], settings.norm_clip_factor)
        # Near 1, so that the sum keeps its precision.
        full = task.training.frames
        updates = [
            Weighted(each.update, each.reply.figures.samples / full, scale)
            for each, scale in zip(accepted, scales, strict=True)
        ]
        rule = RULES[settings.rule](settings.trim_fraction, len(updates))
        return aggregate(self.weights, updates, rule, self._step)

    def commit(self, journal: Journal, number: int) -> None:
        """Write the folder of round ``number``."""
        files: dict[str, Callable[[Path], None]] = {WEIGHTS: lambda path: _save(self.weights, path)}
        if self._step.velocity is not None:
            velocity = self._step.velocity
            files[MOMENTUM] = lambda path: _save(velocity, path)
        journal.commit(number, files)

    def load(self, journal: Journal, number: int) -> None:
        """Take the weights and the momentum of a committed round."""
        folder = journal.round_folder(number)
        self.weights = safetensors.numpy.load_file(folder / WEIGHTS)
        self._step.velocity = None
        if self._settings.server_momentum and (folder / MOMENTUM).exists():
            self._step.velocity = safetensors.numpy.load_file(folder / MOMENTUM)

    def roll_back(self, journal: Journal, number: int) -> None:
        """Take the weights of a committed round and begin with no momentum."""
        self.load(journal, number)
        self._step.velocity = None


def _save(arrays: Arrays, path: Path) -> None:
    """Write tensors; a full disk is an ``OSError`` as everywhere, and none of safetensors' own."""
    try:
        safetensors.numpy.save_file(arrays, path)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from None
