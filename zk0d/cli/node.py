"""``zk0bot node``: this node's key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_KEY = Path("/etc/zk0d/node.key")

app = typer.Typer(no_args_is_help=True, help="This node's key.")

Key = Annotated[Path, typer.Option(help="The private key's file; the public one lies beside it.")]


@app.command()
def keygen(key: Key = DEFAULT_KEY) -> None:
    """Make this node's key, and show what to send to the coordinator."""
    from zk0d.errors import TryAgainError, UsageError
    from zk0d.flower.keys import make_node_key

    try:
        fingerprint = make_node_key(key)
    except FileExistsError:
        raise UsageError(
            f"{key} is there already: this node has a key (zk0bot node key shows it); a new one"
            " would have to be enrolled again."
        ) from None
    except OSError as error:
        raise TryAgainError(f"{key}: cannot be written ({error.strerror}); are you root?") from None
    _show(key, fingerprint)


@app.command(name="key")
def show(key: Key = DEFAULT_KEY) -> None:
    """Show the public key, to send to the coordinator."""
    from zk0d.flower.keys import fingerprint

    _show(key, fingerprint(key.with_suffix(".pub")))


def _show(key: Path, fingerprint: str) -> None:
    public = key.with_suffix(".pub")
    typer.echo(public.read_text(encoding="utf-8").strip())
    typer.echo(f"fingerprint {fingerprint}", err=True)
    typer.echo(
        f"Send {public} to the coordinator's operator, who puts it into /etc/zk0d/roster.d as"
        " NAME.pub.",
        err=True,
    )
