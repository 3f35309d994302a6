"""podman as these tests need it: installed, configured for this host, and called."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zk0d-tests"
PACKAGES = ("podman", "runc", "netavark", "aardvark-dns", "iptables", "debootstrap")
CONFIGURATION = CACHE / "containers.conf"


class Unavailable(Exception):
    """This host cannot boot guests; one line that says why."""


class CommandError(Exception):
    """A command failed, on the host or in a guest."""


def call(
    command: Sequence[str],
    *,
    check: bool = True,
    timeout: float = 60,
    text: str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command on the host; ``text`` is its standard input."""
    done = subprocess.run(
        list(command),
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        input=text or "",
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
    )
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise CommandError(f"{' '.join(command)}: exit code {done.returncode}\n{said}")
    return done


def podman(
    *arguments: str, check: bool = True, timeout: float = 60, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run podman with our configuration."""
    env = {"CONTAINERS_CONF": str(CONFIGURATION)}
    return call(["podman", *arguments], check=check, timeout=timeout, text=text, env=env)


def prepare_host() -> None:
    """Install what is missing and configure podman; ``Unavailable`` where that cannot be."""
    if os.geteuid() != 0:
        raise Unavailable("guests need root: systemd in a container mounts cgroups")
    if platform.freedesktop_os_release().get("ID") != "debian" or not shutil.which("apt-get"):
        raise Unavailable("guests need a Debian host: podman and debootstrap are installed by apt")
    missing = [name for name in PACKAGES if not _is_installed(name)]
    if missing:
        _install(missing)
    CACHE.mkdir(parents=True, exist_ok=True)
    CONFIGURATION.write_text(_configuration(), encoding="utf-8")


def _is_installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return call(query, check=False).stdout == "installed"


def _install(packages: Sequence[str]) -> None:
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if call(install, check=False, timeout=600, env=env).returncode == 0:
        return
    call(["apt-get", "update"], check=False, timeout=300, env=env)
    done = call(install, check=False, timeout=600, env=env)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"apt cannot install {' '.join(packages)}: {last}")


def _configuration() -> str:
    """runc, because crun 1.8 refuses a host with both cgroup versions; limits that we may set."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, processes = resource.getrlimit(resource.RLIMIT_NPROC)
    files = 1048576 if files == resource.RLIM_INFINITY else files
    processes = 32768 if processes == resource.RLIM_INFINITY else min(processes, 32768)
    return f"""\
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""
