"""Guests on a network of their own, and zk0d's units in them.

with Lab(ensure_image()) as lab:
    server = lab.guest("server")
    install_units(server, ["server"])
    server.systemctl("start", "zk0d-server.target")
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from tests.guests.environment import REPOSITORY, make_environment
from tests.guests.guest import Guest, wait_until
from tests.guests.image import ensure_image
from tests.guests.podman import CACHE, CommandError, Unavailable, podman

__all__ = [
    "CommandError",
    "Guest",
    "Lab",
    "Unavailable",
    "ensure_image",
    "install_units",
    "wait_until",
]

LABS = CACHE / "labs"
LABEL = "zk0d-lab"
FIRST_ADDRESS = 10
UNIT_SUFFIXES = (".service", ".socket", ".target", ".slice", ".timer", ".path", ".mount")


class Lab:
    """A network with guests; leaving it removes all, and entering removes what killed labs left."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.name = f"zk0d-lab-{secrets.token_hex(3)}"
        self.guests: list[Guest] = []
        self._lock = FileLock(LABS / self.name)  # held as long as this process lives
        self._folder = Path(tempfile.gettempdir()) / self.name
        self._made = 0

    def __enter__(self) -> Self:
        LABS.mkdir(parents=True, exist_ok=True)
        with FileLock(CACHE / "labs.lock"):
            _sweep()
            self._lock.acquire()
        try:
            self._environment = make_environment(self._folder)
            # one at a time: podman chooses the first subnet that is free
            with FileLock(CACHE / "labs.lock"):
                podman("network", "create", f"--label={LABEL}={self.name}", self.name)
            (network,) = json.loads(podman("network", "inspect", self.name).stdout)
            self._subnet = ipaddress.ip_network(network["subnets"][0]["subnet"])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the guests and the network."""
        _remove(self.name)
        self.guests.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release()
        (LABS / self.name).unlink(missing_ok=True)

    def guest(
        self,
        name: str,
        *,
        mounts: Mapping[Path, str] | None = None,
        environment: bool = True,
        start: bool = True,
        systemd: bool = True,
        image: str | None = None,
    ) -> Guest:
        """Make and boot a guest; the others reach it by its name. ``mounts`` come read-only.

        Without ``environment`` nothing of zk0d is in it, without ``systemd`` it is a container
        whose first process does nothing.
        """
        address = str(self._subnet[FIRST_ADDRESS + self._made])
        self._made += 1
        container = f"{self.name}-{name}"
        label = f"{LABEL}={self.name}"
        image = image or self.image
        guest = Guest(name, container, image, self.name, address, label, systemd=systemd)
        self.guests.append(guest)
        guest.create({**(self._environment if environment else {}), **(mounts or {})})
        if start:
            guest.start()
        return guest

    def remove(self, guest: Guest) -> None:
        guest.remove()
        self.guests.remove(guest)

    def report(self) -> list[tuple[str, str]]:
        """For each guest a title and what its systemd says: failed units, then the journal."""
        sections = []
        for guest in self.guests:
            if guest.is_running():
                failed = guest.systemctl("--failed", "--no-legend", "--plain", check=False).stdout
                text = f"{failed}\n{guest.journal(lines=150)}"
            else:
                text = "not running"
            sections.append((f"guest {guest.name}", text))
        return sections


def _remove(name: str) -> None:
    """Remove every container and network of a lab; goes on if one resists."""
    with contextlib.suppress(CommandError):
        found = podman("ps", "--all", "--quiet", f"--filter=label={LABEL}={name}").stdout.split()
        if found:
            podman("rm", "--force", "--ignore", "--volumes", "--time=2", *found, timeout=120)
    podman("network", "rm", "--force", name, check=False)


def _sweep() -> None:
    for path in LABS.iterdir():
        lock = FileLock(path)
        with contextlib.suppress(Timeout), lock.acquire(timeout=0):
            _remove(path.name)
            shutil.rmtree(Path(tempfile.gettempdir()) / path.name, ignore_errors=True)
            path.unlink(missing_ok=True)


def install_units(
    guest: Guest, roles: Iterable[str] = (), folder: Path = REPOSITORY / "systemd"
) -> list[str]:
    """Install the repository's units as a package would, and enable ``zk0d-ROLE.target``.

    Returns the units' names. Nothing is started; a role without a target is passed over.
    """
    targets: list[str] = []
    with tempfile.TemporaryDirectory() as stage:
        for path in sorted(folder.rglob("*")):
            # user/ is of those who are not root.
            is_roots = path.relative_to(folder).parts[0] != "user"
            if path.is_file() and is_roots and (target := _target(path)):
                targets.append(target)
                staged = Path(stage, target.lstrip("/"))
                staged.parent.mkdir(parents=True, exist_ok=True)
                staged.write_bytes(path.read_bytes())
        guest.copy_in(Path(stage))
    users = [target for target in targets if "/sysusers.d/" in target]
    files = [target for target in targets if "/tmpfiles.d/" in target]
    if users:
        guest.run(["systemd-sysusers", *users])
    if files:
        guest.run(["systemd-tmpfiles", "--create", *files])
    guest.systemctl("daemon-reload")
    units = [PurePosixPath(t).name for t in targets if t.endswith(UNIT_SUFFIXES)]
    for role in roles:
        if f"zk0d-{role}.target" in units:
            guest.systemctl("enable", f"zk0d-{role}.target")
    return units


def _target(path: Path) -> str:
    """Where a file of systemd/ goes; nothing for one that is no unit."""
    parent = path.parent.name
    if path.suffix in UNIT_SUFFIXES:
        return f"/usr/lib/systemd/system/{path.name}"
    if path.suffix == ".conf" and parent in ("sysusers.d", "tmpfiles.d"):
        return f"/usr/lib/{parent}/{path.name}"
    if path.suffix == ".conf" and parent.endswith(tuple(f"{s}.d" for s in UNIT_SUFFIXES)):
        return f"/usr/lib/systemd/system/{parent}/{path.name}"
    return ""
