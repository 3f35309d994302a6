"""Whether a policy got better on the episodes that the nodes of a run hold out.

Each node is compared with itself: the same frames and the same noise, before and after. A node
counts by its frames, of which ``eval-frames`` is the most, so none counts by what it claims to
have. The spread is the larger of two standard errors: that of the nodes' own means, by how their
episodes differ, and that of the mean over nodes, by how these differ. So of nodes that count alike,
one that gains alone is within the spread, however much it says that it gains.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from zk0d.record.summary import NodePoint, RunSummary


@dataclass(frozen=True)
class NodeChange:
    """One node's held-out loss before and after.

    Attributes
    ----------
    spread
        Standard error of the change over the node's episodes; ``None`` for one episode.
    """

    node: str
    before: float
    after: float
    frames: int
    episodes: int
    spread: float | None

    @property
    def change(self) -> float:
        """Below zero it is better."""
        return self.after - self.before


@dataclass(frozen=True)
class Change:
    """The nodes' together; there is one at least."""

    nodes: tuple[NodeChange, ...]

    @property
    def before(self) -> float:
        """Loss by frames."""
        return sum(w * each.before for w, each in self._weighted)

    @property
    def after(self) -> float:
        """Loss by frames."""
        return sum(w * each.after for w, each in self._weighted)

    @property
    def mean(self) -> float:
        """Change of the loss, by frames; below zero it is better."""
        return sum(w * each.change for w, each in self._weighted)

    @property
    def spread(self) -> float | None:
        """Standard error of the mean; ``None`` for one episode of one node."""
        known = [each for each in (self._over_episodes, self._over_nodes) if each is not None]
        return max(known, default=None)

    @property
    def _weighted(self) -> list[tuple[float, NodeChange]]:
        frames = sum(each.frames for each in self.nodes)
        return [(each.frames / frames, each) for each in self.nodes]

    @property
    def _over_episodes(self) -> float | None:
        squares = [(w * each.spread) ** 2 for w, each in self._weighted if each.spread is not None]
        return math.sqrt(sum(squares)) if squares else None

    @property
    def _over_nodes(self) -> float | None:
        count = len(self.nodes)
        if count < 2:
            return None
        squares = sum((w * (each.change - self.mean)) ** 2 for w, each in self._weighted)
        return math.sqrt(squares * count / (count - 1))


def points_of(summary: RunSummary, number: int) -> dict[str, NodePoint]:
    """What nodes found of the weights after round ``number``, by name."""
    return {each.node: each for each in summary.measured if each.round == number}


def change_of(summary: RunSummary) -> Change | None:
    """From the run's beginning to the summary's round; ``None`` if no node measured both."""
    return change(points_of(summary, 0), points_of(summary, summary.round))


def change(before: Mapping[str, NodePoint], after: Mapping[str, NodePoint]) -> Change | None:
    """Of the nodes that measured both on the same frames."""
    nodes = tuple(
        _node_change(before[name], found)
        for name, found in sorted(after.items())
        if name in before and before[name].mark == found.mark and found.mark and found.frames
    )
    return Change(nodes) if nodes else None


def _node_change(before: NodePoint, after: NodePoint) -> NodeChange:
    gaps = [late - early for early, late in zip(before.losses, after.losses, strict=False)]
    spread = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None
    return NodeChange(after.node, before.loss, after.loss, after.frames, len(gaps), spread)
