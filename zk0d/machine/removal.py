"""Removes one of several contributors from this machine; its recordings stay."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

from zk0d.config.machine import ClientSettings
from zk0d.config.names import DatasetUri
from zk0d.errors import ConfigError, UsageError
from zk0d.machine import contributors, recordings, units
from zk0d.machine.instances import accounts_file
from zk0d.machine.rights import writing
from zk0d.machine.roles import SERVICES, Role, service

_DROP_INS = Path("/etc/systemd/system")
#: In which the units make folders for each contributor.
_MADE = ("/var/lib/zk0d/", "/var/cache/zk0d/", "/run/zk0d/")
_SERVICES = [each for each in SERVICES if Role.CLIENT in each.roles]


def removed_with(folder: Path) -> list[Path]:
    """The folders that go with a contributor; recordings are never among them.

    Parameters
    ----------
    folder
        Of its settings.

    Raises
    ------
    UsageError
        If recordings that its settings name lie in one of them.
    """
    made = [Path(contributors.relocated(path, _name(folder))) for path in _MADE]
    going = [folder, *(made if contributors.root_of(folder) == units.SYSTEM_FOLDER else [])]
    with contextlib.suppress(ConfigError, ValueError):
        for lent in ClientSettings.load(folder / "client.toml").lent:
            where = DatasetUri.parse(lent.uri)
            if where.fetched:
                continue
            data = where.folder.resolve()
            for path in going:
                if data.is_relative_to(path.resolve()):
                    raise UsageError(
                        f"{data}: these recordings lie in {path}, which would be removed; move"
                        " them first."
                    )
    return going


def remove(folder: Path) -> None:
    """Remove a contributor: its services, users, settings, key and state; no recordings.

    Raises
    ------
    UsageError
        If it is the one without a name, or its recordings would go.
    TryAgainError
        If a folder cannot be removed.
    """
    name, going = _name(folder), removed_with(folder)
    if units.by_systemd(folder):
        units.stop(Role.CLIENT, folder)
        kept = [f"{each.unit_of(name)}.service" for each in _SERVICES if each.every]
        # Stopping a target does not wait for what it brought.
        units.systemctl("stop", f"{service('learner').unit_of(name)}.socket", *kept)
    for path in going:
        with writing(path):
            if path.exists():
                shutil.rmtree(path)
    if contributors.root_of(folder) == units.SYSTEM_FOLDER:
        _remove_from_system(name)


def _remove_from_system(name: str) -> None:
    for each in _SERVICES:
        for kind in ("service", "socket", "timer"):
            shutil.rmtree(_DROP_INS / f"{each.unit_of(name)}.{kind}.d", ignore_errors=True)
    for unit, drop_in in recordings.networked(name):
        if name in drop_in and units.has_systemd():  # of the coordinator, which stays
            units.write_drop_in(unit, drop_in, "", [])
    path = accounts_file(name)
    with writing(path):
        path.unlink(missing_ok=True)
    for each in _SERVICES:
        for program in ("userdel", "groupdel"):  # the group may go with the user
            if shutil.which(program):
                subprocess.run([program, each.user_of(name)], capture_output=True, check=False)
    if units.has_systemd():
        units.systemctl("daemon-reload")
        units.systemctl("reset-failed", f"zk0d-*@{name}.*", check=False)


def _name(folder: Path) -> str:
    name = contributors.name_of(folder)
    if not name:
        raise UsageError(
            "the contributor without a name goes with zk0d itself: get-zk0bot.sh --uninstall; for"
            f" another one give {contributors.OPTION}."
        )
    return name
