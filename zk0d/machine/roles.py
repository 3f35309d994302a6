"""What runs on a machine: the one table of services.

A new service is a row here, a module with ``run`` in ``zk0d.services`` and a unit in ``systemd``.
``python -m zk0d.machine.roles`` then writes the other files that name services.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from zk0d.config.ports import METRICS_PORTS
from zk0d.daemon.environment import program_path


class Role(StrEnum):
    """What a machine is."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True)
class Service:
    """A service, or what a timer or a person starts.

    Parameters
    ----------
    name
        In logs, metrics and the foreground.
    unit, user
        By systemd.
    start, option
        What starts it, and with which settings.
    process
        What the command line of the process that does its work has, if that is another program.
    first, every
        Of what ends by itself: seconds until its first start, and from an end to the next. 0 is a
        service that runs all the time.
    once
        Whether its work is done when it has started, and undone when it is stopped. No process of
        it stays, its refusal stops no other service, and only systemd starts it.
    starts_within, watchdog
        Seconds that a service has to say that it is ready, and in which it has to show progress; 0
        for one that says neither.
    """

    name: str
    roles: tuple[Role, ...]
    unit: str
    user: str
    start: str
    text: str
    process: str = ""
    first: float = 0.0
    every: float = 0.0
    once: bool = False
    starts_within: float = 0.0
    watchdog: float = 0.0
    option: str = "--config {file}"

    @property
    def metrics(self) -> int:
        """Its metrics' port where the settings name no other; 0 for none."""
        return METRICS_PORTS.get(self.name, 0)

    def unit_of(self, contributor: str) -> str:
        """The unit of one of several contributors; the plain one without a name."""
        return instance(self.unit, contributor)

    def user_of(self, contributor: str) -> str:
        """The user of one of several contributors."""
        return f"{self.user}-{contributor}" if contributor else self.user

    @property
    def verb(self) -> list[str]:
        """What follows ``zk0d``; empty if it is another program."""
        program, *words = self.start.split()
        return words if program == "zk0d" else []

    def argv(self, role: str, file: Path) -> tuple[str, ...]:
        """How it is started with a role's settings file."""
        program, *words = f"{self.start} {self.option}".split()
        given = {"role": role, "file": file, "folder": file.parent}
        return (program_path(program), *(word.format(**given) for word in words))

    def runs_as(self, command_line: str) -> bool:
        """Whether a process with this command line is one of its own."""
        either = [re.escape(part) for part in (self.start, self.process) if part]
        return re.search(rf"(^|/|\s)({'|'.join(either)})(:|\s|$)", command_line) is not None


_SERVER, _CLIENT = (Role.SERVER,), (Role.CLIENT,)
_ONE_SIDE = "start the installed apps of one side"
# fmt: off
SERVICES = (
    Service("gateway", _SERVER, "zk0d-gateway", "zk0d-gateway", "nginx",
            "let nodes reach the SuperLink"),
    Service("superlink", _SERVER, "zk0d-server", "zk0d-link", "zk0d superlink",
            "the coordinator's SuperLink", process="zk0d.flower.superlink",
            starts_within=90, watchdog=60),
    Service("server-superexec", _SERVER, "zk0d-server-superexec", "zk0d-app",
            "zk0d superexec server", _ONE_SIDE, process="zk0d.flower.superexec",
            starts_within=90, watchdog=60),
    Service("evaluator", _SERVER, "zk0d-evaluator", "zk0d-learner", "zk0d evaluator",
            "evaluate beside the coordinator", starts_within=180, watchdog=180),
    Service("supernode", _CLIENT, "zk0d-client", "zk0d-node", "zk0d supernode",
            "this machine's SuperNode", process="zk0d.flower.supernode",
            starts_within=90, watchdog=90),
    Service("client-superexec", _CLIENT, "zk0d-client-superexec", "zk0d-app",
            "zk0d superexec client", _ONE_SIDE, process="zk0d.flower.superexec",
            starts_within=90, watchdog=60),
    Service("learner", _CLIENT, "zk0d-learner", "zk0d-learner", "zk0d learner",
            "train on this machine's recordings", starts_within=180, watchdog=180),
    Service("owner", _CLIENT, "zk0d-owner", "zk0d-owner", "zk0d owner",
            "look whether the owner needs this machine", starts_within=90, watchdog=60),
    Service("gpu-power", _CLIENT, "zk0d-gpu-power", "root", "zk0d gpu-power",
            "set the power limit of the learner's GPU", once=True),
    Service("fetch", (*_SERVER, *_CLIENT), "zk0d-fetch", "zk0d-fetch", "zk0d fetch",
            "download the settings' datasets and models from the hub", option="--{role} {file}",
            every=float("inf")),
    Service("policy-updates", _CLIENT, "zk0d-policy-updates", "zk0d-node", "zk0d policy-updates",
            "fetch the coordinator's newest release, once", first=300.0, every=1800.0),
    Service("renew", _SERVER, "zk0d-renew", "root", "zk0bot server renew",
            "renew the gateway's certificate", option="--folder {folder}", every=86400.0),
    Service("publish", _SERVER, "zk0d-publish", "zk0d-publish", "zk0d publish",
            "send checkpoints and figures out, once", first=120.0, every=300.0),
)
# fmt: on


