"""Quantiles of all nodes' recordings, from counts that nodes send and that can be merged.

A quantile of everything does not follow from the quantiles of its parts. So a node whose policy
normalizes by quantiles counts how many frames lie in each of :data:`BINS` equal parts of its own
range. Merged counts lie in parts of the whole range. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

#: A part is a share of the range that is small beside the 1 % that quantiles may be off.
BINS = 2000
#: Frames. Fewer in one part are told with their neighbours', so that no count is of one moment.
SMALLEST = 5
#: Those that LeRobot's normalization knows, by its names for them.
QUANTILES: Mapping[str, float] = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
#: Merged counts are shares of frames, kept to this many digits.
_DIGITS = 4

#: The parts that hold any frame, in order: which it is, and how many frames.
Counts = tuple[tuple[Annotated[int, Field(ge=0, lt=BINS)], Annotated[float, Field(gt=0)]], ...]


def counted(values: NDArray[np.float64], low: float, high: float) -> Counts:
    """How many of ``values``, shape ``(frames,)``, lie in each part of ``[low, high]``."""
    if high <= low:
        return ((0, float(len(values))),)
    found, _ = np.histogram(values, BINS, (low, high))
    told: list[tuple[int, float]] = []
    frames, places = 0, 0.0
    for part in np.nonzero(found)[0]:
        frames += int(found[part])
        places += float(part * found[part])
        if frames >= SMALLEST:
            told.append((round(places / frames), float(frames)))
            frames, places = 0, 0.0
    if frames and told:
        part, others = told.pop()
        told.append((round((part * others + places) / (others + frames)), others + frames))
    elif frames:
        told.append((round(places / frames), float(frames)))
    return tuple(told)


def merged(parts: Iterable[tuple[Counts, float, float]], low: float, high: float) -> Counts:
    """Counts over ``[low, high]``, which holds the range (low, high) of each of ``parts``."""
    edges = np.linspace(low, high, BINS + 1)
    below = np.zeros(BINS + 1)
    for counts, its_low, its_high in parts:
        own, share = _cumulated(counts, its_low, its_high)
        if its_high > its_low:
            below += np.interp(edges, own, share)
        else:  # all of it in one place, which belongs to the part that begins or ends there
            below += np.where(edges > its_low, share[-1], 0.0)
            below[-1] = below[-1] if its_low < high else below[-1] + share[-1]
    if high <= low:
        return ((0, round(float(below[-1]), _DIGITS)),)
    frames = np.round(np.diff(below), _DIGITS)
    return tuple((int(part), float(frames[part])) for part in np.nonzero(frames > 0)[0])


def quantiles(counts: Counts, low: float, high: float) -> dict[str, float]:
    """The value below which each share of :data:`QUANTILES` lies, by LeRobot's name."""
    if high <= low:
        return dict.fromkeys(QUANTILES, low)
    edges, below = _cumulated(counts, low, high)
    # Between two levels there is a part with frames, whatever empty ones lie before it.
    found = np.interp(np.array(list(QUANTILES.values())) * below[-1], below, edges)
    return dict(zip(QUANTILES, found.tolist(), strict=True))


def _cumulated(
    counts: Counts, low: float, high: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The edges of the parts, and how many frames lie below each."""
    frames = np.zeros(BINS)
    for part, each in counts:
        frames[part] += each
    edges = np.linspace(low, high, BINS + 1, dtype=np.float64)
    return edges, np.concatenate([[0.0], frames.cumsum()])
