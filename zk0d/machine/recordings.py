"""Which recordings this contributor lends: ``zk0bot client start [DATASET ...]``."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zk0d.config.machine import ClientSettings
from zk0d.config.names import DatasetUri
from zk0d.errors import ConfigError, UnavailableError, UsageError
from zk0d.machine import contributors, units
from zk0d.machine.roles import Role, service
from zk0d.machine.setup import change_client

NAME = "50-recordings"  #: of the drop-ins
#: Units that reach beyond the machine, or run what speaks to the coordinator.
NETWORKED = tuple(
    map(service, ("supernode", "client-superexec", "fetch", "policy-updates", "publish"))
)
#: What the learner's unit hides (ProtectHome=tmpfs); recordings in there are bound into its view.
HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))


def choose(
    datasets: Sequence[str], folder: Path, say: Callable[[str], None] = lambda line: None
) -> bool:
    """Write datasets to the settings and let the learner see them; whether something changed.

    Parameters
    ----------
    datasets
        Each a folder, ``local:/folder``, ``user/name`` or ``hf:user/name``; without any, those in
        the settings. One that the settings have already keeps its table there.
    say
        Gets a line before what may take minutes.

    Raises
    ------
    Zk0dError
        If there is none, or the learner's user cannot read it.
    """
    path = folder / "client.toml"
    settings = ClientSettings.load(path)
    if not datasets and not settings.lent:
        raise UsageError(
            "no dataset is named, here or in client.toml: zk0bot client start FOLDER, or user/name"
            " of one on the hub."
        )
    uris = _addresses(datasets, settings)
    for uri in uris:
        if not uri.fetched and not uri.folder.is_dir():
            raise ConfigError(
                f"{uri}: there is no folder {uri.folder}; give the folder of a LeRobot dataset."
            )
    local = [uri.folder for uri in uris if not uri.fetched]
    hidden = [each for each in local if any(each.resolve().is_relative_to(h) for h in HIDDEN)]
    name = contributors.name_of(folder)
    if units.by_systemd(folder):
        for each in local:
            _check_readable(each, each in hidden, service("learner").user_of(name))
    changes = _changes([str(uri) for uri in uris], settings)
    if changes:
        change_client(path, changes)
    changed = bool(changes)
    if not units.by_systemd(folder):
        return changed
    hides = _hide(local, name)
    fetch, learner = (service(each).unit_of(name) for each in ("fetch", "learner"))
    if _bind(hidden, f"{learner}.service") or changed:
        if fetched := [uri.location for uri in uris if uri.fetched]:
            say(f"fetching {' and '.join(fetched)}; journalctl -u {fetch} follows it")
            units.systemctl("start", f"{fetch}.service")
        # Reading large recordings takes minutes; wait-online waits for it.
        units.systemctl("try-restart", "--no-block", f"{learner}.service")
        changed = True
    return changed or hides


def _addresses(datasets: Sequence[str], settings: ClientSettings) -> list[DatasetUri]:
    try:
        if datasets:
            return list(dict.fromkeys(map(DatasetUri.typed, datasets)))
        return [DatasetUri.parse(each.uri) for each in settings.lent]
    except ValueError as error:
        raise ConfigError(f"the dataset: {error}.") from None


def _changes(uris: list[str], settings: ClientSettings) -> dict[str, Any]:
    """What of the settings becomes another thing, for :func:`change_client`."""
    before = {str(DatasetUri.parse(each.uri)): each for each in settings.lent}
    if uris == list(before):
        return {}
    if len(uris) == 1 and not settings.dataset:
        return {"dataset-uri": uris[0]}
    tables = [
        before[uri].model_dump(by_alias=True, exclude_unset=True) if uri in before else {"uri": uri}
        for uri in uris
    ]
    return {"dataset-uri": None, "dataset": tables}


def _bind(folders: list[Path], learner: str) -> bool:
    """Bind folders of a home into the learner's view, or take that back; whether it changed."""
    lines = [f"BindReadOnlyPaths={_quoted(folder)}" for folder in folders]
    why = "recordings in a home, which the unit hides"
    return units.write_drop_in(learner, NAME, why, lines)


def _hide(folders: list[Path], contributor: str) -> bool:
    """Hide folders from the processes that have a network; whether that changed."""
    lines = [f"InaccessiblePaths=-{_quoted(folder)}" for folder in folders]
    changed = False
    for unit, name in networked(contributor):
        if units.write_drop_in(
            unit, name, "services with a network must not read recordings", lines
        ):
            units.systemctl("try-restart", "--no-block", unit)
            changed = True
    return changed


def networked(contributor: str) -> Iterator[tuple[str, str]]:
    """Units that must not see a contributor's recordings, and their drop-ins' names."""
    for each in NETWORKED:
        if Role.CLIENT in each.roles:
            yield f"{each.unit_of(contributor)}.service", NAME
        else:  # the coordinator's, from which several contributors may hide theirs
            yield f"{each.unit}.service", f"{NAME}-{contributor}" if contributor else NAME


def _check_readable(folder: Path, hidden: bool, user: str) -> None:
    """Look as the learner would, in a view like its own."""
    bind = ["-p", f"BindReadOnlyPaths={_quoted(folder)}"] if hidden else []
    said = subprocess.run(
        [
            *("systemd-run", "--wait", "--pipe", "--quiet", "--collect"),
            *("-p", f"User={user}", "-p", "ProtectHome=tmpfs", *bind),
            *("find", str(folder), "!", "-readable", "-print", "-quit"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    unreadable = said.stdout.strip()
    if unreadable or "Permission denied" in said.stderr:
        raise ConfigError(
            f"{unreadable or folder}: the user {user} cannot read it; allow it:"
            f" setfacl -R -m u:{user}:rX {folder}"
        )
    if said.returncode:
        raise UnavailableError(
            f"{folder}: it is not known whether {user} can read it:"
            f" {said.stderr.strip() or 'systemd-run failed'}."
        )


def _quoted(path: Path) -> str:
    """A path as BindReadOnlyPaths= takes it."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    text = text.replace(":", "\\:")
    return f'"{text}"'
