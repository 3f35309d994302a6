"""The services as real processes on loopback, with a real nginx as the gateway."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.processes import wait_until, words_of
from tests.services.listener import NotifyListener
from zk0d.config.machine import ServerSettings
from zk0d.daemon.child import Child, stop_all
from zk0d.daemon.environment import child_environment
from zk0d.demo.federation import _free_ports
from zk0d.flower.control import Control
from zk0d.machine.certificates import Certificates
from zk0d.machine.gateway import configuration
from zk0d.machine.setup import set_up_client, set_up_server

#: A test gains nothing from SuperExecs that look for work more often.
SLOW_POLL = {"poll-interval": 0.5}
#: ``zk0d`` with other numbers in its modules, where the real ones have a test wait for a minute.
WITH_CONSTANTS = """\
import importlib, json, sys
for name, value in json.loads(sys.argv.pop(1)).items():
    module, _, constant = name.rpartition(".")
    module = importlib.import_module(module)
    assert hasattr(module, constant), name
    setattr(module, constant, value)
from zk0d.services.main import main
main()
"""


def nginx() -> str | None:
    """nginx's program; installed if this is Debian and we are root."""
    if not shutil.which("nginx", path="/usr/sbin:/usr/bin") and os.geteuid() == 0:
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "nginx-light"],
            capture_output=True,
        )
    return shutil.which("nginx", path="/usr/sbin:/usr/bin")


#: Where the programs of each side are; other folders than ours for another Flower on one side.
OURS = str(Path(sys.executable).parent)
COORDINATORS = Path(os.environ.get("ZK0D_COORDINATORS_PROGRAMS", OURS))
NODES = Path(os.environ.get("ZK0D_NODES_PROGRAMS", OURS))


@dataclass
class Running:
    """One service and what it told its notify socket."""

    child: Child
    told: NotifyListener


@dataclass
class Lab:
    """A folder with settings, keys and running services."""

    root: Path
    recordings: Path
    services: dict[str, Running] = field(default_factory=dict)
    others: list[Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.link, self.presence, self.gateway = _free_ports(3)
        self.server_toml, tls = self.root / "server.toml", self.root / "tls"
        set_up_server(
            self.root,
            [],
            {
                "state": self.root / "server",
                "metrics": {"enabled": False},
                "superlink": {
                    "port": self.link,
                    "presence-port": self.presence,
                    "state": self.root / "superlink",
                },
                "gateway": {"port": self.gateway},
                # However small a policy is, nothing of it travels inside the messages.
                "transfer": {"message-kib": 0},
                "superexec": {"state": self.root / "server-exec", **SLOW_POLL},
                "evaluator": {"socket": self.root / "evaluator.sock", "cpu-threads": 1},
                "evaluation": [{"name": "held-out", "dataset-uri": f"local:{self.recordings}"}],
            },
        )
        self.certificates = Certificates(tls / "ca.crt", tls / "server.crt", tls / "server.key")

    def control(self) -> Control:
        return Control(f"127.0.0.1:{self.link}", self.certificates.ca, self.root / "control.secret")

    def add_node(self, name: str, *, enrolled: bool = True) -> Path:
        """Settings and keys of a node; its settings file."""
        home = self.root / name
        (port,) = _free_ports(1)
        set_up_client(
            home,
            name,
            f"127.0.0.1:{self.gateway}",
            self.certificates.ca.read_bytes(),
            {
                "dataset-uri": f"local:{self.recordings}",
                "metrics": {"enabled": False},
                "supernode": {
                    "port": port,
                    "state": home / "supernode",
                    "presence-interval": 1.0,
                },
                "superexec": {"state": home / "exec", **SLOW_POLL},
                "learner": {
                    "socket": home / "learner.sock",
                    "state": home / "learner",
                    "cpu-threads": 1,
                },
            },
        )
        if enrolled:
            shutil.copy(home / "node.pub", self.root / "roster.d" / f"{name}.pub")
        return home / "client.toml"

    def start(
        self,
        name: str,
        *arguments: str,
        watchdog: float = 0.0,
        constants: Mapping[str, float] = {},
    ) -> Running:
        """Start ``zk0d ARGUMENTS`` as systemd would; ``constants`` are numbers of its modules."""
        told = NotifyListener(self.root / f"{name}.notify")
        more = {"WATCHDOG_USEC": str(int(watchdog * 1e6))} if watchdog else {}
        environment = child_environment(NOTIFY_SOCKET=str(told.path), HF_HUB_OFFLINE="1", **more)
        programs = COORDINATORS if str(self.server_toml) in arguments else NODES
        program = [str(programs / "zk0d")]
        if constants:
            program = [str(programs / "python"), "-c", WITH_CONSTANTS, json.dumps(dict(constants))]
        child = Child(
            name,
            [*program, *arguments],
            environment,
            self.root / f"{name}.log",
            self.root,
        )
        running = self.services[name] = Running(child, told)
        return running

    def start_gateway(self, *, carries: bool = True) -> Child:
        """The real nginx with the configuration that zk0bot writes."""
        config = self.root / "nginx.conf"
        # As in the system's unit, its workers are the user who starts it.
        user = "user root;\n" if os.geteuid() == 0 else ""
        config.write_text(
            user
            + configuration(
                ServerSettings.load(self.server_toml),
                certificate=self.certificates.certificate,
                key=self.certificates.key,
                ca=self.certificates.ca,
                runtime=self.root,
                carries=carries,
                log=str(self.root / "access.log"),
                loopback=True,
            )
        )
        program = nginx()
        assert program
        child = Child(
            "nginx",
            [program, "-c", str(config), "-e", str(self.root / "nginx-error.log")],
            dict(os.environ),
            self.root / "nginx.log",
            self.root,
        )
        self.others.append(child)
        wait_until(lambda: _listens(self.gateway), "nginx", 150, [child])
        return child

    def wait_for_status(self, name: str, words: str, timeout: float = 150.0) -> None:
        running = self.services[name]
        try:
            wait_until(
                lambda: words in running.told.status,
                f"'{words}' of {name}",
                timeout,
                [running.child],
            )
        except Exception as error:
            raise AssertionError(
                f"{error}; it said {running.told.sent[-6:]};"
                f" {running.child.log.read_text()[-2000:] if running.child.log else ''}"
            ) from None

    def child_of(self, service: str, words: str) -> psutil.Process:
        """The process that a service started with these words on its command line."""
        parent = psutil.Process(self.services[service].child.pid)
        return next(c for c in parent.children() if words in words_of(c))

    def restart_superlink(
        self, *pairs: tuple[str, str], meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Stop it, replace texts of ``server.toml``, and start it again."""
        service = self.services.pop("superlink")
        service.child.stop(20)
        service.told.close()
        text = self.server_toml.read_text()
        for old, new in pairs:
            assert text.count(old) == 1, (old, text)
            text = text.replace(old, new)
        self.server_toml.write_text(text)
        meanwhile()
        self.start("superlink", "superlink", "--config", str(self.server_toml))

    def close(self) -> None:
        stop_all([*(running.child for running in self.services.values()), *self.others])
        for running in self.services.values():
            running.told.close()


def zk0bot(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "zk0bot"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


@contextmanager
def lab(root: Path, recordings: Path) -> Iterator[Lab]:
    made = Lab(root, recordings)
    try:
        yield made
    finally:
        made.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
