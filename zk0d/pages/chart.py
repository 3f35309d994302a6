"""A loss by round as SVG: no script draws it, so any browser shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 20, 40  #: room around the chart's lines
MOST_POINTS = 400


@dataclass(frozen=True)
class LossChart:
    """In SVG's coordinates; ``chart.html`` draws it."""

    line: list[tuple[float, float]]
    levels: list[tuple[float, str]]  #: y, and the loss there
    rounds: list[tuple[float, int]]  #: x, and the round there
    start: float  #: y of the first loss
    words: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT

    @classmethod
    def of(cls, losses: Mapping[int, float], wanted: int, dashed: str) -> LossChart | None:
        """Made of at least two losses.

        Parameters
        ----------
        losses
            By round, in their order.
        wanted
            The round at the right edge, if none is later.
        dashed
            What the first loss is called.
        """
        points = thinned(list(losses.items()))
        if len(points) < 2:
            return None
        last = max(wanted, points[-1][0], 1)
        values = [loss for _, loss in points]
        low, high = min(values), max(values)
        room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
        low, high = max(0.0, low - room), high + room

        def x(round_: float) -> float:
            return round(LEFT + (WIDTH - LEFT - RIGHT) * round_ / last, 1)

        def y(loss: float) -> float:
            return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low), 1)

        levels = [low + (high - low) * step / 4 for step in range(5)]
        begin, end = points[0], points[-1]
        return cls(
            line=[(x(number), y(loss)) for number, loss in points],
            levels=[(y(loss), f"{loss:.3g}") for loss in levels],
            rounds=[(x(n), n) for n in sorted({0, last // 4, last // 2, 3 * last // 4, last})],
            start=y(begin[1]),
            words=f"Loss on held-out recordings from {begin[1]:.4g} in round {begin[0]} to"
            f" {end[1]:.4g} in round {end[0]}; dashed: {dashed}.",
        )


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most :data:`MOST_POINTS` of them, with the first and the last."""
    step = -(-len(points) // MOST_POINTS)
    if step <= 1:
        return list(points)
    return [*points[:-1:step], points[-1]]
