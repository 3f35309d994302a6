"""What a ClientApp notes of its learner's rounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from zk0d.config.machine import LINE_FOLDER_VARIABLE
from zk0d.daemon.own_rounds import RoundBook
from zk0d.federation.messages import TrainReply
from zk0d.federation.own_rounds import OwnRoundNotes
from zk0d.learning.progress import Energy, Training, event_of
from zk0d.record.events import NodeFigures


def reply(**figures: Any) -> TrainReply:
    facts: dict[str, Any] = {
        "steps": 40,
        "loss": 0.7,
        "policy_loss": 0.6,
        "grad_norm": 1.0,
        "holdout_loss": 0.25,
        "seconds": {"load": 50.0, "evaluate": 2.0, "train": 30.0, "encode": 9.0},
        **figures,
    }
    return TrainReply(name="left", round=3, base="0" * 64, figures=NodeFigures(**facts))


def test_a_round_is_noted_with_its_energy_and_all_progress_is_heard(tmp_path: Path) -> None:
    notes = OwnRoundNotes({LINE_FOLDER_VARIABLE: str(tmp_path)})
    heard: list[dict[str, Any]] = []
    progress = notes.hearing(heard.append)
    events = [event_of(Training(40, 40, 30.0)), event_of(Energy(1800.0)), {"event": "alive"}]
    for event in events:
        progress(event)
    notes.note("7", reply())
    assert heard == events
    (noted,) = RoundBook(tmp_path).read().rounds
    assert noted.model_dump() == {
        "run": "7",
        "round": 3,
        "steps": 40,
        "train_loss": 0.6,
        "holdout_loss": 0.25,
        "seconds": 32.0,
        "joules": 1800.0,
    }


def test_a_loss_that_is_not_finite_is_noted_as_unknown(tmp_path: Path) -> None:
    notes = OwnRoundNotes({LINE_FOLDER_VARIABLE: str(tmp_path)})
    notes.note("7", reply(policy_loss=math.nan, holdout_loss=None))
    (noted,) = RoundBook(tmp_path).read().rounds
    assert (noted.train_loss, noted.holdout_loss, noted.joules) == (None, None, None)


def test_a_folder_that_cannot_be_written_loses_the_note_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    OwnRoundNotes({LINE_FOLDER_VARIABLE: str(tmp_path / "file" / "x")}).note("7", reply())
    assert "the round cannot be noted (Not a directory)" in caplog.text


def test_a_simulation_notes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    OwnRoundNotes({}).note("7", reply())
    assert list(tmp_path.iterdir()) == []
