"""Hours of the week in which an owner lends something: ``mon-fri 22:00-07:00, sat, sun``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES
_DAY = "|".join(DAYS)
_WINDOW = re.compile(
    rf"(?:(?P<first>{_DAY})(?:-(?P<last>{_DAY}))?)?\s*"
    r"(?:(?P<begin>(?:[01]\d|2[0-3]):[0-5]\d)-(?P<end>(?:[01]\d|2[0-3]):[0-5]\d|24:00))?"
)
_EXAMPLE = "'22:00-07:00' or 'mon-fri 22:00-07:00, sat, sun 10:00-24:00'"


@dataclass(frozen=True)
class Hours:
    """Windows of the week, local time.

    Attributes
    ----------
    windows
        First and last minute of the week, the last excluded; it may lie behind the week's end.
        None at all is always.
    """

    windows: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Hours:
        """Windows with commas between them: days, hours, or both. Empty is always.

        A window that ends when or before it begins ends on the next day.

        Raises
        ------
        ValueError
            If they are not written so.
        """
        windows: list[tuple[int, int]] = []
        for part in text.lower().split(",") if text.strip() else ():
            windows += _windows(part.strip())
        return cls(tuple(sorted(windows)))

    def allow(self, moment: datetime) -> bool:
        """Whether this moment lies in a window."""
        return not self.windows or any(
            begin <= minute < end for minute in _minutes_of(moment) for begin, end in self.windows
        )

    def next_begin(self, moment: datetime) -> datetime:
        """When the next window begins after a moment outside of all: at most a week later."""
        now = _minutes_of(moment)[0]
        ahead = min((begin - now) % _WEEK_MINUTES or _WEEK_MINUTES for begin, _ in self.windows)
        return moment.replace(second=0, microsecond=0) + timedelta(minutes=ahead)


def say_time(moment: datetime, now: datetime) -> str:
    """A time within the next week, as short as it is clear."""
    if (moment - now).total_seconds() < 20 * 3600:
        return moment.strftime("%H:%M")
    return moment.strftime("%a %H:%M")


def _windows(part: str) -> list[tuple[int, int]]:
    found = _WINDOW.fullmatch(part)
    if not part or found is None:
        raise ValueError(f"{part!r} are not hours; write them as {_EXAMPLE}")
    first, last, begin, end = found["first"], found["last"], found["begin"], found["end"]
    if begin is not None and begin == end:
        raise ValueError(f"{part!r} begin when they end, so never; leave it empty for always")
    start, length = 0, _DAY_MINUTES
    if begin is not None:
        start = _minute(begin)
        length = (_minute(end) - start) % _DAY_MINUTES or _DAY_MINUTES
    numbers = list(range(7))
    if first is not None:
        at = DAYS.index(first)
        numbers = [(at + n) % 7 for n in range((DAYS.index(last or first) - at) % 7 + 1)]
    return [(day * _DAY_MINUTES + start, day * _DAY_MINUTES + start + length) for day in numbers]


def _minute(text: str) -> int:
    hour, minute = text.split(":")
    return 60 * int(hour) + int(minute)


def _minutes_of(moment: datetime) -> tuple[int, int]:
    """The minute of the week, and of a week that began on the Monday before."""
    minute = moment.weekday() * _DAY_MINUTES + 60 * moment.hour + moment.minute
    return minute, minute + _WEEK_MINUTES


def _are_hours(text: str) -> str:
    Hours.parse(text)
    return text


#: Hours as settings have them: the text, which was checked.
HoursText = Annotated[str, AfterValidator(_are_hours)]
