"""Answers at a terminal of one key each, and a key that stops what runs."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Iterator

import typer


class Keys:
    """A person's keyboard.

    Raises
    ------
    UsageError
        If there is no terminal.
    """

    def __init__(self) -> None:
        from zk0d.errors import UsageError

        if not sys.stdin.isatty():
            raise UsageError(
                "there is no terminal, where a person could stop the arm and say whether it"
                " succeeded; run this at one, or add --print for the command alone."
            )
        self._keyboard = sys.stdin.fileno()

    def ask(self, question: str, answers: str) -> str:
        """One of ``answers``, by its key; other keys are passed over.

        Raises
        ------
        KeyboardInterrupt
            At Ctrl-C, and where the terminal is gone.
        """
        with self._by_key():
            typer.echo(f"{question} ", nl=False)
            while True:
                pressed = os.read(self._keyboard, 1)
                if not pressed:
                    raise KeyboardInterrupt
                key = pressed.decode(errors="replace").lower()
                if key in answers:
                    break
        typer.echo(key if key.isprintable() else "")
        return key

    @contextlib.contextmanager
    def watched(self, stop: threading.Event) -> Iterator[None]:
        """Within it, any key sets ``stop``, and so does a terminal that is closed."""
        ready, done = os.pipe()

        def watch() -> None:
            found, _, _ = select.select([self._keyboard, ready], [], [])
            if ready not in found:
                stop.set()

        with self._by_key():
            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            try:
                yield
            finally:
                os.close(done)  # which the watcher sees
                watcher.join()
                os.close(ready)

    @contextlib.contextmanager
    def _by_key(self) -> Iterator[None]:
        """Within it, a key counts as it is pressed and is not shown; Ctrl-C stays what it is.

        What was pressed before counts for nothing.
        """
        before = termios.tcgetattr(self._keyboard)
        try:
            tty.setcbreak(self._keyboard, termios.TCSAFLUSH)
            yield
        finally:
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._keyboard, termios.TCSADRAIN, before)
