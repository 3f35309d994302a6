"""What each of several contributors has to itself: ports and users."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.daemon.ports import require_free_port
from zk0d.errors import ConfigError, UnavailableError
from zk0d.files import write_file
from zk0d.machine import contributors
from zk0d.machine.rights import writing
from zk0d.machine.roles import SERVICES, Role, service

#: Ports of contributors with names: three in a row for each.
FIRST_PORT, LAST_PORT = 9500, 9799
EACH = 3
ACCOUNTS = Path("/etc/sysusers.d")


def port_settings(root: Path) -> dict[str, dict[str, int]]:
    """Ports that no contributor beneath ``root`` has and nothing listens on, as settings.

    Raises
    ------
    UnavailableError
        If there are none.
    """
    taken = {port for _, _, port in _named_ports(root)}
    for first in range(FIRST_PORT, LAST_PORT, EACH):
        ports = range(first, first + EACH)
        if not taken.intersection(ports) and all(map(_is_free, ports)):
            return {
                "supernode": {"port": ports[0], "metrics-port": ports[1]},
                "superexec": {"metrics-port": ports[2]},
            }
    raise UnavailableError(
        f"no three ports from {FIRST_PORT} to {LAST_PORT} are free for one more contributor; end"
        " what listens there."
    )


def check_ports(folder: Path) -> None:
    """Refuse a contributor one of whose ports another one of this machine has, too.

    Parameters
    ----------
    folder
        Of its settings.

    Raises
    ------
    ConfigError
        Naming both settings.
    """
    mine = folder / "client.toml"
    named = list(_named_ports(contributors.root_of(folder)))
    own = {port: key for path, key, port in named if path == mine}
    for path, key, port in named:
        if path != mine and port in own:
            raise ConfigError(
                f"{mine}: {own[port]}: {port} is also {key} of {path}; set another number."
            )


def _named_ports(root: Path) -> Iterator[tuple[Path, str, int]]:
    """File, key and number of each port that settings beneath ``root`` name."""
    for path in (root / "server.toml", root / "client.toml"):
        yield from _ports_of(path)
    for name in contributors.names(root):
        yield from _ports_of(contributors.home(root, name) / "client.toml")


def _ports_of(path: Path) -> Iterator[tuple[Path, str, int]]:
    if not path.exists():
        return
    with contextlib.suppress(ConfigError):  # of another, who has to mend it
        if path.name == "server.toml":
            server = ServerSettings.load(path)
            yield path, "superlink.port", server.superlink.port
            yield path, "superlink.presence-port", server.superlink.presence_port
            yield path, "gateway.port", server.gateway.port
            ports = server.metrics_ports
        else:
            client = ClientSettings.load(path)
            yield path, "supernode.port", client.supernode.port
            ports = client.metrics_ports
        for name, port in ports.items():
            table = "superexec" if name.endswith("superexec") else name
            yield path, f"{table}.metrics-port", port


def _is_free(port: int) -> bool:
    try:
        require_free_port(port, "")
    except UnavailableError:
        return False
    return True


def accounts(name: str) -> str:
    """A file of sysusers.d with the users of a contributor."""
    lines = [f"# Users of the contributor {name} of this machine. Written by zk0bot."]
    users: dict[str, str] = {}
    for each in SERVICES:
        if Role.CLIENT in each.roles:
            users.setdefault(each.user_of(name), each.name)
    lines += [f'u {user} - "zk0d {what} of {name}" /var/lib/zk0d' for user, what in users.items()]
    learner, fetch = (service(each).user_of(name) for each in ("learner", "fetch"))
    lines.append(f"# The learner reads the downloads.\nm {learner} {fetch}")
    return "\n".join(lines) + "\n"


def accounts_file(name: str) -> Path:
    """Where it lies: the system makes such users at each boot, too."""
    return ACCOUNTS / f"zk0d-client-{name}.conf"


def make_users(name: str) -> None:
    """Make the users of a contributor whose services systemd runs.

    Raises
    ------
    TryAgainError
        If the file cannot be written.
    UnavailableError
        If systemd-sysusers fails.
    """
    path = accounts_file(name)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, accounts(name))
        path.chmod(0o644)
    if shutil.which("systemd-sysusers") is None:
        return  # a system that systemd does not run needs none
    said = subprocess.run(
        ["systemd-sysusers", str(path)], capture_output=True, text=True, check=False
    )
    if said.returncode:
        raise UnavailableError(f"systemd-sysusers {path}: {said.stderr.strip()}")
