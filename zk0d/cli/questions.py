"""Questions at a terminal, each with a default that ``--yes`` takes."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer


class Questions:
    """Asks a person; with ``yes`` nobody is asked.

    Raises
    ------
    UsageError
        If there is nobody to ask, and ``yes`` was not given.
    """

    def __init__(self, *, yes: bool) -> None:
        from zk0d.errors import UsageError

        self.yes = yes
        if not yes and not sys.stdin.isatty():
            raise UsageError(
                "there is no terminal to ask at; add --yes, and name what has no default"
                " (zk0bot setup --help)."
            )

    def say(self, text: str = "") -> None:
        """Tell something."""
        typer.echo(text)

    def ask(self, question: str, default: str = "", shown: str = "") -> str:
        """A line of the person's.

        Parameters
        ----------
        shown
            How the default is shown, if not as it is.
        """
        if self.yes:
            return default
        end = f"[{shown or default}]" if shown or default else ""
        text: str = typer.prompt(f"{question} {end}".rstrip(), default=default, show_default=False)
        return text.strip()

    def ask_until[T](
        self, question: str, take: Callable[[str], T], default: str = "", shown: str = ""
    ) -> T:
        """What ``take`` makes of an answer; a mistake is said and the question asked again.

        Raises
        ------
        Zk0dError
            That of ``take``, if nobody can be asked again.
        """
        from zk0d.errors import Zk0dError

        while True:
            try:
                return take(self.ask(question, default, shown))
            except Zk0dError as error:
                if self.yes:
                    raise
                self.say(f"  {error.message}")

    def agrees(self, question: str, *, default: bool) -> bool:
        """Whether the person says yes."""
        if self.yes:
            return default
        return bool(typer.confirm(question, default=default))
