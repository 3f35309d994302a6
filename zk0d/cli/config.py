"""``zk0bot config``: make, check and show a machine's settings."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zk0d.config.base import Settings

FOLDER = Path("/etc/zk0d")

app = typer.Typer(no_args_is_help=True, help="Make, check and show a machine's settings.")


class Role(StrEnum):
    """What a machine is."""

    server = "server"
    client = "client"


Folder = Annotated[Path, typer.Option(help="Where settings and keys lie.")]


@app.command()
def check(role: Role, folder: Folder = FOLDER) -> None:
    """Check the settings file; says the first mistake and ends with 78, or says nothing wrong."""
    _load(role, folder)
    typer.echo(f"{folder / f'{role}.toml'}: nothing wrong")


@app.command()
def show(role: Role, folder: Folder = FOLDER) -> None:
    """Show every setting as it counts, defaults included, as JSON."""
    typer.echo(_load(role, folder).model_dump_json(by_alias=True, indent=1))


@app.command()
def init(
    role: Role,
    folder: Folder = FOLDER,
    host: Annotated[
        list[str] | None,
        typer.Option(help="server: a name or address that nodes reach it by; may be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="client: what this node is called.")] = None,
    coordinator: Annotated[str | None, typer.Option(help="client: HOST:PORT.")] = None,
    ca: Annotated[Path | None, typer.Option(help="client: the coordinator's ca.crt.")] = None,
    dataset: Annotated[str | None, typer.Option(help="client: local:/folder or user/name.")] = None,
) -> None:
    """Make settings, keys and secrets for a machine; what is there already is kept."""
    from zk0d.errors import TryAgainError, UsageError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if role is Role.server:
            if not host:
                raise UsageError("--host is missing: a name or address that nodes reach it by.")
            _init_server(folder, host)
        else:
            if name is None or coordinator is None or ca is None or dataset is None:
                raise UsageError("a client needs --name, --coordinator, --ca and --dataset.")
            _init_client(folder, name, coordinator, ca, dataset)
    except OSError as error:
        raise TryAgainError(
            f"{folder}: cannot be written ({error.strerror or error}); are you root?"
        ) from None


def _init_server(folder: Path, hosts: list[str]) -> None:
    from zk0d.flower.certificates import make_certificates
    from zk0d.flower.keys import make_secret

    (folder / "roster.d").mkdir(exist_ok=True)
    if _is_new(folder / "tls" / "ca.key"):
        make_certificates(folder / "tls", [*hosts, "localhost", "127.0.0.1"])
    for name in ("superexec.secret", "control.secret"):
        if _is_new(folder / name):
            make_secret(folder / name)
    if _is_new(folder / "server.toml"):
        (folder / "server.toml").write_text(
            "# docs/settings.md has every key. Held-out recordings to evaluate on:\n"
            '# [[evaluation]]\n# name = "held-out"\n# dataset-uri = "local:/data/held-out"\n',
            encoding="utf-8",
        )
    typer.echo(f"Give {folder / 'tls' / 'ca.crt'} to the nodes.")


def _init_client(folder: Path, name: str, coordinator: str, ca: Path, dataset: str) -> None:
    import json

    from zk0d.config.machine import ClientSettings
    from zk0d.errors import ConfigError
    from zk0d.flower.keys import make_node_key, make_secret

    values = {
        "name": name,
        "dataset-uri": dataset,
        "coordinator": {"address": coordinator},
    }
    ClientSettings.parse(values, where="config init client")
    try:
        certificate = ca.read_bytes()
    except OSError as error:
        raise ConfigError(f"--ca: {ca} cannot be read ({error.strerror}).") from None
    (folder / "tls").mkdir(exist_ok=True)
    (folder / "tls" / "ca.crt").write_bytes(certificate)
    if _is_new(folder / "node.key"):
        make_node_key(folder / "node.key")
    if _is_new(folder / "superexec.secret"):
        make_secret(folder / "superexec.secret")
    if _is_new(folder / "client.toml"):
        (folder / "client.toml").write_text(
            f"# docs/settings.md has every key.\nname = {json.dumps(name)}\n"
            f"dataset-uri = {json.dumps(dataset)}\n\n[coordinator]\n"
            f"address = {json.dumps(coordinator)}\n",
            encoding="utf-8",
        )
    typer.echo(f"Send {folder / 'node.pub'} to the coordinator's operator.")


def _is_new(path: Path) -> bool:
    if path.exists():
        typer.echo(f"{path} is there already and kept", err=True)
        return False
    return True


def _load(role: Role, folder: Path) -> Settings:
    from zk0d.config.machine import ClientSettings, ServerSettings

    model: type[Settings] = ServerSettings if role is Role.server else ClientSettings
    return model.load(folder / f"{role}.toml")
