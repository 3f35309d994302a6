"""Pauses and drains."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from zk0d.daemon.clock import uptime
from zk0d.errors import TryAgainError
from zk0d.machine import hold
from zk0d.machine.hold import HOLD, Hold, end_hold, read_hold, resume


def test_a_pause_is_read_back_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hold.pause(100).write(tmp_path)
    found = read_hold(tmp_path)
    assert found is not None
    assert found.sentence().startswith("paused until 20")
    up = uptime()
    monkeypatch.setattr(hold, "uptime", lambda: up + 101)
    assert read_hold(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_after_a_boot_a_pause_is_over_by_the_time_of_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hold.pause(100).write(tmp_path)
    monkeypatch.setattr(hold, "boot_id", lambda: "another")
    monkeypatch.setattr(hold, "uptime", lambda: 0.0)
    assert read_hold(tmp_path) is not None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 101)
    assert read_hold(tmp_path) is None


def test_a_pause_outlives_a_boot_and_a_drain_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for made, kept in ((Hold.pause(100), True), (Hold.drain(), False)):
        made.write(tmp_path)
        assert read_hold(tmp_path) == made
        with monkeypatch.context() as patch:
            patch.setattr(hold, "boot_id", lambda: "another")
            assert (read_hold(tmp_path) is not None) is kept


def test_a_hold_can_be_ended(tmp_path: Path) -> None:
    assert not end_hold(tmp_path)
    Hold.drain().write(tmp_path)
    assert end_hold(tmp_path)
    assert read_hold(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "pause"}', json.dumps({"x": 1})])
def test_a_meaningless_file_holds_no_node(tmp_path: Path, text: str) -> None:
    (tmp_path / HOLD).write_text(text)
    assert read_hold(tmp_path) is None
    assert not (tmp_path / HOLD).exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TryAgainError, match="are you root"):
        Hold.drain().write(tmp_path / "nothing")


def test_a_service_that_does_not_see_the_file_knows_the_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd's %b writes it: without dashes."""
    made = Hold.drain()
    made.write(tmp_path)
    monkeypatch.setattr(hold, "BOOT_ID", tmp_path / "hidden")
    assert read_hold(tmp_path) == made, "nothing tells the boot"
    monkeypatch.setenv(hold.BOOT_VARIABLE, made.boot)
    assert read_hold(tmp_path) == made
    monkeypatch.setenv(hold.BOOT_VARIABLE, "0" * 32)
    assert read_hold(tmp_path) is None


def test_a_hold_that_may_not_be_removed_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / HOLD).mkdir()  # what nobody can unlink, root neither
    with pytest.raises(TryAgainError, match=r"hold\.json: cannot be removed \(.*\); are you root"):
        resume(tmp_path)
    (tmp_path / HOLD).rmdir()
    assert resume(tmp_path) is False
    Hold.pause(60).write(tmp_path)
    assert resume(tmp_path) is True
