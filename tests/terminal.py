"""A program at a terminal of its own: what it shows is waited for, and answers are typed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.processes import PATIENCE

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Leaving the block kills the program and what it started in its session."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], folder: Path, columns: int = 120
    ) -> None:
        self._pid, self._screen = pty.fork()
        if self._pid == 0:
            # A shell has what it starts in the background ignore Ctrl-C.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(folder)
            os.execvpe(argv[0], list(argv), {**env, "TERM": "xterm", "LANG": "C.UTF-8"})  # noqa: S606
        fcntl.ioctl(self._screen, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
        self.shown = ""
        self._seen = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        os.close(self._screen)

    @property
    def text(self) -> str:
        """All that it has shown, without colours."""
        return _ESCAPES.sub("", self.shown).replace("\r", "")

    def expect(self, words: str, seconds: float = 60.0) -> None:
        """Wait until it shows ``words``, after those that were expected before."""
        deadline = time.monotonic() + PATIENCE * seconds
        while (at := self.text.find(words, self._seen)) < 0:
            assert time.monotonic() < deadline, f"no {words!r} in {self.text!r}"
            assert self._read(deadline), f"it ended without {words!r}: {self.text!r}"
        self._seen = at + len(words)

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._screen, f"{line}\n".encode())

    def press(self, key: str) -> None:
        """Press one key."""
        os.write(self._screen, key.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._screen, b"\x03")

    def give_up(self, seconds: float = 60.0) -> int:
        """Press Ctrl-C at a question until the program ends; its exit status.

        Python misses one that comes between the question and the wait for its answer.
        """
        deadline = time.monotonic() + PATIENCE * seconds
        while True:
            self.interrupt()
            pressed = time.monotonic()
            while time.monotonic() < pressed + 1.0:
                if not self._read(pressed + 1.0):
                    return self.end()
            assert time.monotonic() < deadline, f"it does not end: {self.text!r}"

    def end(self, seconds: float = 60.0) -> int:
        """Wait for its end; its exit status."""
        deadline = time.monotonic() + PATIENCE * seconds
        while self._read(deadline):
            assert time.monotonic() < deadline, f"it does not end: {self.text!r}"
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._screen], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return True
        try:
            said = os.read(self._screen, 65536)
        except OSError:  # the program has ended
            return False
        self.shown += said.decode(errors="replace")
        return bool(said)
