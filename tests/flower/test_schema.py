"""A database that a newer Flower has changed."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from alembic.util.exc import CommandError
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from zk0d.flower.schema import is_of_newer_flower


def open_by_flower(path: Path) -> None:
    LinkStateFactory(str(path), NoOpFederationManager(), ObjectStoreFactory()).state()


def set_revision(path: Path, revision: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "superlink.db"
    open_by_flower(path)
    return path


def test_flowers_own_database_is_known(database: Path) -> None:
    assert not is_of_newer_flower(database)


@pytest.mark.slow
def test_flower_ends_at_a_newer_one_and_we_see_it_before(database: Path) -> None:
    set_revision(database, "0123456789ab")
    assert is_of_newer_flower(database)
    with pytest.raises(CommandError, match="Can't locate revision"):
        open_by_flower(database)


@pytest.mark.parametrize("content", [None, b"", b"no database"])
def test_a_file_without_a_database_is_left_to_flower(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "superlink.db"
    if content is not None:
        path.write_bytes(content)
    assert not is_of_newer_flower(path)
