"""``zk0bot config``: check and show a machine's settings."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0d.cli.verbs import Contributor, place
from zk0d.machine.roles import Role

if TYPE_CHECKING:
    from zk0d.config.base import Settings

FOLDER = Path("/etc/zk0d")

app = typer.Typer(no_args_is_help=True, help="Check and show a machine's settings.")


class File(StrEnum):
    """What has settings."""

    run = "run"
    server = "server"
    client = "client"


Folder = Annotated[Path, typer.Option(help="Folder of settings and keys.")]


@app.command()
def check(
    role: Role,
    folder: Folder = FOLDER,
    file: Annotated[
        Path | None, typer.Option(help="Check this file instead, before you put it in place.")
    ] = None,
    contributor: Contributor = "",
) -> None:
    """Check the settings file; name the first mistake, if there is one (exit code 78)."""
    from zk0d.config.machine import ServerSettings

    path = file or place(folder, contributor) / f"{role}.toml"
    settings = _load(role, path)
    if isinstance(settings, ServerSettings):
        settings.check_autorun(str(path))
    typer.echo(f"{path}: nothing wrong")


@app.command()
def show(role: Role, folder: Folder = FOLDER, contributor: Contributor = "") -> None:
    """Show the value of every setting, with the defaults, as JSON."""
    path = place(folder, contributor) / f"{role}.toml"
    typer.echo(_load(role, path).model_dump_json(by_alias=True, indent=1))


@app.command()
def schema(file: File) -> None:
    """Print the JSON schema of server.toml, client.toml or a run's settings, for editors."""
    from zk0d.config.machine import ClientSettings, ServerSettings
    from zk0d.config.run import RunSettings

    schemas = {
        File.run: RunSettings.flat_schema,
        File.server: ServerSettings.model_json_schema,
        File.client: ClientSettings.model_json_schema,
    }
    typer.echo(json.dumps(schemas[file](), indent=1))


def _load(role: Role, path: Path) -> Settings:
    from zk0d.config.machine import ClientSettings, ServerSettings

    model: type[Settings] = ServerSettings if role is Role.SERVER else ClientSettings
    return model.load(path)
