"""Clocks that nobody sets, for durations and deadlines.

:func:`time.monotonic` stands still while the machine is suspended: right for a watchdog, which
asks whether a process that could work did. :func:`uptime` goes on: right for an end that others
wait for.
The time of day is for what is shown, kept or compared with other machines
(``tests/test_clocks.py`` lists its uses).
"""

from __future__ import annotations

import time
from collections.abc import Callable


def uptime() -> float:
    """Seconds since this machine's boot, suspended ones included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Stillness:
    """Seconds since a value was last seen to change.

    A file's time of change is such a value: the clock may be set between two of them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._value: object = None
        self._since = clock()

    def seconds(self, value: object) -> float:
        """Take a look at the value."""
        now = self._clock()
        if value != self._value:
            self._value, self._since = value, now
        return now - self._since
