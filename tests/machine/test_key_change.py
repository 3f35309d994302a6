"""A node's key is changed in steps, and continues from each where it was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from zk0d.machine import node_key
from zk0d.machine.keys import fingerprint, make_node_key, private_fingerprint

OLD, NEXT, NEXT_PUBLIC = "node.key.old", "node.next.key", "node.next.pub"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_node_key(tmp_path / "node.key")
    make_node_key(tmp_path / NEXT)
    return tmp_path


def pair(folder: Path) -> tuple[str, str]:
    return private_fingerprint(folder / "node.key"), fingerprint(folder / "node.pub")


@pytest.mark.parametrize("cut", ["before", "old is kept", "key is changed", "all is changed"])
def test_a_change_that_was_cut_off_continues(folder: Path, cut: str) -> None:
    old, new = (private_fingerprint(folder / name) for name in ("node.key", NEXT))
    if cut != "before":
        (folder / OLD).write_bytes((folder / "node.key").read_bytes())
    if cut in ("key is changed", "all is changed"):
        (folder / NEXT).rename(folder / "node.key")
    if cut == "all is changed":
        (folder / NEXT_PUBLIC).rename(folder / "node.pub")
    assert node_key.is_changing(folder) is (cut != "before")
    node_key.change_and_keep(folder)
    assert pair(folder) == (new, new)
    assert node_key.kept_fingerprint(folder) == old
    if cut == "before":
        assert (folder / OLD).stat().st_mode & 0o777 == 0o600
    assert not (folder / NEXT).exists()
    assert not (folder / NEXT_PUBLIC).exists()
    node_key.forget_old(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["node.key", "node.pub"]


def test_the_old_key_comes_back(folder: Path) -> None:
    old = private_fingerprint(folder / "node.key")
    node_key.change_and_keep(folder)
    node_key.change_back(folder)
    assert pair(folder) == (old, old)
    assert not node_key.is_changing(folder)
