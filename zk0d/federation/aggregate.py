"""Aggregation, in float32, piece by piece: the updates stay on disk, only the weights in memory.

Nothing here depends on the order in which updates came, so a round that is repeated gives the same
weights to the bit on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zk0d.config.run import AggregationSettings, RuleName
from zk0d.errors import Zk0dError
from zk0d.federation.codec import PIECE
from zk0d.federation.spool import SpooledUpdate, SpoolReader

#: Named float32 tensors.
Arrays = dict[str, NDArray[np.float32]]
#: Makes one piece out of the nodes' pieces, shape ``(nodes, values)``, by their weights.
Rule = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]

#: Share of the nodes that trimmed-mean leaves out at each end.
TRIMMED = 0.25


@dataclass(frozen=True)
class Weighted:
    """One update of a round.

    ``weight`` is what it counts by in a mean, ``scale`` what its values are multiplied by first
    (norm clipping; 1 leaves them as they are). One that is not ``kept`` counts nothing in a mean.
    """

    update: SpooledUpdate
    weight: float
    scale: float = 1.0
    kept: bool = True


class ServerStep:
    """How the mean update d moves the global weights G.

    With momentum m = 0 it is FedAvg: G = G + rate * d. With momentum, V = m V + d and
    G = G + rate * V (FedAvgM; Hsu, Qi, Brown 2019); with Nesterov's, G = G + rate * (d + m V), the
    outer step of DiLoCo (Douillard et al. 2023).
    """

    def __init__(
        self,
        momentum: float,
        rate: float,
        velocity: Arrays | None = None,
        *,
        nesterov: bool = False,
    ) -> None:
        self.momentum = momentum
        self.rate = rate
        self.velocity = velocity
        self.nesterov = nesterov

    def begin(self, weights: Arrays) -> None:
        """Make room for the velocity, once."""
        if self.momentum and self.velocity is None:
            self.velocity = {name: np.zeros_like(array) for name, array in weights.items()}

    def apply(
        self, weights: NDArray[np.float32], mean: NDArray[np.float32], name: str, start: int
    ) -> None:
        """Move one piece of ``weights`` in place; ``mean`` is used up."""
        if self.momentum and self.velocity is not None:
            whole = self.velocity[name].reshape(-1)
            velocity = whole[start : start + mean.size]
            velocity *= np.float32(self.momentum)
            velocity += mean
            if self.nesterov:
                mean += np.float32(self.momentum) * velocity
            else:
                mean[...] = velocity
        if self.rate != 1.0:
            mean *= np.float32(self.rate)
        weights += mean


def weighted_mean(pieces: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean weighted by samples: FedAvg (McMahan et al. 2017) on updates.

    On updates instead of weights it is the same, and its rounding error that of small numbers.
    """
    return np.asarray((pieces * (weights / weights.sum())[:, None]).sum(axis=0))


