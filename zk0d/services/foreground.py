"""A machine's services as plain processes, where there is no systemd to run them.

Each has a notify socket as systemd would give it one, so whether it is ready and what it says is
known the same way. ``zk0bot server|client start`` uses this without systemd, and the demo always.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zk0d.daemon.child import Child, stop_all, wait_until
from zk0d.daemon.metrics import Metrics
from zk0d.daemon.notify import SOCKET_VARIABLE
from zk0d.daemon.supervised import Backoff, State, Supervised
from zk0d.errors import ConfigError, ExitCode, UsageError
from zk0d.flower.commands import child_environment

#: What each role runs: the service's name and the arguments of ``zk0d``.
ROLES = {
    "server": {
        "superlink": ("superlink",),
        "server-superexec": ("superexec", "server"),
        "evaluator": ("evaluator",),
    },
    "client": {
        "supernode": ("supernode",),
        "client-superexec": ("superexec", "client"),
        "learner": ("learner",),
    },
}
START_SECONDS = 120.0
STOP_SECONDS = 20.0
_WAITS_FOR_A_PERSON = {ExitCode.USAGE: UsageError, ExitCode.CONFIG: ConfigError}


@dataclass(frozen=True)
class Program:
    """A service: its name, and how it is started."""

    name: str
    argv: tuple[str, ...]

    @classmethod
    def of(cls, name: str, verb: Sequence[str], config: Path) -> Program:
        """``zk0d VERB --config CONFIG`` of this installation."""
        zk0d = str(Path(sys.executable).parent / "zk0d")
        return cls(name, (zk0d, *verb, "--config", str(config)))


def programs(role: str, config: Path) -> list[Program]:
    """The services of a role."""
    return [Program.of(name, verb, config) for name, verb in ROLES[role].items()]


@dataclass
class Told:
    """What a service told its notify socket."""

    listening: socket.socket
    ready: bool = False
    status: str = ""

    def take(self, datagram: bytes) -> None:
        for line in datagram.decode(errors="replace").splitlines():
            if line == "READY=1":
                self.ready = True
            elif line.startswith("STATUS="):
                self.status = line.removeprefix("STATUS=")


@dataclass
class Process:
    """A service that runs here."""

    program: Program
    child: Supervised
    told: Told


@dataclass(frozen=True)
class Seen:
    """How a service is, as ``status`` tells it."""

    name: str
    state: str
    restarts: int
    status: str


class Foreground:
    """Services of one machine; leaving the block stops every one.

    Parameters
    ----------
    folder
        Their working folder.
    log
        By a service's name: the file its output goes to, or a function that gets each line.
    restart
        Start a service again that ends, but for statuses 64 and 78, which wait for a person.
        Without, :meth:`look` raises at the first end.
    """

    def __init__(
        self, folder: Path, log: Callable[[str], Path | Callable[[str], None]], *, restart: bool
    ) -> None:
        self.processes: dict[str, Process] = {}
        self._folder = folder
        self._log = log
        self._restart = restart
        self._metrics = Metrics("foreground")
        self._selector = selectors.DefaultSelector()
        self._over, self._end = os.pipe()
        self._selector.register(self._over, selectors.EVENT_READ)
        # A thread of its own: a full socket would hold a service up.
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> Foreground:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, programs: Sequence[Program]) -> None:
        """Start services, in this order, without waiting for them."""
        for program in programs:
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            # An abstract address: nothing to remove, whatever ends us.
            listening.bind("")
            told = Told(listening)
            self._selector.register(listening, selectors.EVENT_READ, told)
            address = listening.getsockname().decode()
            child = Supervised(
                program.name,
                program.argv,
                child_environment(
                    **{SOCKET_VARIABLE: address.replace("\0", "@", 1)},
                    HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "1"),
                ),
                self._folder,
                self._metrics,
                log=self._log(program.name),
                reason=self._reason(program.name),
                backoff=Backoff(shortest=2.0, longest=60.0),
            )
            self.processes[program.name] = Process(program, child, told)
            child.start()

    @property
    def children(self) -> list[Child]:
        """The processes that run now."""
        return [p.child.child for p in self.processes.values() if p.child.child is not None]

    @property
    def ready(self) -> bool:
        """Whether every service said that it can do its part."""
        return all(process.told.ready for process in self.processes.values())

    def wait_until_ready(self, *names: str) -> None:
        """Wait for services, all of them if none is named; raises what ends one meanwhile."""
        for process in [self.processes[name] for name in names] or list(self.processes.values()):
            wait_until(
                lambda told=process.told: told.ready,  # type: ignore[misc]
                f"{process.program.name}'s start",
                START_SECONDS,
                self.children,
            )

    def look(self) -> None:
        """Start again what ended; or raise its end, if nothing is to be started again.

        Raises
        ------
        ChildError
            If a service ended and is not to be started again.
        ConfigError, UsageError
            If it ended with a status that waits for a person.
        """
        for process in self.processes.values():
            if not self._restart and process.child.child is not None:
                process.child.child.check()
            if process.child.look() is not State.RUNNING:
                process.told.ready = False

    def seen(self) -> list[Seen]:
        """How each service is."""
        return [
            Seen(name, p.child.state.value, p.child.starts - 1, p.told.status)
            for name, p in self.processes.items()
        ]

    def stop(self, name: str) -> None:
        """Stop one service, which is then none of ours."""
        process = self.processes.pop(name)
        process.child.stop("stopped", STOP_SECONDS)
        self._selector.unregister(process.told.listening)
        process.told.listening.close()

    def close(self) -> None:
        """Stop them side by side; none is left, nor what they began."""
        stop_all(self.children, STOP_SECONDS)
        for process in self.processes.values():
            process.child.stop("stopped")
        os.write(self._end, b".")
        self._thread.join()
        for process in self.processes.values():
            process.told.listening.close()
        self._selector.close()
        os.close(self._over)
        os.close(self._end)

    @staticmethod
    def _reason(name: str) -> Callable[[int, Sequence[str]], str]:
        def reason(status: int, lines: Sequence[str]) -> str:
            with contextlib.suppress(ValueError):
                kind = _WAITS_FOR_A_PERSON.get(ExitCode(status))
                if kind is not None:
                    raise kind(lines[-1] if lines else f"{name} ended with status {status}.")
            return ""

        return reason

    def _listen(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._over:
                    return
                told: Told = key.data
                with contextlib.suppress(OSError):
                    told.take(told.listening.recv(65536))
