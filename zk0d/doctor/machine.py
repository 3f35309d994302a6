"""Rules about the machine, whatever its role."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path

from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.config.names import POLICY_PARTS
from zk0d.daemon.ports import require_free_port
from zk0d.doctor.finding import Host, Unchecked, Wrong, in_one_line, rule
from zk0d.errors import ConfigError, UnavailableError
from zk0d.learning import backbones
from zk0d.machine.roles import Service, service

GIB = 2**30
LEAST_DISK, LEAST_MEMORY = 5 * GIB, 4 * GIB
OLDEST_PYTHON = (3, 12)
MOST_EXPOSED = 2.0
COMMAND_SECONDS = 30.0
UNIT_KINDS = (".service", ".socket", ".target", ".slice")
_NAMED = ("flwr", "lerobot", "torch")  #: said even if nothing is wrong
_LISTENS = "0A"

#: A port's setting, its number, and the service whose it is.
PortUse = tuple[str, int, Service]


@rule("python")
def python(version: tuple[int, ...] = sys.version_info[:3]) -> str:
    """The interpreter is new enough."""
    said = f"{'.'.join(map(str, version))} ({sys.executable})"
    if version < OLDEST_PYTHON:
        raise Wrong(
            f"Python is older than {'.'.join(map(str, OLDEST_PYTHON))}.",
            said,
            "install Python 3.12 or 3.13, then zk0d again with it",
        )
    return said


@rule("python-path")
def python_path(environment: Mapping[str, str] = os.environ) -> str:
    """What the caller's shell and home hold does not come before the packages of zk0d."""
    names = ("PYTHONPATH", "PYTHONHOME")
    counts = [f"{name}={environment[name]}" for name in names if environment.get(name)]
    own = site.getusersitepackages()
    if site.ENABLE_USER_SITE and os.path.isdir(own):
        counts.append(own)
    if counts:
        raise Wrong(
            "other packages may come before those of zk0d.",
            "; ".join(counts),
            "start the program zk0bot itself, which ignores them",
        )
    # bin/zk0bot tells what it took away.
    ignored = [
        f"{name}={value}" for name in names if (value := environment.get(f"ZK0D_IGNORED_{name}"))
    ]
    if os.path.isdir(own):
        ignored.append(own)
    return f"ignored: {'; '.join(ignored)}" if ignored else "no PYTHONPATH, no packages in the home"


@rule("packages")
def packages(installed: Callable[[str], str] = metadata.version) -> str:
    """Every package that zk0d stands on is there, in a version that it works with."""
    from packaging.requirements import Requirement

    try:
        wanted = metadata.requires("zk0d") or []
    except metadata.PackageNotFoundError:
        raise Unchecked("zk0d is not installed as a package") from None
    wrong, named = [], []
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = installed(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed ({requirement.specifier} is needed)")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is installed, not {requirement.specifier}")
        if requirement.name in _NAMED:
            named.append(f"{requirement.name} {found}")
    if wrong:
        raise Wrong(
            "packages that zk0d needs are missing or have another version.",
            "; ".join(wrong),
            "install zk0d again with its constraints file: pip install -c constraints.txt zk0d",
        )
    return ", ".join(sorted(named))


