"""A child process that cannot outlive us, writes to a log, and ends with a reason."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from zk0d.daemon.parent import die_with
from zk0d.errors import ChildError, UnavailableError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_KILLED_SECONDS = 2.0
_LAST_LINES = 20  # an error before these did not end the process


class Child:
    """One process with its own process group.

    It gets ``death_signal`` when the thread that started it ends, however it ends, so start it from
    a thread that lives as long as the process (the main one).

    Parameters
    ----------
    name
        How messages call it.
    log
        Where its output goes: a file that is appended to, or a function that gets each line (from
        a thread of its own).
    death_signal
        SIGTERM for a program that then ends processes of its own, which nothing ties to us.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: Path | Callable[[str], None],
        cwd: Path,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.env = dict(env)
        self.log = log if isinstance(log, Path) else None
        self._recent: deque[str] = deque(maxlen=_LAST_LINES)
        self._reader: threading.Thread | None = None
        try:
            opened = log.open("ab") if isinstance(log, Path) else nullcontext(subprocess.PIPE)
            with opened as output:
                self._process = subprocess.Popen(
                    self.argv,
                    env=self.env,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                    preexec_fn=partial(die_with, os.getpid(), death_signal),
                )
        except OSError as error:
            raise UnavailableError(
                f"{name} cannot be started ({argv[0]}: {error.strerror}); is zk0d installed whole?"
            ) from None
        if not isinstance(log, Path):
            self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
            self._reader.start()

    def _read(self, on_line: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = _COLOUR.sub("", raw.decode(errors="replace")).rstrip()
            if line:
                self._recent.append(line)
                on_line(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """Exit status, negative for a signal; ``None`` while it runs."""
        return self._process.poll()

    def check(self) -> None:
        """Raise :class:`ChildError`, with what it said last, if it has ended."""
        if self.alive:
            return
        status = self._process.returncode
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        said = self.last_words()
        where = f" (log: {self.log})" if self.log else ""
        raise ChildError(f"{self.name} {how}{f': {said}' if said else ''}{where}.")

    def last_words(self, limit: int = 400) -> str:
        """The last error in the end of its log, else the last line that says something."""
        lines = self.recent()
        errors = [line for line in lines[-_LAST_LINES:] if "ERROR" in line]
        return (errors or lines or [""])[-1][:limit]

    def recent(self) -> list[str]:
        """The last lines it wrote that say something; after its end, all of the last ones."""
        if self._reader is not None:
            if not self.alive:
                self._reader.join(_KILLED_SECONDS)
            return list(self._recent)
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace") if self.log else ""
        except OSError:
            return []
        return [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]

    def stop(self, grace: float = 5.0) -> None:
        """SIGTERM, then SIGKILL to its whole group after ``grace`` seconds."""
        stop_all([self], grace)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    @property
    def has_group(self) -> bool:
        """Whether a process of its group is left."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        if self.alive:
            self._process.send_signal(number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit status."""
        return self._process.wait(timeout)


def stop_all(children: Sequence[Child], grace: float = 5.0) -> None:
    """Stop several children side by side, last started first; none is left, nor what they began."""
    for child in reversed(children):
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace
    for child in reversed(children):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.05, deadline - time.monotonic()))
    for child in children:
        child.signal_group(signal.SIGKILL)
        if child.alive:
            child.wait()
    # What they began dies a moment later; a zombie that nobody collects is not waited for.
    deadline = time.monotonic() + _KILLED_SECONDS
    while any(child.has_group for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)


def wait_until(
    ready: Callable[[], bool],
    what: str,
    timeout: float,
    children: Sequence[Child] = (),
    interval: float = 0.1,
) -> None:
    """Wait for a condition; give up when a child ends or the time is over.

    Raises
    ------
    ChildError
        If one of ``children`` ends meanwhile.
    UnavailableError
        After ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not ready():
        for child in children:
            child.check()
        if time.monotonic() > deadline:
            raise UnavailableError(f"{what} did not happen within {timeout:.0f} s.")
        time.sleep(interval)
