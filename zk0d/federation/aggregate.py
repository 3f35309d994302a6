"""Aggregation, in float32, one update at a time.

An update is folded into a running sum and freed, so the server's memory does not grow with the
number of nodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import Zk0dError
from zk0d.federation.update import Payload

#: Named float32 tensors.
Arrays = dict[str, NDArray[np.float32]]


class WeightedMean:
    """The mean of the nodes' updates, weighted by the samples each really trained on.

    FedAvg (McMahan et al. 2017) on updates instead of weights: the same, and the rounding error is
    that of the small difference.
    """

    def __init__(self, weights: Arrays) -> None:
        self._sum = {name: np.zeros_like(array) for name, array in weights.items()}
        self._scratch = {array.shape: np.empty_like(array) for array in weights.values()}
        self.weight = 0.0
        self.updates = 0

    def fold(self, payload: Payload, weight: float) -> None:
        """Add an admitted update, freeing its chunks on the way."""
        for name, delta in payload.decode(consume=True, verify=False):
            scratch = self._scratch[delta.shape]
            np.multiply(delta, np.float32(weight), out=scratch)
            self._sum[name] += scratch
        self.weight += weight
        self.updates += 1

    def mean(self) -> Arrays:
        """The weighted mean. Takes the sum: the object is spent.

        Raises
        ------
        Zk0dError
            If nothing was folded.
        """
        if not self.weight:
            raise Zk0dError("no update was admitted, so there is no mean.", reason="no_updates")
        scale = np.float32(1.0 / self.weight)
        for array in self._sum.values():
            array *= scale
        mean, self._sum = self._sum, {}
        return mean


class ServerStep:
    """How the mean update moves the global weights.

    With momentum 0 and rate 1 it is FedAvg; with momentum it is FedAvgM (Hsu, Qi, Brown 2019):
    V = momentum * V + mean; G = G + rate * V.
    """

    def __init__(self, momentum: float, rate: float, velocity: Arrays | None = None) -> None:
        self.momentum = momentum
        self.rate = rate
        self.velocity = velocity

    def apply(self, weights: Arrays, mean: Arrays) -> None:
        """Move ``weights`` in place; ``mean`` is used up."""
        if self.momentum:
            if self.velocity is None:
                self.velocity = mean
            else:
                for name, velocity in self.velocity.items():
                    velocity *= np.float32(self.momentum)
                    velocity += mean[name]
            mean = self.velocity
        for name, array in weights.items():
            if self.rate == 1.0:
                array += mean[name]
            else:
                array += np.float32(self.rate) * mean[name]


def norm(arrays: Arrays) -> float:
    """Euclidean norm over all tensors together."""
    return float(np.sqrt(sum(float(np.dot(a.ravel(), a.ravel())) for a in arrays.values())))