@rule("memory")
def memory(facts: Path = Path("/proc/meminfo")) -> str:
    """There is enough memory for a policy."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", facts.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise Unchecked(f"{facts} does not say how much there is")
    total = int(found[1]) * 1024
    said = f"{total / GIB:.1f} GiB in all"
    if total < LEAST_MEMORY:
        raise Wrong(
            "this machine has too little memory for a policy.",
            said,
            f"give it {LEAST_MEMORY // GIB} GiB or more",
        )
    return said


@rule("clock")
def clock(host: Host) -> str:
    """The clock is set from outside; a signature is judged by it."""
    if not host.systemd:
        raise Unchecked("systemd does not run here, so it is not known whether the clock is set")
    said = ask("timedatectl", "show", "-p", "NTPSynchronized").stdout.strip()
    if said == "NTPSynchronized=no":
        raise Wrong(
            "this machine's clock is not synchronized; the coordinator refuses a wrong clock.",
            said,
            "timedatectl set-ntp true; without a time service install systemd-timesyncd",
        )
    if said != "NTPSynchronized=yes":
        raise Unchecked("timedatectl does not say whether the clock is synchronized")
    return said


@rule("units")
def units(host: Host, roles: Iterable[str]) -> str:
    """The units are those that were shipped; changes are drop-ins."""
    _require_systemd(host)
    wanted = [f"{name}.service" for role in roles for name in host.services[role]]
    # One of several contributors has its units from a template.
    files = [re.sub(r"@[^.]*", "@", name) for name in wanted]
    missing = [name for name in files if not (host.shipped / name).is_file()]
    copies = [
        path
        for path in sorted(host.changed.glob("zk0d*"))
        if path.suffix in UNIT_KINDS and not _is_within(path, host.shipped)
    ]
    if copies:
        raise Wrong(
            f"{copies[0]} replaces the unit of that name in {host.shipped}.",
            ", ".join(f"{path} (masked)" if _is_masked(path) else str(path) for path in copies),
            f"write your changes with systemctl edit {copies[0].name}, then remove that file"
            " and run systemctl daemon-reload",
        )
    if missing:
        raise Wrong(
            f"{missing[0]} is not installed.",
            f"{host.shipped} lacks {', '.join(missing)}",
            f"copy zk0d's units to {host.shipped} and run systemctl daemon-reload",
        )
    return f"{len(wanted)} services as shipped in {host.shipped}"


@rule("exposure")
def exposure(host: Host, roles: Iterable[str]) -> str:
    """No drop-in opened a service's sandbox."""
    _require_systemd(host)
    measured: dict[str, float] = {}
    for name in (f"{name}.service" for role in roles for name in host.services[role]):
        said = ask("systemd-analyze", "security", "--no-pager", name)
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said.stdout)
        if found is None:
            raise Unchecked(
                f"systemd-analyze does not judge {name} ({in_one_line(said.stderr) or 'silent'})"
            )
        measured[name] = float(found[1])
    said_all = ", ".join(f"{name} {value}" for name, value in measured.items())
    worst = max(measured, key=lambda name: measured[name])
    if measured[worst] > MOST_EXPOSED:
        raise Wrong(
            f"{worst} is exposed more than zk0d's own unit (at most {MOST_EXPOSED} of 10).",
            said_all,
            f"systemctl cat {worst} shows the drop-in that loosens it; remove what you do not need",
        )
    return said_all


@rule("disk")
def disk(state: Path) -> str:
    """There is room where the state is kept."""
    there = next(at for at in (state, *state.absolute().parents) if os.path.exists(at))
    free = shutil.disk_usage(there).free
    said = f"{free / GIB:.1f} GiB free at {there}"
    if free < LEAST_DISK:
        raise Wrong(
            f"the disk under {state} is nearly full.",
            said,
            f"free {LEAST_DISK // GIB} GiB or more, or move the state folder to another disk",
        )
    return said


def port_uses(settings: ClientSettings | ServerSettings) -> list[PortUse]:
    """The ports that the services of a role open."""
    if isinstance(settings, ServerSettings):
        link = settings.superlink
        uses = [
            ("superlink.port", link.port, service("superlink")),
            ("superlink.presence-port", link.presence_port, service("superlink")),
            ("gateway.port", settings.gateway.port, service("gateway")),
        ]
    else:
        uses = [("supernode.port", settings.supernode.port, service("supernode"))]
    return uses + [
        (f"metrics of {name}", port, service(name)) for name, port in settings.metrics_ports.items()
    ]


@rule("ports")
def ports(uses: Iterable[PortUse], processes: Path = Path("/proc")) -> str:
    """Each port is free, or held by the service that it is for."""
    said, unknown = [], []
    for key, port, rightful in uses:
        try:
            require_free_port(port, key)
        except UnavailableError:
            holder = _holder(port, processes)
        else:
            said.append(f"{key} {port} is free")
            continue
        if holder is None:
            unknown.append(f"only root sees the program that holds {key} {port}")
        elif rightful.runs_as(holder[1]):
            said.append(f"{key} {port} is held by our service")
        else:
            # Not its command line, which may hold somebody's secret.
            program = Path(holder[1].split(" ")[0]).name
            raise Wrong(
                f"{key}: 127.0.0.1:{port} is held by another program.",
                f"{program}, process {holder[0]}, listens there",
                "end that program, or set another port"
                if key.endswith("port")
                else "end that program, set another metrics-port, or metrics.enabled to false",
            )
    if unknown:
        raise Unchecked("; ".join(unknown))
    return ", ".join(said)


