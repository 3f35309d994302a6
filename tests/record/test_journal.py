from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from tests.record.lines import read_lines
from tests.record.lines import write as note
from zk0d.errors import ExitCode, TryAgainError
from zk0d.record.events import NodeJoined, RoundCommitted, RunFinished
from zk0d.record.journal import Journal, committed_rounds, read_journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "runs" / "7", "7")


def write(text: str):  # type: ignore[no-untyped-def]
    return lambda path: path.write_text(text)


def test_lines_are_read_as_they_were_written(journal: Journal) -> None:
    written = [
        note(journal, "run.started", settings={"a": 1}),
        note(journal, "round.committed", round=1),
    ]
    assert list(read_journal(journal.folder)) == written
    assert [event.kind for event in written] == ["run.started", "round.committed"]
    assert all(event.v == 1 and event.run == "7" and event.time for event in written)


def test_a_journal_of_another_version_is_read(journal: Journal) -> None:
    """A later one's kinds and fields are left out; the first one's gaps are filled."""
    lines = [
        {"v": 9, "time": 1.0, "run": "7", "kind": "moon.landed", "round": 1},
        {"v": 9, "time": 2.0, "run": "7", "kind": "run.finished", "rounds": 3, "mood": "good"},
        {"v": 1, "time": 3.0, "run": "7", "kind": "node.joined", "node": "left"},
        {
            "v": 1,
            "time": 4.0,
            "run": "7",
            "kind": "round.committed",
            "round": 0,
            "evaluation": None,
        },
    ]
    (journal.folder / "journal.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in lines)
    )
    finished, joined, committed = read_journal(journal.folder)
    assert isinstance(finished, RunFinished)
    assert isinstance(joined, NodeJoined)
    assert isinstance(committed, RoundCommitted)
    assert (joined.key, committed.nodes) == ("", ())


def test_a_torn_last_line_is_left_out(journal: Journal) -> None:
    note(journal, "run.started")
    with (journal.folder / "journal.jsonl").open("a") as file:
        file.write('{"v": 1, "kind": "round.comm')
    assert [event.kind for event in read_journal(journal.folder)] == ["run.started"]


def test_a_missing_journal_has_no_lines(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path)) == []


def test_nan_is_never_written(journal: Journal) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        note(journal, "round.committed", round=1, train_loss=float("nan"))


def test_a_round_appears_whole(journal: Journal) -> None:
    folder = journal.commit(3, {"a.txt": write("one"), "b.txt": write("two")})
    assert folder.name == "00003"
    assert (folder / "a.txt").read_text() == "one"
    assert committed_rounds(journal.folder) == [3]
    assert not list(journal.rounds.glob(".*"))


def test_a_round_that_fails_does_not_exist(journal: Journal) -> None:
    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TryAgainError) as error:
        journal.commit(1, {"a.txt": write("one"), "b.txt": full})
    assert error.value.reason == "disk_full"
    assert error.value.exit_code is ExitCode.TRY_AGAIN
    assert str(journal.rounds) in error.value.message
    assert committed_rounds(journal.folder) == []
    assert not list(journal.rounds.iterdir()), "nothing half-written is left"


def test_a_round_is_replaced_by_its_repetition(journal: Journal) -> None:
    journal.commit(1, {"a.txt": write("first")})
    journal.commit(1, {"a.txt": write("second")})
    assert (journal.rounds / "00001" / "a.txt").read_text() == "second"


def test_drafts_of_a_dead_server_are_removed(journal: Journal) -> None:
    (journal.rounds / ".00002.partial").mkdir()
    Journal(journal.folder, "7")
    assert not list(journal.rounds.iterdir())


def test_old_rounds_are_pruned(journal: Journal) -> None:
    for number in range(5):
        journal.commit(number, {"a.txt": write("x")})
    journal.prune(2, also={0})
    assert committed_rounds(journal.folder) == [0, 3, 4]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TryAgainError, match="cannot be written"):
        Journal(tmp_path / "file" / "run", "1")


def test_a_full_disk_is_a_sentence(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TryAgainError, match="No space left on device"):
        note(journal, "run.started")
    with pytest.raises(TryAgainError):
        journal.write_json("config.json", {})
    assert not list(journal.folder.glob("*config.json*"))


def test_json_files_are_whole(journal: Journal) -> None:
    journal.write_json("config.json", {"a": [1, 2]})
    assert json.loads((journal.folder / "config.json").read_text()) == {"a": [1, 2]}


def test_a_line_that_a_full_disk_did_not_take_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run continues in the same program, and the next line must not be glued to half of it."""
    journal = Journal(tmp_path, "7")
    note(journal, "run.finished", rounds=1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(TryAgainError, match="No space left"):
            note(journal, "run.finished", rounds=2)
    note(journal, "run.finished", rounds=3)
    assert [line["rounds"] for line in read_lines(tmp_path)] == [1, 3]
