"""The weights that a node holds, to which the next round's may come as a difference."""

from __future__ import annotations

from typing import Literal

from zk0d.federation.downlink import rebuilt
from zk0d.federation.messages import Train
from zk0d.federation.update import Payload, UpdateError
from zk0d.record.reasons import Reason


class HeldWeights:
    """The newest round's weights, encoded as the coordinator sends them.

    They are known by their content, so it does not matter how they came here, or in which run.
    Losing them costs one round in which all of the weights come.
    """

    def __init__(self) -> None:
        self._held: Payload | None = None

    @property
    def sha256(self) -> str:
        """Their manifest's hash; empty if there are none."""
        held = self._held  # another thread may ask
        return held.manifest.sha256 if held is not None else ""

    def kept(self) -> Payload | None:
        """Them, for :meth:`restore`."""
        return self._held

    def restore(self, held: Payload | None) -> None:
        """Be as another was when it gave :meth:`kept`."""
        self._held = held

    def take(
        self, task: Train, payload: Payload
    ) -> tuple[Literal["whole", "difference", "held"], Payload]:
        """How a round's weights came, and all of them; they are held from now on, if asked.

        Raises
        ------
        UpdateError
            If they are not those that the round names. With reason ``base_lost`` if it was a
            difference that did not lead there: the whole may.
        """
        came: Literal["whole", "difference", "held"] = "whole"
        weights = payload
        if payload.manifest.kind != "weights":
            came = "difference" if payload.manifest.tensors else "held"
            weights = self._rebuilt(task, payload)
        elif payload.manifest.sha256 != task.base:
            raise UpdateError("the weights are not those that the round names.")
        self._held = Payload(weights.manifest, weights.chunks) if task.hold else None
        return came, weights

    def _rebuilt(self, task: Train, difference: Payload) -> Payload:
        held, wanted = self._held, task.difference_to if difference.manifest.tensors else task.base
        if held is None or held.manifest.sha256 != wanted:
            raise UpdateError(
                "this learner does not hold the weights that the round's difference is to.",
                reason=Reason.BASE_LOST,
            )
        if not difference.manifest.tensors:
            return held
        held.manifest.check_same_tensors(difference.manifest)
        weights = rebuilt(held.decode(), difference)
        if weights.manifest.sha256 != task.base:
            raise UpdateError(
                "the round's difference does not lead to the weights that the round names.",
                reason=Reason.BASE_LOST,
            )
        return weights
