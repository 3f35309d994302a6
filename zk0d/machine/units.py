"""The services of this machine, as systemd runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from zk0d.errors import UnavailableError
from zk0d.files import make_folder, write_file
from zk0d.machine.contributors import name_of, option, root_of
from zk0d.machine.rights import writing
from zk0d.machine.roles import Role, Service, once, services, target, units

SYSTEM_FOLDER = Path("/etc/zk0d")  #: whose settings the units read


def _config_folder() -> Path:
    """Where this user's settings lie: without root, in the home if there are any."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "zk0d"
    return own if os.geteuid() != 0 and own.is_dir() else SYSTEM_FOLDER


CONFIG_FOLDER = _config_folder()
_PROPERTIES = "ActiveState,SubState,ActiveEnterTimestamp,NRestarts,StatusText,Result,ExecMainStatus"


@dataclass(frozen=True)
class Unit:
    """A service. ``todo`` is empty if nothing is wrong."""

    name: str
    state: str
    since: str
    restarts: int
    status: str
    todo: str


def has_systemd() -> bool:
    """Whether systemd runs this host."""
    return shutil.which("systemctl") is not None and os.path.isdir("/run/systemd/system")


def by_systemd(folder: Path) -> bool:
    """Whether the system's units run what has its settings in this folder."""
    return has_systemd() and root_of(folder.absolute()) == SYSTEM_FOLDER


def systemctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run systemctl; raises :class:`UnavailableError` with what it says if it fails."""
    said = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if check and said.returncode:
        raise UnavailableError(f"systemctl {' '.join(arguments)}: {said.stderr.strip()}")
    return said


def write_drop_in(unit: str, name: str, why: str, lines: list[str]) -> bool:
    """Add directives of the ``[Service]`` section to a unit, or with none take them back.

    Whether something changed; systemd has then read it.
    """
    path = Path(f"/etc/systemd/system/{unit}.d/{name}.conf")
    text = "\n".join([f"# Written by zk0bot: {why}.", "[Service]", *lines, ""]) if lines else ""
    with writing(path):
        if text == (path.read_text(encoding="utf-8") if path.exists() else ""):
            return False
        if text:
            make_folder(path.parent)
            write_file(path, text)
        else:
            path.unlink()
    systemctl("daemon-reload")
    return True


def enabled_roles() -> list[str]:
    """The roles of the machine itself whose target is enabled."""
    return [role for role in Role if _is_enabled(target(role))]


def start(role: str, folder: Path = SYSTEM_FOLDER, *, changed: bool = False) -> bool:
    """Start a role, now and at every boot; ``False`` if it runs so already.

    Parameters
    ----------
    folder
        Of its settings; as in every function here, that of one of several contributors means its
        own units.
    changed
        Whether the caller changed something, and it is to be started in any case.
    """
    target_, _ = _named(role, folder)
    name = name_of(folder)
    names = [target_, *(f"{each.unit_of(name)}.service" for each in services(role))]
    said = systemctl("is-active", *names, check=False).stdout.split()
    runs = said == ["active"] * len(names) and not (_is_stopped(once(role)) and not name)
    if runs and not changed and _is_enabled(target_):
        return False
    systemctl("enable", "--now", target_)
    return True


def _is_stopped(listed: list[Service]) -> bool:
    """Whether somebody stopped one; what was refused would be refused again."""
    said = [systemctl("is-active", f"{each.unit}.service", check=False).stdout for each in listed]
    return "inactive\n" in said


def restart(role: str, folder: Path = SYSTEM_FOLDER) -> None:
    """Start a role with the settings as they are now, also if it runs; and at every boot."""
    target_, _ = _named(role, folder)
    systemctl("enable", target_)
    systemctl("restart", target_)


def stop(role: str, folder: Path = SYSTEM_FOLDER) -> None:
    """Stop a role, now and at every boot."""
    target_, services = _named(role, folder)
    systemctl("disable", target_)
    # By name: systemctl does not wait for what stops with a target.
    systemctl("stop", target_, *services)


def look(role: str, folder: Path = SYSTEM_FOLDER) -> list[Unit]:
    """The services of a role, as systemd sees them."""
    start_again = f"zk0bot {role} start{option(folder)}"
    return [_unit(name, start_again) for name in units(role, name_of(folder))]


def _named(role: str, folder: Path) -> tuple[str, list[str]]:
    """A role's target and its services."""
    name = name_of(folder)
    return target(role, name), [f"{unit}.service" for unit in units(role, name)]


def _unit(name: str, start_again: str) -> Unit:
    said = systemctl("show", f"{name}.service", f"--property={_PROPERTIES}").stdout
    facts = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    todo = ""
    if facts["ActiveState"] == "failed":
        status = facts["ExecMainStatus"]
        todo = f"journalctl -u {name} says why it ended (status {status}); then restart it"
    elif facts["SubState"] == "auto-restart":
        todo = f"it keeps ending (status {facts['ExecMainStatus']}): journalctl -u {name} says why"
    elif facts["ActiveState"] not in ("active", "activating", "reloading"):
        todo = f"it does not run: {start_again}"
    return Unit(
        name,
        f"{facts['ActiveState']} ({facts['SubState']})",
        facts["ActiveEnterTimestamp"],
        int(facts["NRestarts"] or 0),
        facts["StatusText"],
        todo,
    )


def _is_enabled(target: str) -> bool:
    return systemctl("is-enabled", target, check=False).stdout.strip() == "enabled"
