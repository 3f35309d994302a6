"""Error feedback: what an encoding lost is added to the next update."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class Residual:
    """What the updates so far are short of, kept between rounds as Adam's moments are.

    A round that is repeated begins with what the first time began with; what another run left is
    dropped. Losing it costs the bits that it holds and nothing else.
    """

    def __init__(self) -> None:
        self._run = ""
        self._round = 0
        self._before: dict[str, NDArray[np.float32]] = {}
        self._after: dict[str, NDArray[np.float32]] = {}

    def kept(self) -> tuple[str, int, dict[str, NDArray[np.float32]]]:
        """Run, round and every array by a name, for :meth:`restore`."""
        arrays = {f"before/{name}": array for name, array in self._before.items()}
        arrays |= {f"after/{name}": array for name, array in self._after.items()}
        return self._run, self._round, arrays

    def restore(self, run: str, round_: int, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Be as another was when it gave :meth:`kept`."""
        self._run, self._round = run, round_
        self._before, self._after = {}, {}
        for key, array in arrays.items():
            when, name = key.split("/", 1)
            (self._before if when == "before" else self._after)[name] = array

    def begin(self, run: str, round_: int, *, fresh: bool = False) -> None:
        """From now on updates are those of ``round_``."""
        if fresh or run != self._run or round_ < self._round:
            self._before = {}
        elif round_ > self._round:
            self._before = self._after
        self._after = {}
        self._run, self._round = run, round_

    def add_to(self, name: str, delta: NDArray[np.float32]) -> None:
        """Add to tensor ``name`` of an update, in place, what the last one was short of."""
        if name in self._before:
            delta += self._before[name]

    def after(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Where to write what the encoding of tensor ``name`` loses now."""
        return self._after.setdefault(name, np.empty(shape, np.float32))
