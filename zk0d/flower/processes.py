"""How an app's process starts: as a program of its own, or forked from one that is ready.

A ClientApp's process lives for one message. To start Python and import Flower takes two seconds of
a core, which was most of a short round. So a SuperExec keeps one process that has the imports and
no thread, and has it fork for each message. It ends when no message came for a while: it takes
130 MB.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol

from zk0d.daemon.parent import die_with

#: Without a message for so long, the process that forks ends; the next message starts another.
IDLE_SECONDS = 120.0
CLOSE_SECONDS = 3.0
_LONGEST = 65536  #: bytes of a message between the two
_END = b"end"  #: asks the process that forks to end


class App(Protocol):
    """An app's process."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; ``None`` while it runs."""


class Starter(Protocol):
    """Starts the processes of one app."""

    def start(self, arguments: Sequence[str], token: str) -> App: ...

    def look(self) -> None:
        """To be called now and then."""

    def close(self) -> None:
        """End what was started."""


def token_file(token: str) -> tuple[int, list[str]]:
    """A file without a name for a token, and the arguments that name it to the app.

    On the command line every local user could read it.
    """
    number = os.memfd_create("token")
    os.write(number, token.encode())
    return number, ["--token-file", f"/proc/self/fd/{number}"]


class FreshProcesses:
    """Each app is a program of its own.

    Parameters
    ----------
    command
        The program, to which an app's arguments are appended.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, arguments: Sequence[str], token: str) -> App:
        number, named = token_file(token)
        try:
            app = subprocess.Popen(
                [*self._command, *arguments, *named],
                stdin=subprocess.DEVNULL,
                pass_fds=[number],
                preexec_fn=partial(die_with, os.getpid()),
            )
        finally:
            os.close(number)
        self._running.append(app)
        return app

    def look(self) -> None:
        self._running = [app for app in self._running if app.poll() is None]

    def close(self) -> None:
        for app in self._running:
            app.terminate()
        deadline = time.monotonic() + CLOSE_SECONDS
        for app in self._running:
            try:
                app.wait(max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                app.kill()
                app.wait()
        self._running.clear()


class Fork:
    """An app's process whose parent is the :class:`Forks`' one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None

    def poll(self) -> int | None:
        return self.status


class Forks:
    """Apps that are forked from one process that is ready.

    Parameters
    ----------
    command
        The program of that process, to which ``--forks N`` is appended; it calls :func:`serve`.
    """

    def __init__(self, command: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._command = list(command)
        self._clock = clock
        self._used = 0.0
        self._ready: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._running: dict[int, Fork] = {}

    def start(self, arguments: Sequence[str], token: str) -> App:
        """Fork an app.

        Raises
        ------
        OSError
            If the process that forks died twice in a row.
        """
        self._used = self._clock()
        request = json.dumps({"arguments": list(arguments), "token": token}).encode()
        try:
            return self._fork(request)
        except OSError:  # it died since the last message, or was never there
            self._lost()
            return self._fork(request)

    def _fork(self, request: bytes) -> Fork:
        if self._line is None:
            self._begin()
        assert self._line is not None
        self._line.send(request)
        while True:
            told = self._line.recv(_LONGEST)
            if not told:
                raise ConnectionResetError("the process that forks has ended")
            if (pid := self._take(json.loads(told))) is not None:
                app = self._running[pid] = Fork(pid)
                return app

    def _take(self, told: dict[str, int]) -> int | None:
        """Note an end; or the number of a process that has begun."""
        if "began" in told:
            return told["began"]
        ended = self._running.pop(told["ended"], None)
        if ended is not None:
            ended.status = told["status"]
        return None

    def _begin(self) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._ready = subprocess.Popen(
                [*self._command, "--forks", str(its.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                preexec_fn=partial(die_with, os.getpid()),
            )
        self._line = ours

    def look(self) -> None:
        """Take what was told meanwhile, and end the process if it is idle."""
        if self._line is None:
            return
        try:
            while told := self._line.recv(_LONGEST, socket.MSG_DONTWAIT):
                self._take(json.loads(told))
        except BlockingIOError:
            if not self._running and self._clock() - self._used > IDLE_SECONDS:
                self.close()
            return
        except OSError:
            pass
        self._lost()

    def _lost(self) -> None:
        """The process that forks has died, and with it its forks."""
        self.close()
        for app in self._running.values():
            app.status = -signal.SIGKILL
        self._running.clear()

    def close(self) -> None:
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.send(_END)  # it ends its forks, then itself
            self._line.close()
            self._line = None
        if self._ready is not None:
            try:
                self._ready.wait(2 * CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._ready.kill()
                self._ready.wait()
            self._ready = None


def serve(number: int, run: Callable[[], Any]) -> NoReturn:
    """Fork for each request on the socket ``number``; the fork runs the app by ``run``.

    It ends when it is told to, and its forks may say good-bye. If the other end just closes, its
    owner was killed, and so are the forks: Flower gives a message out again only if its app did not
    say that it was stopped.
    """
    line = socket.socket(fileno=number)
    parent = os.getpid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its parent's affair
    ready = selectors.DefaultSelector()
    ready.register(line, selectors.EVENT_READ)
    running: dict[int, int] = {}  #: processes by the descriptor that tells their end
    gc.collect()
    gc.freeze()  # what is here already stays where it is: a fork shares its memory
    while True:
        for key, _ in ready.select():
            if key.fileobj is line:
                request = line.recv(_LONGEST)
                if request in (b"", _END):
                    _end(list(running.values()), signal.SIGTERM if request else signal.SIGKILL)
                pid = os.fork()
                if pid == 0:
                    ready.close()
                    line.close()
                    for descriptor in running:
                        os.close(descriptor)
                    die_with(parent)
                    _run(request, run)
                descriptor = os.pidfd_open(pid)
                running[descriptor] = pid
                ready.register(descriptor, selectors.EVENT_READ)
                told = {"began": pid}
            else:
                descriptor = key.fd
                pid = running.pop(descriptor)
                ready.unregister(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                told = {"ended": pid, "status": os.waitstatus_to_exitcode(status)}
            try:
                line.send(json.dumps(told).encode())
            except OSError:
                _end(list(running.values()), signal.SIGKILL)


def _run(request: bytes, run: Callable[[], Any]) -> NoReturn:
    """Be the app, in a fork."""
    status = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        asked = json.loads(request)
        _, named = token_file(asked["token"])
        sys.argv = [sys.argv[0], *asked["arguments"], *named]
        run()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _end(pids: Sequence[int], how: signal.Signals) -> NoReturn:
    """End the forks, and this process."""
    for pid in pids:
        os.kill(pid, how)
    deadline = time.monotonic() + CLOSE_SECONDS
    left = set(pids)
    while left and time.monotonic() < deadline:
        left -= {pid for pid in left if os.waitpid(pid, os.WNOHANG)[0]}
        time.sleep(0.02)
    os._exit(0)  # whoever is left gets SIGKILL by it
