"""Services as plain processes, where there is no systemd to run them.

Each has a notify socket as systemd would give it one, so whether it is ready, whether it shows
progress and what it says are known the same way. ``zk0bot server|client start`` uses this without
systemd, and the demo always.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zk0d.daemon.child import Child, stop_all, wait_until
from zk0d.daemon.environment import KEPT_FOR_THE_HUB, child_environment
from zk0d.daemon.metrics import Metrics
from zk0d.daemon.notify import SOCKET_VARIABLE
from zk0d.daemon.supervised import Backoff, State, Supervised
from zk0d.errors import ConfigError, ExitCode, UsageError

START_SECONDS = 120.0
STOP_SECONDS = 20.0
RETRY_SECONDS = 60.0  #: as the units have it
_WAITS_FOR_A_PERSON = {ExitCode.USAGE: UsageError, ExitCode.CONFIG: ConfigError}


@dataclass(frozen=True)
class Program:
    """A service: its name, and how it is started.

    Parameters
    ----------
    status
        Of a program that tells nothing of itself, such as nginx; it is ready while it runs.
    death_signal
        What it gets if we die, as :class:`~zk0d.daemon.child.Child` says.
    starts_within, watchdog
        As :class:`~zk0d.machine.roles.Service` says.
    """

    name: str
    argv: tuple[str, ...]
    status: str = ""
    death_signal: signal.Signals = signal.SIGKILL
    starts_within: float = 0.0
    watchdog: float = 0.0


@dataclass
class Chore:
    """What a timer or a person starts under systemd: a program that ends by itself.

    Parameters
    ----------
    first, every
        Seconds until its first start, and from an end to the next. After a failure that may pass it
        is started again sooner.
    """

    program: Program
    every: float
    first: float = 0.0
    env: Mapping[str, str] = field(default_factory=dict)
    child: Child | None = None
    due: float = 0.0


@dataclass
class Told:
    """What a service told its notify socket."""

    listening: socket.socket
    ready: bool = False
    status: str = ""
    #: When it last gave a sign of life, and when its start, which it asked for, is over; both of
    #: :func:`time.monotonic`, which stands still while the machine sleeps.
    alive: float = 0.0
    start_ends: float = 0.0

    def begin(self) -> None:
        """From now on an instance that has only started speaks."""
        self.ready, self.alive, self.start_ends = False, time.monotonic(), 0.0

    def take(self, datagram: bytes) -> None:
        now = time.monotonic()
        for line in datagram.decode(errors="replace").splitlines():
            key, _, value = line.partition("=")
            match key:
                case "READY":
                    self.ready, self.alive = True, now
                case "WATCHDOG":
                    self.alive = now
                case "EXTEND_TIMEOUT_USEC" if value.isdigit():
                    self.start_ends = now + int(value) / 1e6
                case "STATUS":
                    self.status = value


@dataclass
class Process:
    """A service that runs here."""

    program: Program
    child: Supervised
    told: Told

    @property
    def ready(self) -> bool:
        """Whether it can do its part."""
        tells_nothing = bool(self.program.status)
        return self.child.state is State.RUNNING if tells_nothing else self.told.ready

    def look(self) -> None:
        """Start it again if it ended and it is time."""
        starts = self.child.starts
        if self.child.look() is not State.RUNNING or self.child.starts != starts:
            self.told.begin()

    def watch(self) -> None:
        """End it if it has been silent for longer than it may be; it is then started again."""
        if self.child.state is not State.RUNNING:
            return
        now, told, program = time.monotonic(), self.told, self.program
        if program.watchdog and told.ready and now - told.alive > program.watchdog:
            self.child.restart("watchdog")
            return
        late = now > max(told.alive + program.starts_within, told.start_ends)
        if program.starts_within and not told.ready and late:
            self.child.restart("start took too long")


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
        Start a service again that ends, but for statuses 64 and 78, which wait for a person, and
        one that shows no progress. Without, :meth:`look` raises at the first end, and who looks
        has deadlines of its own.
    """

    def __init__(
        self, folder: Path, log: Callable[[str], Path | Callable[[str], None]], *, restart: bool
    ) -> None:
        self.processes: dict[str, Process] = {}
        self._chores: list[Chore] = []
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
            watched = {}
            if self._restart and program.watchdog:
                watched["WATCHDOG_USEC"] = str(int(program.watchdog * 1e6))
            child = Supervised(
                program.name,
                program.argv,
                child_environment(
                    **{SOCKET_VARIABLE: address.replace("\0", "@", 1)},
                    HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "1"),
                    **watched,
                ),
                self._folder,
                self._metrics,
                log=self._log(program.name),
                reason=self._reason(program.name),
                backoff=Backoff(shortest=2.0, longest=60.0),
                death_signal=program.death_signal,
            )
            self.processes[program.name] = Process(program, child, told)
            told.begin()
            child.start()

    def start_chores(self, chores: Sequence[Chore]) -> None:
        """Have these done from time to time, by :meth:`look`."""
        for chore in chores:
            chore.due = time.monotonic() + chore.first
        self._chores += chores

    @property
    def children(self) -> list[Child]:
        """The processes that run now."""
        services = [process.child.child for process in self.processes.values()]
        return [child for child in services if child is not None]

    @property
    def ready(self) -> bool:
        """Whether every service can do its part."""
        return all(process.ready for process in self.processes.values())

    def wait_until_ready(self, *names: str) -> None:
        """Wait for services, all of them if none is named; raises what ends one meanwhile."""
        for process in [self.processes[name] for name in names] or list(self.processes.values()):
            wait_until(
                lambda process=process: process.ready,  # type: ignore[misc]
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
            process.look()
            if self._restart:
                process.watch()
        for chore in self._chores:
            self._look_at(chore)

    def _look_at(self, chore: Chore) -> None:
        now = time.monotonic()
        if chore.child is None:
            if now >= chore.due:
                chore.child = Child(
                    chore.program.name,
                    chore.program.argv,
                    child_environment(*KEPT_FOR_THE_HUB, **chore.env),
                    self._log(chore.program.name),
                    self._folder,
                )
            return
        if chore.child.alive:
            return
        status, chore.child = chore.child.exit_status, None
        passes = status not in (0, *_WAITS_FOR_A_PERSON)
        chore.due = now + (min(chore.every, RETRY_SECONDS) if passes else chore.every)

    def seen(self) -> list[Seen]:
        """How each service is."""
        return [
            Seen(name, p.child.state.value, p.child.starts - 1, p.program.status or p.told.status)
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
        doing = [chore.child for chore in self._chores if chore.child is not None]
        stop_all([*self.children, *doing], STOP_SECONDS)
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