@rule("secrets")
def secrets(host: Host, files: Mapping[str, Path]) -> str:
    """Keys and secrets are there, and their owner's alone; their content is not looked at."""
    owners = {0} if host.systemd else {0, os.geteuid()}
    for key, path in files.items():
        try:
            facts = path.stat()
        except FileNotFoundError:
            raise Wrong(
                f"{key}: {path} is missing.",
                "there is no such file",
                "zk0bot server init or zk0bot client init makes missing files, keeps others",
            ) from None
        if not facts.st_size:
            raise Wrong(
                f"{key}: {path} is empty.",
                "it has 0 bytes",
                f"remove {path}; zk0bot server init or zk0bot client init makes it again",
            )
        if facts.st_mode & 0o077:
            raise Wrong(
                f"{key}: {path} can be read by other users than its owner.",
                f"its mode is {facts.st_mode & 0o7777:04o}, not 0600",
                f"chmod 600 {path}",
            )
        if facts.st_uid not in owners:
            raise Wrong(
                f"{key}: {path} belongs to another user.",
                f"its owner is user {facts.st_uid}",
                f"chown root:root {path}" if host.systemd else f"chown {os.geteuid()} {path}",
            )
    return f"{', '.join(str(path) for path in files.values())}: mode 0600"


@rule("models")
def models(
    host: Host, mapped: Mapping[str, Path], fetched: Iterable[str], cache: Path | None = None
) -> str:
    """The base models are on this machine, which does not ask the hub while it trains."""
    said, fetched = [], list(fetched)
    for name, folder in mapped.items():
        at = Path(folder).expanduser()
        lacks = [file for file in POLICY_PARTS if not (at / file).is_file()]
        if lacks:
            raise Wrong(
                f"models.{name}: {at} holds no whole model.",
                f"{lacks[0]} is missing there",
                f"give models.{name} the folder that holds config.json and the weights",
            )
        said.append(f"{name} in {at}")
    wanted = [name for name in fetched if name not in mapped and name.count("/") == 1]
    if wanted:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.constants import HF_HUB_CACHE

        if cache is None:
            own = host.systemd and "HF_HUB_CACHE" not in os.environ
            cache = host.hub / "models" if own else Path(HF_HUB_CACHE)
        for name in wanted:
            found = try_to_load_from_cache(name, "config.json", cache_dir=cache)
            if not isinstance(found, str) or not any(Path(found).parent.glob("*.safetensors")):
                raise Wrong(
                    f"fetch-models: {name} is not on this machine.",
                    f"{cache} holds no config.json with weights of it",
                    f"fetch it: {fetch_command(host)}; or map it to a folder under [models]",
                )
            said.append(f"{name} in {cache}")
    for name in backbones.URLS.keys() & set(fetched) - mapped.keys():
        own = host.systemd and "TORCH_HOME" not in os.environ
        file = backbones.path(name, host.hub / "torch" if own else None)
        if not backbones.is_whole(file, name):
            raise Wrong(
                f"fetch-models: {name} is not on this machine.",
                f"{file} is missing or not whole",
                f"fetch it: {fetch_command(host)}",
            )
        said.append(f"{name} in {file.parent}")
    return ", ".join(said) or "no model is named"


@rule("settings")
def settings(path: Path, model: type[ClientSettings] | type[ServerSettings]) -> str:
    """The settings file can be read, and every key in it is right."""
    role = path.stem
    if not path.exists():
        raise Wrong(f"{path} is missing.", "there is no such file", f"zk0bot {role} init makes it")
    try:
        model.load(path)
    except ConfigError as error:
        if not os.access(path, os.R_OK):
            raise Unchecked(error.message) from None
        raise Wrong(
            f"{path} cannot be used.",
            error.message,
            f"correct it; zk0bot config check {role} checks again, docs/settings.md has every key",
        ) from None
    return f"{path} is valid"


def fetch_command(host: Host) -> str:
    """What downloads what the settings name."""
    return f"systemctl start {host.fetch}" if host.systemd else "zk0d fetch"


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the system; raises :class:`Unchecked` if it is not there or is silent."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
        )
    except FileNotFoundError:
        raise Unchecked(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Unchecked(f"{command[0]} did not answer in {COMMAND_SECONDS:.0f} s") from None


def _require_systemd(host: Host) -> None:
    if not host.systemd:
        raise Unchecked("systemd does not run here")


def _is_within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _is_masked(path: Path) -> bool:
    return path.resolve() == Path("/dev/null")


def _holder(port: int, processes: Path) -> tuple[str, str] | None:
    """Number and command line of the process that listens at a port; ``None`` if it cannot be
    seen.
    """
    sockets = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (processes / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[3] == _LISTENS and int(words[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{words[9]}]")
    for process in processes.iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(os.readlink(handle) in sockets for handle in (process / "fd").iterdir()):
                typed = (process / "cmdline").read_bytes().rstrip(b"\0")
                return process.name, typed.replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # another user's, or it ended
            continue
    return None
