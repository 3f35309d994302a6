"""``docs/cli.md``, every verb with its options: ``python -m zk0d.cli.reference``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import typer

from zk0d.cli.main import app

_INTRODUCTION = """# Every option

[Commands](commands.md) says what the verbs are for. This page is written from the code
(`make reference`); a test keeps it equal.
"""


def cli_page() -> str:
    """The page as Markdown."""
    program = typer.main.get_command(app)
    return "\n".join([_INTRODUCTION, *_verbs(program, click.Context(program, info_name="zk0bot"))])


def _verbs(command: click.Command, context: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            below = command.commands[name]
            yield from _verbs(below, click.Context(below, info_name=name, parent=context))
        return
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"## `{context.command_path}`\n\n{_sentence(command.help)}\n\n    {usage}\n"
    rows = [row for parameter in command.params if (row := _row(parameter, context))]
    if rows:
        yield "\n".join(["| | |", "|---|---|", *rows]) + "\n"


def _row(parameter: click.Parameter, context: click.Context) -> str:
    help_text = getattr(parameter, "help", None)
    if isinstance(parameter, click.Argument):
        return f"| `{parameter.make_metavar(context)}` | {_cell(help_text)} |" if help_text else ""
    if getattr(parameter, "hidden", False):
        return ""
    kind = "" if getattr(parameter, "is_flag", False) else parameter.make_metavar(context)
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    default = parameter.default
    plain = isinstance(default, (str, int, float)) and not isinstance(default, bool)
    shown = f" (`{default}`)" if plain and default != "" else ""
    return f"| `{f'{names} {kind}'.strip()}` | {_cell(help_text)}{shown} |"


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str | None) -> str:
    return _sentence(text).replace("|", "\\|")


def main() -> None:
    """Write the page."""
    Path("docs/cli.md").write_text(cli_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