def trimmed_mean(nodes: int, fraction: float = TRIMMED) -> Rule:
    """The mean without the ``fraction`` largest and smallest of each coordinate.

    Yin et al. 2018. Nodes count the same: a weight is the node's own word. At least one is cut off
    at each end, where that leaves one.

    Raises
    ------
    Zk0dError
        If fewer than three nodes answered: nothing would be left to take the mean of.
    """
    cut = max(1, int(fraction * nodes))
    if nodes - 2 * cut < 1:
        raise Zk0dError(
            f"trimmed-mean needs at least 3 updates, {nodes} came; raise min-fit-clients or choose"
            " another aggregation.",
            reason="quorum",
        )

    def rule(pieces: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        del weights
        return np.asarray(np.sort(pieces, axis=0)[cut : nodes - cut].mean(axis=0))

    return rule


def median(pieces: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """The median of each coordinate (Yin et al. 2018); nodes count the same."""
    del weights
    pieces = np.sort(pieces, axis=0)
    middle = len(pieces) // 2
    if len(pieces) % 2:
        return np.array(pieces[middle])
    return np.asarray((pieces[middle - 1] + pieces[middle]) * np.float32(0.5))


#: By the name in a run's settings: makes a rule from the number of updates.
RULES: Mapping[RuleName, Callable[[int], Rule]] = {
    "mean": lambda _nodes: weighted_mean,
    "trimmed-mean": trimmed_mean,
    "median": lambda _nodes: median,
}


def clip_scales(norms: Sequence[float], factor: float) -> list[float]:
    """What each update is multiplied by so that none is longer than ``factor`` times the median.

    ``factor`` 0 leaves all as they are. After Sun et al. 2019, the bound the round's median.
    """
    if not factor:
        return [1.0] * len(norms)
    bound = factor * float(np.median(norms))
    return [min(1.0, bound / norm) if norm else 1.0 for norm in norms]


@dataclass(frozen=True)
class Piece:
    """A part of one tensor: each node's values, shape ``(nodes, values)``, and all combined."""

    name: str
    start: int
    values: NDArray[np.float32]
    combined: NDArray[np.float32]


def combine(
    like: Mapping[str, NDArray[np.float32]], updates: Sequence[Weighted], rule: Rule
) -> Iterator[Piece]:
    """Combine what lies on disk, piece by piece, tensors in the order of their names.

    Parameters
    ----------
    like
        The tensors, for their names and sizes.
    updates
        In an order that never changes. A piece's values are overwritten by the next one's.

    Raises
    ------
    Zk0dError
        If there is no update.
    """
    if not updates:
        raise Zk0dError("no update was admitted, so there is no mean.", reason="no_updates")
    shares = np.array([each.weight * each.kept for each in updates], np.float32)
    stack = np.empty((len(updates), PIECE), np.float32)
    with ExitStack() as files:
        readers = [files.enter_context(SpoolReader(each.update)) for each in updates]
        for name, array in sorted(like.items()):
            for start in range(0, array.size, PIECE):
                pieces = stack[:, : min(PIECE, array.size - start)]
                for reader, row, each in zip(readers, pieces, updates, strict=True):
                    reader.read(name, start, row)
                    if each.scale != 1.0:
                        row *= np.float32(each.scale)
                yield Piece(name, start, pieces, rule(pieces, shares))


#: Of two updates that point apart nobody can say which one is wrong.
_LEAST_FOR_DIRECTION = 3


def clipped(
    like: Mapping[str, NDArray[np.float32]],
    updates: Sequence[Weighted],
    settings: AggregationSettings,
) -> list[Weighted]:
    """Norm clipping: the long are shortened, and those that point against the others left out.

    Shortened, a poisoner still takes its share of every step back. So where the rule is the mean
    and three or more came, an update is left out if its cosine with the mean of all, shortened, is
    negative. To know it, they are read once more; memory is that of :func:`combine`. Other rules
    outvote each coordinate by themselves.

    Parameters
    ----------
    like
        The tensors, for their names and sizes.
    updates
        In an order that never changes.
    """
    factor = settings.norm_clip_factor
    scales = clip_scales([each.update.norm for each in updates], factor)
    short = [replace(each, scale=scale) for each, scale in zip(updates, scales, strict=True)]
    if not factor or settings.rule != "mean" or len(short) < _LEAST_FOR_DIRECTION:
        return short
    products = np.zeros(len(short))
    for piece in combine(like, short, weighted_mean):
        products += piece.values @ piece.combined
    found = [
        replace(each, kept=bool(product >= 0))
        for each, product in zip(short, products, strict=True)
    ]
    # Somebody's cosine is positive, but for rounding where all of them cancel.
    return found if any(each.kept and each.weight for each in found) else short


@dataclass(frozen=True)
class Combined:
    """How a round's updates go together.

    ``norm`` is the combined update's Euclidean norm before the server's momentum and rate,
    ``agreement`` that norm divided by the weighted mean of the updates' own: 1 if all say the same,
    near 0 if they cancel. ``cosines`` are those of each update with the combined one, in their
    order. Updates that were left out of the mean have their part in both.
    """

    norm: float
    agreement: float
    cosines: tuple[float, ...]


def aggregate(
    weights: Arrays, updates: Sequence[Weighted], rule: Rule, step: ServerStep
) -> Combined:
    """Move ``weights`` in place by a round's updates, which come in an order that never changes.

    Raises
    ------
    Zk0dError
        If there is no update.
    """
    step.begin(weights)
    square = 0.0
    products = np.zeros(len(updates))
    for piece in combine(weights, updates, rule):
        combined = piece.combined
        square += float(np.dot(combined, combined))
        products += piece.values @ combined
        flat = weights[piece.name].reshape(-1)
        end = piece.start + combined.size
        step.apply(flat[piece.start : end], combined, piece.name, piece.start)
    length, tiny = float(np.sqrt(square)), float(np.finfo(np.float64).tiny)
    lengths = np.array([each.update.norm * each.scale for each in updates])
    cosines = products / np.maximum(lengths * length, tiny)
    mean = float(np.average(lengths, weights=[each.weight for each in updates]))
    return Combined(length, length / max(mean, tiny), tuple(cosines.tolist()))


def norm(arrays: Arrays) -> float:
    """Euclidean norm over all tensors together."""
    return float(np.sqrt(sum(float(np.dot(a.ravel(), a.ravel())) for a in arrays.values())))
