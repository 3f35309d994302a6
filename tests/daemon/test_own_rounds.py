"""The rounds that a machine trained, as they are kept for its owner."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from zk0d.daemon.own_rounds import BOOK, MOST_ROUNDS, OwnRound, RoundBook


def moment(text: str) -> time.struct_time:
    return time.strptime(text, "%Y-%m-%d %H:%M")


def done(number: int, **changes: Any) -> OwnRound:
    facts = {
        "run": "7",
        "round": number,
        "steps": 40,
        "train_loss": 0.5,
        "holdout_loss": 1.0 / number,
        "seconds": 60.0,
        "joules": 9000.0,
    }
    return OwnRound(**{**facts, **changes})


def test_days_add_up_and_rounds_are_the_newest_runs(tmp_path: Path) -> None:
    now = [moment("2026-11-29 23:59")]
    book = RoundBook(tmp_path, lambda: now[0])
    book.add(done(8, run="6"))
    book.add(done(1))
    now[0] = moment("2026-11-30 00:01")
    # A round that is sent again is one of the chart's, and cost its time twice.
    book.add(done(2, holdout_loss=0.9))
    book.add(done(2, seconds=61.0, joules=None))
    # A learner that has the answer still gives it again, and takes no time for it.
    book.add(done(2, seconds=61.0, joules=None))
    facts = RoundBook(tmp_path, lambda: now[0]).facts()
    assert facts is not None
    assert facts["today"] == {"rounds": 2, "seconds": 121.0, "joules": 9000.0}
    assert facts["days"]["2026-11-29"] == {"rounds": 2, "seconds": 120.0, "joules": 18000.0}
    assert [(each["round"], each["holdout_loss"]) for each in facts["rounds"]] == [(1, 1), (2, 0.5)]
    assert {each["run"] for each in facts["rounds"]} == {"7"}


def test_a_gpu_that_counts_nothing_has_no_energy(tmp_path: Path) -> None:
    book = RoundBook(tmp_path)
    assert book.facts() == {
        "days": {},
        "today": {"rounds": 0, "seconds": 0.0, "joules": None},
        "rounds": [],
    }
    book.add(done(1, joules=None))
    facts = book.facts()
    assert facts is not None
    assert facts["today"]["joules"] is None, "unknown, not 0"


def test_the_file_stays_small_and_days_count_all_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zk0d.daemon.own_rounds.MOST_ROUNDS", 5)
    book = RoundBook(tmp_path, lambda: moment("2026-11-30 12:00"))
    for number in range(1, 9):
        book.add(done(number))
    record = book.read()
    assert [each.round for each in record.rounds] == [4, 5, 6, 7, 8]
    assert record.days["2026-11-30"].rounds == 8
    assert MOST_ROUNDS * len(done(999).model_dump_json()) < 300_000


def test_a_damaged_file_begins_again_and_says_so(tmp_path: Path) -> None:
    book = RoundBook(tmp_path)
    assert book.add(done(1)) == ""
    (tmp_path / BOOK).write_text('{"version": 1, "rounds": [{"ru')
    assert book.read().rounds == []
    assert book.add(done(2)) == (
        f"{tmp_path / BOOK}: the rounds before this one cannot be read (it is damaged) and are"
        " lost."
    )
    assert [each.round for each in book.read().rounds] == [2]