def service(name: str) -> Service:
    """The service of this name."""
    return next(each for each in SERVICES if each.name == name)


def services(role: str) -> list[Service]:
    """What runs all the time on a machine of a role."""
    return [each for each in SERVICES if role in each.roles and not (each.every or each.once)]


def once(role: str) -> list[Service]:
    """What does its work at the start of a role and undoes it at the end."""
    return [each for each in SERVICES if role in each.roles and each.once]


def scraped(role: str) -> list[Service]:
    """Those of them that show metrics at a port of their own."""
    return [each for each in services(role) if each.metrics]


def instance(unit: str, contributor: str) -> str:
    """A unit of one of several contributors; the plain one without a name."""
    name, dot, kind = unit.partition(".")
    return f"{name}@{contributor}{dot}{kind}" if contributor else unit


def units(role: str, contributor: str = "") -> tuple[str, ...]:
    """What a role's target starts, by systemd's names."""
    # What is started once is for the machine, which its contributors share.
    shared = [] if contributor else once(role)
    return tuple(each.unit_of(contributor) for each in (*services(role), *shared))


def target(role: str, contributor: str = "") -> str:
    """The unit that brings all of a role."""
    return instance(f"zk0d-{role}.target", contributor)


def files(repository: Path) -> Mapping[Path, str]:
    """The other files that name services, as they have to be, and what a dataset may be called."""
    from zk0d.config.names import DATASET_PATTERN  # loads pydantic
    from zk0d.machine import contributors, templates

    systemd, ansible = repository / "systemd", repository / "ansible/roles"
    made, jobs = {}, []
    for role in Role:
        members = [
            name
            for each in SERVICES
            for name in (f"{each.unit}.service", f"{each.unit}.socket", f"{each.unit}.timer")
            if (systemd / name).exists()
            and f"WantedBy={target(role)}" in (systemd / name).read_text()
        ]
        path = systemd / target(role)
        made[path] = re.sub(r"(?m)^Also=.*", f"Also={' '.join(members)}", path.read_text())
        vars_ = ansible / f"zk0d_{role}/vars/main/services.yml"
        made[vars_] = _HEAD + "".join(
            f"zk0d_{role}_{name}: [{', '.join(f'{each.unit}.service' for each in listed)}]\n"
            for name, listed in (
                ("services", [each for each in services(role) if each.verb]),
                ("once", once(role)),
                ("scraped", scraped(role)),
            )
            if listed
        )
        if role is Role.CLIENT:
            patterns = {"dataset": DATASET_PATTERN, "contributor": contributors.NAME.pattern}
            for name, pattern in patterns.items():
                made[vars_] += f"zk0d_client_{name}_pattern: '(?:{pattern})\\Z'\n"
        ports = ", ".join(str(each.metrics) for each in scraped(role))
        jobs.append(f"  - {{job: zk0d-{role}, role: {role}, ports: [{ports}]}}\n")
    made[ansible / "monitoring/vars/main.yml"] = f"{_HEAD}monitoring_jobs:\n{''.join(jobs)}"
    for path in (*map(systemd.joinpath, templates.PLAIN), systemd / "user/zk0d-client.service"):
        if path.exists():
            text = made[path] if path in made else path.read_text(encoding="utf-8")
            made[path.with_stem(f"{path.stem}@")] = templates.template(path.name, text)
    own = systemd / "user/zk0d-client.service.d/10-home.conf"
    made[systemd / "user/zk0d-client@.service.d" / own.name] = templates.template(
        f"{own.parent.name}/{own.name}", own.read_text(encoding="utf-8")
    )
    return made


_HEAD = "# Made from the table in zk0d/machine/roles.py by make reference.\n---\n"

if __name__ == "__main__":
    for path, text in files(Path()).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
