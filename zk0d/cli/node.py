"""``zk0bot node``: this node's key, and on the coordinator the nodes that may join."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0d.cli import verbs
from zk0d.machine import units

if TYPE_CHECKING:
    from zk0d.machine.roster import Entry

DEFAULT_KEY = Path("/etc/zk0d/node.key")

app = typer.Typer(
    no_args_is_help=True, help="This node's key; on the coordinator, which nodes may join."
)

Key = Annotated[Path, typer.Option(help="The private key's file; the public one lies beside it.")]
Name = Annotated[str, typer.Argument(help="The node's name.")]


@app.command()
def keygen(
    key: Key = DEFAULT_KEY,
    contributor: verbs.Contributor = "",
    next_: Annotated[
        bool, typer.Option("--next", help="Make the next key, beside the present one.")
    ] = False,
) -> None:
    """Make this node's key, which never leaves this machine."""
    from zk0d.machine import contributors, node_key

    key = _key(key, contributor)
    fingerprint = node_key.make(key.with_name(node_key.NEXT) if next_ else key)
    typer.echo(f"fingerprint {fingerprint}")
    more = (" --next" if next_ else "") + contributors.option(key.parent)
    typer.echo(f"Next: zk0bot node request{more}", err=True)


@app.command()
def request(
    contact: Annotated[str, typer.Option(help="Your mail address, for the operator.")] = "",
    next_: Annotated[bool, typer.Option("--next", help="Use the next key.")] = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: verbs.Contributor = "",
) -> None:
    """Print this node's request to join, to send to the coordinator's operator."""
    show_request(verbs.place(folder, contributor), contact, next_=next_)


def show_request(folder: Path, contact: str, *, next_: bool = False) -> None:
    """Print the request of the node whose settings lie in ``folder``."""
    from zk0d.machine import node_key

    typer.echo(node_key.request(folder, contact, newer=next_))
    verb = "zk0bot node approve --rotate" if next_ else "zk0bot node approve"
    typer.echo(
        f"Send this block to the coordinator's operator ({verb}); it holds no secret.", err=True
    )


@app.command()
def switch(key: Key = DEFAULT_KEY, contributor: verbs.Contributor = "") -> None:
    """Change to the key that zk0bot node keygen --next made and the operator approved."""
    from zk0d.machine import node_key

    key = _key(key, contributor)
    node_key.change(key)
    typer.echo("this node has its new key; the operator ends the old one: zk0bot node rotate NAME")


@app.command()
def renew(
    timeout: Annotated[str, typer.Option(help="Give up after this time (30s, 20m, 2h).")] = "1h",
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: verbs.Contributor = "",
) -> None:
    """Change this node's key with the coordinator's leave: no person and no round has to wait."""
    from zk0d.cli.client import seconds
    from zk0d.services.renewal import KeyChange

    fingerprint = KeyChange(
        verbs.place(folder, contributor), seconds(timeout, "--timeout"), typer.echo
    ).run()
    typer.echo(f"this node has its new key: fingerprint {fingerprint}")


@app.command()
def seal(key: Key = DEFAULT_KEY, contributor: verbs.Contributor = "") -> None:
    """Encrypt this node's key for this machine alone (systemd-creds) and remove the plain file."""
    from zk0d.machine import node_key

    key = _key(key, contributor)
    sealed = node_key.seal(key)
    typer.echo(f"the key is sealed for this machine: {sealed}; {key} is gone")


@app.command()
def approve(
    file: Annotated[str, typer.Argument(help="The request's file; - reads the terminal.")] = "-",
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Accept a node's new key beside its old one.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """On the coordinator: let a node in; it can join within ten seconds."""
    from zk0d.errors import ConfigError, UsageError
    from zk0d.machine import roster
    from zk0d.machine.audit import note
    from zk0d.machine.enrolment import Request

    if file == "-" and sys.stdin.isatty():
        typer.echo("Paste the request, then Ctrl-D:", err=True)
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}).") from None
    asked = Request.from_text(text)
    typer.echo(f"name        {asked.name}\nfingerprint {asked.fingerprint}", err=True)
    typer.echo(f"contact     {asked.contact or 'none given'}", err=True)
    if not yes:
        if file == "-" or not sys.stdin.isatty():
            raise UsageError(
                "zk0bot cannot ask here whether the fingerprint is right; compare it with the"
                " node's owner and add --yes."
            )
        typer.confirm("Is this the fingerprint that the node's owner sees?", abort=True, err=True)
    entry = roster.approve(_roster(folder), asked, rotate=rotate)
    kind = "key.approved" if rotate else "node.approved"
    note(folder, kind, node=entry.name, key=entry.key, contact=entry.contact)
    typer.echo(f"{entry.name} may join: {entry.path}")


@app.command(name="list")
def list_(folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """On the coordinator: list the nodes that may join."""
    from zk0d.machine import roster

    for entry in roster.entries(_roster(folder)):
        newer = "  (new key)" if entry.next else ""
        typer.echo(f"{entry.name:32}  {entry.key[:16]}  {entry.approved or '-':10}{newer}")


@app.command()
def show(name: Name, folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """On the coordinator: show a node's keys and contact."""
    from zk0d.errors import UsageError
    from zk0d.machine import roster

    found = [entry for entry in roster.entries(_roster(folder)) if entry.name == name]
    if not found:
        raise UsageError(f"there is no node '{name}'; zk0bot node list shows all nodes.")
    for entry in found:
        _tell(entry)


@app.command()
def remove(name: Name, folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """On the coordinator: shut a node out within a minute."""
    from zk0d.machine import roster
    from zk0d.machine.audit import note

    for entry in roster.remove(_roster(folder), name):
        note(folder, "node.removed", node=entry.name, key=entry.key)
        typer.echo(f"{entry.name} may not join any more (key {entry.key[:16]})")


@app.command()
def rotate(name: Name, folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """On the coordinator: end a node's old key, once the node uses its new one."""
    from zk0d.machine import roster
    from zk0d.machine.audit import note

    entry = roster.rotate(_roster(folder), name)
    note(folder, "key.rotated", node=entry.name, key=entry.key)
    typer.echo(f"{entry.name} has one key: {entry.key[:16]}")


def _key(key: Path, contributor: str) -> Path:
    """The key that the options mean."""
    from zk0d.config.names import check_apart
    from zk0d.errors import UsageError

    if contributor:
        if key != DEFAULT_KEY:
            raise UsageError("--key and --contributor both name a key; give one of the two.")
        return verbs.place(units.CONFIG_FOLDER, contributor) / DEFAULT_KEY.name
    check_apart(key, "--key")  # what is made of a key lies beside it
    return key


def _roster(folder: Path) -> Path:
    from zk0d.config.machine import ServerSettings

    return ServerSettings.load(folder / "server.toml").superlink.roster


def _tell(entry: Entry) -> None:
    typer.echo(f"name        {entry.name}{' (new key)' if entry.next else ''}")
    typer.echo(f"fingerprint {entry.key}")
    typer.echo(f"approved    {entry.approved or 'by hand'}")
    typer.echo(f"contact     {entry.contact or 'none given'}")
    typer.echo(f"file        {entry.path}")
