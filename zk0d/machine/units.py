"""The services of this host, by systemd, or by the foreground supervisor where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0d.machine.roles import Role, target, units

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
    return has_systemd() and folder.absolute() == SYSTEM_FOLDER


def systemctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run systemctl; raises :class:`UnavailableError` with what it says if it fails."""
    from zk0d.errors import UnavailableError

    said = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if check and said.returncode:
        raise UnavailableError(f"systemctl {' '.join(arguments)}: {said.stderr.strip()}")
    return said


def write_drop_in(unit: str, name: str, why: str, lines: list[str]) -> bool:
    """Add directives of the ``[Service]`` section to a unit, or with none take them back.

    Whether something changed; systemd has then read it.
    """
    from zk0d.errors import TryAgainError
    from zk0d.files import make_folder, write_file

    path = Path(f"/etc/systemd/system/{unit}.d/{name}.conf")
    text = "\n".join([f"# Written by zk0bot: {why}.", "[Service]", *lines, ""]) if lines else ""
    try:
        if text == (path.read_text(encoding="utf-8") if path.exists() else ""):
            return False
        if text:
            make_folder(path.parent)
            write_file(path, text)
        else:
            path.unlink()
    except OSError as error:
        raise TryAgainError(
            f"{path}: cannot be written ({error.strerror or error}); are you root?"
        ) from None
    systemctl("daemon-reload")
    return True


def enabled_roles() -> list[str]:
    """The roles whose target is enabled."""
    return [role for role in Role if _is_enabled(target(role))]


def runs_at_every_boot(role: str) -> bool:
    """Whether the role's target is enabled, and it and each of its services run now."""
    names = [target(role), *(f"{name}.service" for name in units(role))]
    runs = systemctl("is-active", *names, check=False).stdout.split() == ["active"] * len(names)
    return runs and _is_enabled(target(role))


def look(role: str) -> list[Unit]:
    """The services of a role, as systemd sees them."""
    return [_unit(role, name) for name in units(role)]


def look_foreground(role: str, state: Path) -> list[Unit]:
    """The same as the foreground supervisor wrote it; empty if none runs."""
    content = read_json(state / "services.json")
    if not content or not _is_alive(int(content["pid"])):
        return []
    return [
        Unit(
            service["name"],
            service["state"],
            content["since"],
            service["restarts"],
            service["status"],
            ""
            if service["state"] == "running"
            else f"see what it wrote where zk0bot {role} start runs",
        )
        for service in content["services"]
    ]


def read_json(path: Path) -> dict[str, Any]:
    """A small file that a service wrote; empty if it is not there or may not be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def state_folder(role: str, folder: Path) -> Path:
    """Where a role's first service keeps its state."""
    from zk0d.config.machine import ClientSettings, ServerSettings

    path = folder / f"{role}.toml"
    if role == "server":
        return ServerSettings.load(path).superlink.state
    return ClientSettings.load(path).supernode.state


def _unit(role: str, name: str) -> Unit:
    said = systemctl("show", f"{name}.service", f"--property={_PROPERTIES}").stdout
    facts = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    todo = ""
    if facts["ActiveState"] == "failed":
        status = facts["ExecMainStatus"]
        todo = f"journalctl -u {name} says why it ended (status {status}); then start it again"
    elif facts["SubState"] == "auto-restart":
        todo = f"it keeps ending (status {facts['ExecMainStatus']}): journalctl -u {name} says why"
    elif facts["ActiveState"] not in ("active", "activating", "reloading"):
        todo = f"it does not run: zk0bot {role} start"
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


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
