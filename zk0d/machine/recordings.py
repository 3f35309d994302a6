"""Which recordings this contributor lends: ``zk0bot client start [DATASET]``."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from zk0d.config.machine import ClientSettings
from zk0d.config.names import DatasetUri
from zk0d.errors import ConfigError, UnavailableError, UsageError
from zk0d.machine import contributors, units
from zk0d.machine.roles import Role, service
from zk0d.machine.setup import change_client

NAME = "50-recordings"  #: of the drop-ins
#: Units that reach beyond the machine, or run what speaks to the coordinator.
NETWORKED = tuple(map(service, ("supernode", "client-superexec", "fetch", "publish")))
#: What the learner's unit hides (ProtectHome=tmpfs); recordings in there are bound into its view.
HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))


def choose(
    dataset: str | None, folder: Path, say: Callable[[str], None] = lambda line: None
) -> bool:
    """Write the dataset to the settings and let the learner see it; whether something changed.

    Parameters
    ----------
    dataset
        A folder, ``local:/folder``, ``user/name`` or ``hf:user/name``; without it, the one in the
        settings.
    say
        Gets a line before what may take minutes.

    Raises
    ------
    Zk0dError
        If there is none, or the learner's user cannot read it.
    """
    path = folder / "client.toml"
    settings = ClientSettings.load(path)
    if dataset is None and settings.dataset_uri is None:
        raise UsageError(
            "no dataset is named, here or in client.toml: zk0bot client start FOLDER, or user/name"
            " of one on the hub."
        )
    try:
        uri = DatasetUri.typed(dataset) if dataset else DatasetUri.parse(settings.dataset_uri or "")
    except ValueError as error:
        raise ConfigError(f"the dataset: {error}.") from None
    if not uri.fetched and not uri.folder.is_dir():
        raise ConfigError(
            f"{uri}: there is no folder {uri.folder}; give the folder of a LeRobot dataset."
        )
    local = None if uri.fetched else uri.folder
    hidden = local is not None and any(local.resolve().is_relative_to(home) for home in HIDDEN)
    name = contributors.name_of(folder)
    if local is not None and units.by_systemd(folder):
        _check_readable(local, hidden, service("learner").user_of(name))
    changed = str(uri) != settings.dataset_uri
    if changed:
        change_client(path, {"dataset-uri": str(uri)})
    if not units.by_systemd(folder):
        return changed
    hides = _hide(local, name)
    fetch, learner = (service(each).unit_of(name) for each in ("fetch", "learner"))
    if _bind(local if hidden else None, f"{learner}.service") or changed:
        if uri.fetched:
            say(f"fetching {uri.location}; journalctl -u {fetch} follows it")
            units.systemctl("start", f"{fetch}.service")
        # Reading large recordings takes minutes; wait-online waits for it.
        units.systemctl("try-restart", "--no-block", f"{learner}.service")
        changed = True
    return changed or hides


def _bind(folder: Path | None, learner: str) -> bool:
    """Bind a folder of a home into the learner's view, or take that back; whether it changed."""
    lines = [] if folder is None else [f"BindReadOnlyPaths={_quoted(folder)}"]
    why = "recordings in a home, which the unit hides"
    return units.write_drop_in(learner, NAME, why, lines)


def _hide(folder: Path | None, contributor: str) -> bool:
    """Hide a folder from the processes that have a network; whether that changed."""
    lines = [] if folder is None else [f"InaccessiblePaths=-{_quoted(folder)}"]
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
