"""``docs/cli.md``, commands and their options: ``python -m zk0d.cli.reference``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import typer

from zk0d.cli.main import app

PAGE = Path("docs/cli.md")
MARK = "<!-- verbs: make reference writes all below -->"


def cli_page(introduction: str) -> str:
    """The page as Markdown: what was written by hand, a table of the verbs, and each with options.

    Parameters
    ----------
    introduction
        The page before; what stands above :data:`MARK` is kept.
    """
    program = typer.main.get_command(app)
    verbs = list(_verbs(program, click.Context(program, info_name="zk0bot")))
    rows = [
        f"| [`{name}`](#{name.replace(' ', '-')}) | {_cell(command.help)} |"
        for name, command, _ in verbs
    ]
    return "\n".join(
        [
            introduction.partition(MARK)[0] + MARK,
            "",
            "## Every verb",
            "",
            "| verb | effect |",
            "|---|---|",
            *rows,
            "",
            *(_section(*verb) for verb in verbs),
        ]
    )


def _verbs(
    command: click.Command, context: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            below = command.commands[name]
            yield from _verbs(below, click.Context(below, info_name=name, parent=context))
        return
    yield context.command_path, command, context


def _section(name: str, command: click.Command, context: click.Context) -> str:
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"### `{name}`\n\n{_sentence(command.help)}\n\n    {usage}\n"]
    rows = [row for parameter in command.params if (row := _row(parameter, context))]
    if rows:
        lines.append("\n".join(["| option | |", "|---|---|", *rows]) + "\n")
    return "\n".join(lines)


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
    PAGE.write_text(cli_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
