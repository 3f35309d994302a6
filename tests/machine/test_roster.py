from __future__ import annotations

import logging
from pathlib import Path

import pytest

from zk0d.errors import UsageError
from zk0d.machine import roster
from zk0d.machine.enrolment import Request
from zk0d.machine.keys import fingerprint, make_node_key


def request(folder: Path, name: str, key: str) -> Request:
    make_node_key(folder / f"{key}.key")
    return Request.of(name, folder / f"{key}.pub", "someone@example.org")


def test_the_folder_is_the_truth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files that something else wrote count as well; what is no key is said and left out."""
    folder = tmp_path / "roster.d"
    folder.mkdir()
    asked = request(tmp_path, "left", "a")
    made = roster.approve(folder, asked)
    assert (made.name, made.key) == ("left", fingerprint(tmp_path / "a.pub"))
    assert made.contact == "someone@example.org"
    make_node_key(tmp_path / "b.key")
    (folder / "by-hand.pub").write_text((tmp_path / "b.pub").read_text().strip() + " root@host\n")
    (folder / "broken.pub").write_text("no key")
    (folder / "Bad Name.pub").write_text((tmp_path / "b.pub").read_text())
    (folder / "twice.pub").write_text((tmp_path / "a.pub").read_text())
    with caplog.at_level(logging.ERROR, "zk0d"):
        found = roster.entries(folder)
    assert [entry.name for entry in found] == ["by-hand", "left"]
    assert found[0].approved == ""
    said = caplog.text
    assert "broken.pub: no public key can be read" in said
    assert "a node's name is 1 to 32" in said
    assert "twice.pub holds the key of left.pub again" in said


def test_a_key_file_is_readable_by_the_superlinks_user(tmp_path: Path) -> None:
    folder = tmp_path / "roster.d"
    folder.mkdir()
    entry = roster.approve(folder, request(tmp_path, "left", "a"))
    assert entry.path.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in folder.iterdir()] == ["left.pub"]


def test_a_rotation_needs_a_node(tmp_path: Path) -> None:
    folder = tmp_path / "roster.d"
    folder.mkdir()
    with pytest.raises(UsageError, match="there is no node 'left', so its key cannot be changed"):
        roster.approve(folder, request(tmp_path, "left", "a"), rotate=True)


def test_removing_takes_both_keys(tmp_path: Path) -> None:
    folder = tmp_path / "roster.d"
    folder.mkdir()
    roster.approve(folder, request(tmp_path, "left", "a"))
    roster.approve(folder, request(tmp_path, "left", "b"), rotate=True)
    assert len(roster.read_roster(folder)) == 2
    assert len(roster.remove(folder, "left")) == 2
    assert list(folder.iterdir()) == []
