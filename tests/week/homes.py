"""Homes that lend a machine to a run, with what happens to it in a week; seeded.

Times are seconds since Monday, 00:00, by the homes' own clock.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


class Kind(Enum):
    """How a machine goes away."""

    SLEEP = "its lid is closed: everything stands still, and goes on afterwards"
    SHUTDOWN = "it is shut down or restarts: the coordinator knows at once"
    POWER_CUT = "its power is cut: the coordinator counts it online for a while"


@dataclass(frozen=True)
class Away:
    """A time in which a machine does nothing."""

    begin: float
    end: float
    kind: Kind


@dataclass(frozen=True)
class Span:
    """A time."""

    begin: float
    end: float

    def holds(self, moment: float) -> bool:
        return self.begin <= moment < self.end


@dataclass(frozen=True)
class Home:
    """One home.

    Attributes
    ----------
    hours
        ``limits.hours`` of its client.toml.
    slow
        A step takes this many times as long as in the middle.
    down, up
        Bytes a second of its line.
    away
        In order; none touches another.
    full
        When its disk is full.
    """

    name: str
    pattern: str
    hours: str = ""
    slow: float = 1.0
    down: float = 5e6
    up: float = 2e6
    away: tuple[Away, ...] = ()
    full: tuple[Span, ...] = ()

    @property
    def lends(self) -> bool:
        """Whether it can be there at all."""
        return bool(self.pattern)


#: How many of twelve homes lend in which way.
PATTERNS = {
    "always": 3,
    "nights": 3,  # the machine is on all day, and trains by the owner's hours
    "laptop": 2,  # open in the evening, else asleep, and often shut for a while
    "office": 2,  # on in the working day, shut down otherwise
    "weekend": 1,
    "flaky": 1,  # on, with a power cut every few hours
}
#: Of a home's own: how many times as long a step takes, and bytes a second down and up.
SPEEDS = (0.5, 0.7, 0.8, 1.0, 1.0, 1.0, 1.2, 1.5, 1.5, 2.0, 3.0, 4.0)
LINES = ((12e6, 5e6),) * 5 + ((5e6, 2e6),) * 4 + ((2e6, 0.25e6),) * 3
#: Homes whose disk is full once for some hours.
FULL_DISKS = 3


def homes(seed: int, days: int = 7) -> list[Home]:
    """Twelve homes and what happens to them in so many days."""
    dice = random.Random(f"homes/{seed}")
    patterns = [name for name, count in PATTERNS.items() for _ in range(count)]
    speeds, lines = list(SPEEDS), list(LINES)
    dice.shuffle(speeds)
    dice.shuffle(lines)
    full = dice.sample(range(len(patterns)), FULL_DISKS)
    made = []
    for index, pattern in enumerate(patterns):
        own = random.Random(f"home/{seed}/{index}")
        spans = _merged([*_absences(pattern, days, own), *_reboots(days, own)])
        begin = own.uniform(0.0, (days - 0.5) * DAY)
        made.append(
            Home(
                name=f"home-{index:02d}",
                pattern=pattern,
                hours=_hours(own) if pattern == "nights" else "",
                slow=speeds[index],
                down=lines[index][0],
                up=lines[index][1],
                away=tuple(spans),
                full=(Span(begin, begin + own.uniform(2, 10) * HOUR),) if index in full else (),
            )
        )
    return made


def undisturbed(homes: list[Home]) -> list[Home]:
    """The same machines and lines, with nothing that happens to them."""
    return [replace(home, pattern="always", hours="", away=(), full=()) for home in homes]


def steady(count: int) -> list[Home]:
    """Homes to which nothing happens, all alike."""
    return [Home(f"home-{index:02d}", "always") for index in range(count)]


def _hours(dice: random.Random) -> str:
    return dice.choice(("22:00-07:00", "23:30-06:30", "21:00-08:00"))


def _absences(pattern: str, days: int, dice: random.Random) -> Iterator[Away]:
    """When a machine is away by habit."""
    for day in range(days):
        begin, weekend = day * DAY, day % 7 >= 5
        if pattern == "laptop":
            opened = begin + dice.uniform(9 if weekend else 16.5, 10.5 if weekend else 18) * HOUR
            shut = begin + dice.uniform(22.5, 24) * HOUR
            yield Away(begin, opened, Kind.SLEEP)
            at = opened + dice.expovariate(1 / (1.5 * HOUR))
            while at < shut - HOUR:
                back = at + dice.choice((0.5, 3, 10, 25, 45)) * MINUTE
                yield Away(at, back, Kind.SLEEP)
                at = back + dice.expovariate(1 / (1.5 * HOUR))
            yield Away(shut, begin + DAY, Kind.SLEEP)
        elif pattern == "office":
            if weekend:
                yield Away(begin, begin + DAY, Kind.SHUTDOWN)
                continue
            yield Away(begin, begin + dice.uniform(7.5, 9) * HOUR, Kind.SHUTDOWN)
            yield Away(begin + dice.uniform(16.5, 18.5) * HOUR, begin + DAY, Kind.SHUTDOWN)
        elif pattern == "weekend":
            if not weekend:
                yield Away(begin, begin + DAY, Kind.SHUTDOWN)
        elif pattern == "flaky":
            at = begin + dice.expovariate(1 / (6 * HOUR))
            while at < begin + DAY:
                back = at + dice.uniform(1, 20) * MINUTE
                yield Away(at, back, Kind.POWER_CUT)
                at = back + dice.expovariate(1 / (6 * HOUR))


def _reboots(days: int, dice: random.Random) -> Iterator[Away]:
    """Updates: about two restarts a week of every machine."""
    at = dice.expovariate(1 / (3.5 * DAY))
    while at < days * DAY:
        yield Away(at, at + dice.uniform(1, 3) * MINUTE, Kind.SHUTDOWN)
        at += dice.expovariate(1 / (3.5 * DAY))


def _merged(spans: list[Away]) -> list[Away]:
    """In order; of two that touch, one, which is no sleep if either is none."""
    made: list[Away] = []
    for span in sorted(spans, key=lambda each: (each.begin, each.end)):
        if made and span.begin <= made[-1].end + MINUTE:
            last = made.pop()
            kind = last.kind if last.kind is not Kind.SLEEP else span.kind
            made.append(Away(last.begin, max(last.end, span.end), kind))
        else:
            made.append(span)
    return made
