"""Whether the installed Flower can open a SuperLink's database.

Flower brings an older database up to date and has no way back: it ends at one that a newer Flower
has changed, as after ``zk0d-release rollback``.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

import flwr

_REVISION = re.compile(r'(?m)^revision: str = "(\w+)"$')


def known_revisions() -> frozenset[str]:
    """The steps of the database's schema that the installed Flower knows."""
    folder = Path(flwr.__file__).parent / "supercore/state/alembic/versions"
    texts = (path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    return frozenset(found for text in texts for found in _REVISION.findall(text))


def is_of_newer_flower(database: Path) -> bool:
    """Whether a newer Flower than ours has changed ``database``; what is no database is not."""
    known = known_revisions()
    if not known or not database.is_file():
        return False
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(database)) as opened,
    ):
        rows = opened.execute("SELECT version_num FROM alembic_version").fetchall()
        return not {row[0] for row in rows} <= known
    return False
