"""What a line moved by day, and when it rests."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import ClientSettings, SuperexecSettings
from zk0d.daemon import metered
from zk0d.daemon.line import (
    BOOK,
    METERED_SECONDS,
    MOST_DAYS,
    LineBook,
    LineRecord,
    LineWatch,
    why_it_rests,
)
from zk0d.daemon.metered import is_metered
from zk0d.daemon.metrics import Metrics
from zk0d.flower.commands import Command
from zk0d.services.superexec import LineCollector, SuperexecService


def moment(text: str) -> time.struct_time:
    return time.strptime(text, "%Y-%m-%d %H:%M")


NOON = moment("2026-11-29 12:00")


def limits(**values: Any) -> LimitsSettings:
    return LimitsSettings.parse(values, where="test")


def test_the_book_outlives_its_writer_and_knows_days(tmp_path: Path) -> None:
    now = [NOON]
    LineBook(tmp_path, lambda: now[0]).add(down=300, up=20)
    LineBook(tmp_path, lambda: now[0]).add(up=1, durable=True)
    book = LineBook(tmp_path, lambda: now[0])
    assert (book.today().down, book.today().up, book.today().both) == (300, 21, 321)
    now[0] = moment("2026-11-30 00:00")
    assert book.today().both == 0, "another day"
    book.add(down=5)
    assert {day: each.both for day, each in book.read().days.items()} == {
        "2026-11-29": 321,
        "2026-11-30": 5,
    }


def test_the_book_does_not_grow(tmp_path: Path) -> None:
    for day in range(1, 29):
        for month in (1, 2):
            at = moment(f"2026-{month:02}-{day:02} 12:00")
            LineBook(tmp_path, lambda at=at: at).add(down=1)  # type: ignore[misc]
    days = LineBook(tmp_path).read().days
    assert len(days) == MOST_DAYS
    assert max(days) == "2026-02-28"
    assert min(days) > "2026-01-20", "the newest ones"


def test_two_that_count_at_once_lose_nothing(tmp_path: Path) -> None:
    book = LineBook(tmp_path, lambda: NOON)
    writers = [
        threading.Thread(target=lambda: [book.add(down=1, up=2) for _ in range(20)])
        for _ in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (book.today().down, book.today().up) == (60, 120)


@pytest.mark.parametrize("damage", ['{"version":1,"days":{"2026-', "[]", "", '{"days":{"x":-1}}'])
def test_a_damaged_book_is_told_and_begun_again(tmp_path: Path, damage: str) -> None:
    book = LineBook(tmp_path, lambda: NOON)
    (tmp_path / BOOK).write_text(damage)
    assert book.today().both == 0
    said = book.add(down=7)
    assert said == (
        f"{tmp_path / BOOK}: the bytes of this day cannot be read (it is damaged); the count begins"
        " at 0, so the line may move more than limits.bytes-per-day today."
    )
    assert book.add(down=1) == "", "once"
    assert book.today().both == 8


def rests(
    lent: LimitsSettings, book: LineBook, at: str, *, metered: bool = False, **about: Any
) -> str:
    return why_it_rests(lent, book.read(), moment(at), metered=lambda: metered, **about)


def test_hours_of_the_line(tmp_path: Path) -> None:
    lent, book = limits(**{"transfer-hours": "22:00-07:00"}), LineBook(tmp_path)
    said = "until 22:00 (limits.transfer-hours is 22:00-07:00)"
    assert rests(lent, book, "2026-11-29 12:00") == said
    assert rests(lent, book, "2026-11-29 07:00") == said
    assert rests(lent, book, "2026-11-29 22:00") == ""
    assert rests(lent, book, "2026-11-29 06:59") == ""


def test_a_days_bytes(tmp_path: Path) -> None:
    lent = limits(**{"bytes-per-day": "10 MB"})
    book = LineBook(tmp_path, lambda: NOON)
    book.add(down=6_000_000, up=2_000_000)
    assert rests(lent, book, "2026-11-29 13:00") == ""
    assert rests(lent, book, "2026-11-29 13:00", needs=2_000_000) == ""
    said = (
        "until midnight (8 MB of the day's 10 MB are spent, a round moves 2.5 MB;"
        " limits.bytes-per-day)"
    )
    assert rests(lent, book, "2026-11-29 13:00", needs=2_500_000) == said
    assert rests(lent, book, "2026-11-30 00:00", needs=2_500_000) == ""
    book.add(up=2_000_000)
    assert "10 MB of the day's 10 MB" in rests(lent, book, "2026-11-29 23:59")


def test_what_a_round_was_refused_for_holds_for_the_next_question(tmp_path: Path) -> None:
    """A node that says it can train, and then refuses each round, would fail rounds all day."""
    lent = limits(**{"bytes-per-day": "10 MB"})
    book = LineBook(tmp_path, lambda: NOON)
    book.add(down=8_000_000)
    book.note_need("7", 2_500_000)
    assert "a round moves 2.5 MB" in rests(lent, book, "2026-11-29 13:00", run="7")
    assert rests(lent, book, "2026-11-29 13:00", run="8") == "", "another run's round"
    assert rests(lent, book, "2026-11-29 13:00"), "STATUS says so"
    assert rests(lent, book, "2026-11-30 13:00") == ""
    less = limits(**{"bytes-per-day": "2 MB"})
    assert rests(less, LineBook(tmp_path / "new"), "2026-11-30 13:00", run="7") == ""
    book.note_need("7", 30_000_000)
    assert rests(lent, book, "2026-11-30 13:00", run="7") == "", "the round itself is refused"


def test_a_metered_connection(tmp_path: Path) -> None:
    book = LineBook(tmp_path)
    said = rests(limits(), book, "2026-11-29 13:00", metered=True)
    assert said.startswith("while the connection is metered, as NetworkManager says")
    assert rests(limits(metered=True), book, "2026-11-29 13:00", metered=True) == ""


@pytest.fixture
def fake_busctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ``busctl`` that stands for the real one, and says what is in its file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    said, program = folder / "said", folder / "busctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\ncat {said}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return said


@pytest.mark.parametrize(("word", "yes"), [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)])
def test_networkmanagers_word(fake_busctl: Path, word: int, yes: int) -> None:
    fake_busctl.write_text(json.dumps({"type": "u", "data": word}))
    assert is_metered() is bool(yes)
    asked = fake_busctl.with_name("asked").read_text().split()
    assert asked[-4:] == [
        "org.freedesktop.NetworkManager",
        "/org/freedesktop/NetworkManager",
        "org.freedesktop.NetworkManager",
        "Metered",
    ]
    assert "--auto-start=no" in asked, "nothing is started for it"


@pytest.mark.parametrize("said", ["", "no such service", "[]", "{}", '{"data": "yes"}'])
def test_what_networkmanager_does_not_say_is_not_metered(fake_busctl: Path, said: str) -> None:
    fake_busctl.write_text(said)
    assert not is_metered()


def test_without_busctl_nothing_is_metered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metered, "_ASK", ("/nonexistent/busctl",))
    assert not is_metered()


def test_a_service_asks_seldom(tmp_path: Path) -> None:
    now, asked = [100.0], []

    def ask() -> bool:
        asked.append(now[0])
        return True

    watch = LineWatch(limits(), tmp_path, asks=True, metered=ask, clock=lambda: now[0])
    for _ in range(5):
        assert watch.rests()
        now[0] += METERED_SECONDS / 4
    assert asked == [100.0, 100.0 + METERED_SECONDS]
    here = LineWatch(limits(), tmp_path, asks=False, metered=ask, clock=lambda: now[0])
    assert here.rests() == "", "a coordinator on this machine"
    assert len(asked) == 2


def test_only_the_way_to_another_machine_is_a_line(tmp_path: Path) -> None:
    def settings(address: str) -> ClientSettings:
        return ClientSettings.parse(
            {
                "name": "left",
                "coordinator": {"address": address},
                "superexec": {"state": str(tmp_path)},
            },
            where="test",
        )

    assert LineWatch.of(settings("127.0.0.1:9443"))._asks is False
    assert LineWatch.of(settings("hub.example.org:9443"))._asks is True


def test_facts_and_metrics(tmp_path: Path) -> None:
    lent = limits(**{"bytes-per-day": "10 MB"})
    watch = LineWatch(lent, tmp_path, asks=False, now=lambda: NOON)
    assert watch.facts() == {
        "days": {},
        "today": {"down": 0, "up": 0},
        "bytes_per_day": 10_000_000,
        "rests": "",
    }
    watch.book.add(down=9_000_000, up=1_000_000)
    facts = watch.facts()
    assert facts is not None
    assert facts["days"] == {"2026-11-29": {"down": 9_000_000, "up": 1_000_000}}
    assert facts["rests"].startswith("until midnight")
    registry = CollectorRegistry()
    registry.register(LineCollector(watch))
    assert {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
    } == {
        ("zk0d_line_today_bytes", "down"): 9_000_000,
        ("zk0d_line_today_bytes", "up"): 1_000_000,
        ("zk0d_line_day_limit_bytes",): 10_000_000,
        ("zk0d_line_rests",): 1,
    }


def test_a_record_of_another_version_is_not_read() -> None:
    with pytest.raises(ValueError, match="version"):
        LineRecord.model_validate_json('{"version": 2}')


def test_status_says_that_the_line_rests(tmp_path: Path) -> None:
    watch = LineWatch(limits(**{"bytes-per-day": "10 MB"}), tmp_path, asks=False, now=lambda: NOON)
    with socket.create_server(("127.0.0.1", 0)) as peer:
        service = SuperexecService(
            "client",
            SuperexecSettings(state=tmp_path),
            Metrics("client-superexec"),
            Command([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ)),
            peer.getsockname()[1],
            tmp_path / "learner.sock",
            line=watch,
        )
        service.start()
        try:
            (tmp_path / "pulse").touch()
            assert service.look().status == "ready for work"
            watch.book.add(up=10_000_000)
            condition = service.look()
            said = "until midnight (10 MB of the day's 10 MB are spent; limits.bytes-per-day)"
            assert condition.status == f"the line rests {said}"
            assert condition.ready, "it is no fault"
            assert not condition.stuck
        finally:
            service.stop()
