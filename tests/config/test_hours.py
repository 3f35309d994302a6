"""Hours of the week, as owners write them."""

from __future__ import annotations

from datetime import datetime

import pytest

from zk0d.config.hours import Hours, say_time

#: 2026-11-30 is a Monday.
NIGHTS, WEEK = "22:00-07:00", "mon-fri 22:00-07:00, sat, sun 10:00-24:00"


def at(text: str) -> datetime:
    return datetime.strptime(f"2026-{text}", "%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("hours", "may", "may_not"),
    [
        ("", ("11-30 00:00", "12-05 12:00"), ()),
        (NIGHTS, ("11-30 22:00", "11-30 00:00", "12-06 06:59"), ("11-30 07:00", "12-06 21:59")),
        ("09:30-17:00", ("11-30 09:30", "12-06 16:59"), ("11-30 09:29", "11-30 17:00")),
        ("Sat,SUN", ("12-05 00:00", "12-06 23:59"), ("12-04 23:59", "12-07 00:00")),
        ("fri-mon 10:00-12:00", ("12-04 10:00", "11-30 11:59"), ("12-01 11:00", "12-03 11:00")),
        # Friday's window ends on Saturday, and Sunday's last one on Monday.
        ("fri 22:00-07:00", ("12-04 22:00", "12-05 06:59"), ("12-05 22:00", "12-04 06:00")),
        ("sun 22:00-07:00", ("12-06 23:00", "11-30 06:59"), ("11-30 07:00", "12-06 06:00")),
        (WEEK, ("12-01 06:00", "12-05 12:00", "12-06 23:59"), ("12-06 09:59", "12-01 12:00")),
        ("08:00-09:00, 20:00-21:00", ("12-01 08:30", "12-01 20:30"), ("12-01 12:00",)),
    ],
)
def test_windows(hours: str, may: tuple[str, ...], may_not: tuple[str, ...]) -> None:
    made = Hours.parse(hours)
    assert [text for text in may if not made.allow(at(text))] == []
    assert [text for text in may_not if made.allow(at(text))] == []


@pytest.mark.parametrize(
    ("hours", "now", "begin", "said"),
    [
        (NIGHTS, "11-30 12:00", "11-30 22:00", "22:00"),
        (WEEK, "12-06 09:30", "12-06 10:00", "10:00"),
        ("sat", "11-30 12:00", "12-05 00:00", "Sat 00:00"),
        ("mon 08:00-09:00", "11-30 09:00", "12-07 08:00", "Mon 08:00"),
    ],
)
def test_the_next_begin(hours: str, now: str, begin: str, said: str) -> None:
    found = Hours.parse(hours).next_begin(at(now))
    assert found == at(begin)
    assert say_time(found, at(now)) == said


@pytest.mark.parametrize(
    "text", ["22-7", "24:00-07:00", "7:00-8:00", "always", "mon-", "08:00-09:00,", "mon tue", ","]
)
def test_what_is_not_hours_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="are not hours; write them as '22:00-07:00' or 'mon-fri"):
        Hours.parse(text)


def test_hours_that_never_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="begin when they end, so never; leave it empty"):
        Hours.parse("mon 08:00-08:00")
