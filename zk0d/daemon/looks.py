"""How often to look for something that may come at any time, where nobody tells of it."""

from __future__ import annotations

import time
from collections.abc import Callable

#: What took so long is found at most by this part of it later.
PART = 0.05


class Looks:
    """The waits between looks: the longer nothing came, the longer they are.

    Parameters
    ----------
    shortest, longest
        Seconds.
    clock
        Seconds; replaced in tests.
    """

    def __init__(
        self, shortest: float, longest: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shortest = shortest
        self._longest = max(shortest, longest)
        self._clock = clock
        self.news()

    def news(self) -> None:
        """Something came, or something began whose end is looked for."""
        self._since = self._clock()

    @property
    def wait(self) -> float:
        """Seconds until the next look."""
        return min(max(self._shortest, PART * (self._clock() - self._since)), self._longest)
