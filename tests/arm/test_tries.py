"""Counts of episodes are kept by policy and robot, and a rate has an interval."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from zk0d.arm.tries import Tries, wilson
from zk0d.errors import ConfigError, TryAgainError


def test_the_interval_is_wilsons() -> None:
    # Of the table in Newcombe 1998, and the ends that a normal interval gets wrong.
    for succeeded, tried, *ends in (
        (81, 263, 0.2553, 0.3662),
        (0, 20, 0.0, 0.1611),
        (29, 29, 0.8830, 1.0),
    ):
        assert list(wilson(int(succeeded), int(tried))) == pytest.approx(ends, abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_counts_are_by_policy_and_robot(tmp_path: Path) -> None:
    tries = Tries(tmp_path / "new" / "zk0d")
    assert tries.all() == ()
    tries.add("a" * 64, "7/30", "so101_follower", succeeded=True)
    tries.add("a" * 64, "latest", "so101_follower", succeeded=False)
    tries.add("a" * 64, "7/30", "koch_follower", succeeded=True)
    last = tries.add("b" * 64, "8/30", "so101_follower", succeeded=False)
    assert (last.tried, last.succeeded) == (1, 0)
    first = next(t for t in tries.all() if t.name == "latest")
    assert (first.tried, first.succeeded, first.counts) == (2, 1, "tried 2, 1 succeeded")
    assert len(tries.all()) == 3
    assert json.loads(tries.file.read_text())["schema_version"] == 1


def test_a_damaged_file_is_kept_and_named(tmp_path: Path) -> None:
    tries = Tries(tmp_path)
    tries.file.write_text("{")
    for use in (tries.all, lambda: tries.add("a" * 64, "a", "b", succeeded=True)):
        with pytest.raises(ConfigError, match="is damaged"):
            use()
    assert tries.file.read_text() == "{"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "zk0d").write_text("a file")
    with pytest.raises((TryAgainError, ConfigError), match="tries"):
        Tries(tmp_path / "zk0d").add("a" * 64, "a", "b", succeeded=True)


def test_behind_sudo_the_counts_are_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pwd

    given: list[tuple[str, int, int]] = []
    caller = pwd.struct_passwd(("ann", "x", 1234, 1234, "", str(tmp_path), "/bin/sh"))
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("os.chown", lambda path, *who: given.append((Path(path).name, *who)))
    monkeypatch.setattr("pwd.getpwuid", lambda number: caller)
    tries = Tries.of_user()
    assert tries.folder == tmp_path / ".local/state/zk0d"
    tries.add("a" * 64, "a", "b", succeeded=True)
    assert {name for name, *_ in given} == {".local", "state", "zk0d", "tries.json"}
    assert {tuple(who) for _, *who in given} == {(1234, 1234)}
    assert stat.S_ISREG(tries.file.stat().st_mode)
