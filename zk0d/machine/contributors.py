"""Several contributors on one machine: each has a name, and a folder beneath the first one's.

The one without a name has its settings in ``/etc/zk0d``, as ever, and the one called ``ann`` in
``/etc/zk0d/clients/ann``. This module says where, and which there are; it loads nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from zk0d.errors import UsageError

FOLDER = "clients"
LONGEST = 16  #: ``zk0d-learner-NAME`` is a user's name, which has 31 characters at most
OPTION = "--contributor"
NAME = re.compile(rf"[a-z0-9](?:[a-z0-9-]{{0,{LONGEST - 2}}}[a-z0-9])?")
#: What a path begins with that zk0d chose; a version's folder is everybody's.
_OURS = re.compile(r"(?<=[/=])zk0d/(?!current/)")


def check_name(name: str) -> str:
    """The name, if a contributor may be called so.

    Raises
    ------
    UsageError
        If not.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{OPTION}: {name!r} is not a name; use 1 to {LONGEST} of a-z, 0-9 and '-', with a"
            " letter or a digit first and last."
        )
    return name


def home(folder: Path, name: str) -> Path:
    """The folder of a contributor's settings, beneath that of the one without a name."""
    return folder / FOLDER / name if name else folder


def name_of(folder: Path) -> str:
    """The contributor whose settings lie in a folder; empty for the one without a name."""
    return folder.name if folder.parent.name == FOLDER else ""


def root_of(folder: Path) -> Path:
    """The folder of the one without a name."""
    return folder.parent.parent if name_of(folder) else folder


def names(folder: Path) -> list[str]:
    """The contributors that have settings beneath a folder, sorted."""
    return sorted(path.parent.name for path in (folder / FOLDER).glob("*/client.toml"))


def existing(folder: Path, name: str) -> Path:
    """The folder of a contributor's settings.

    Raises
    ------
    UsageError
        If there is no such contributor.
    """
    if name and name not in (there := names(folder)):
        known = f"there are {', '.join(there)}" if there else "there is none with a name"
        raise UsageError(
            f"{OPTION}: no contributor {name!r} is in {folder / FOLDER}; {known} (zk0bot client"
            f" join {OPTION} NAME makes one)."
        )
    return home(folder, name)


def option(folder: Path) -> str:
    """What follows a command that is for the contributor of a folder; empty without a name."""
    name = name_of(folder)
    return f" {OPTION} {name}" if name else ""


def relocated(text: str, name: str) -> str:
    """Paths of zk0d as those of a contributor, in a unit's directive or a setting."""
    return _OURS.sub(f"zk0d/{FOLDER}/{name}/", text)
