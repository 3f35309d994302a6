"""``zk0bot release`` and ``zk0bot push``: checkpoints, what the gate says, and the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zk0d.cli import verbs
from zk0d.machine import units

app = typer.Typer(no_args_is_help=True, help="Checkpoints of this coordinator's runs.")

Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint_round_N folder.")]


@app.command()
def gate(
    checkpoint: Checkpoint,
    against: Annotated[Path | None, typer.Option(help="A release that it must beat, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Check whether a checkpoint beats baseline and release by more than noise (exit code 1)."""
    from zk0d.release.checkpoint import judge_folder

    verdict = judge_folder(checkpoint, against)
    if as_json:
        said = {"schema_version": 1, "passed": verdict.passed, "reasons": list(verdict.reasons)}
        typer.echo(json.dumps(said))
    else:
        typer.echo("yes" if verdict.passed else "no")
        for reason in verdict.reasons:
            typer.echo(f"  {reason}")
    if not verdict.passed:
        raise typer.Exit(1)


@app.command()
def accept(
    checkpoint: Checkpoint,
    because: Annotated[str, typer.Option(help="Your reason, for the card.")],
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Make a checkpoint the latest release in spite of the gate; the card records it."""
    from zk0d.config.machine import ServerSettings
    from zk0d.release.checkpoint import Releases
    from zk0d.release.checkpoint import accept as accept_checkpoint

    server = ServerSettings.load(folder / "server.toml")
    accept_checkpoint(checkpoint.resolve(), because, Releases.of(server))
    typer.echo(f"{checkpoint} is the latest release now")


@app.command(name="list")
def list_(folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """List the checkpoints of this coordinator; * marks the latest release."""
    from zk0d.config.machine import ServerSettings
    from zk0d.errors import ConfigError
    from zk0d.record.held_out import change_of
    from zk0d.release.checkpoint import LATEST, Releases, read_summary

    home = Releases.of(ServerSettings.load(folder / "server.toml")).folder
    latest = (home / LATEST).resolve()
    for path in sorted(home.glob("*/checkpoint_round_*")):
        try:
            summary = read_summary(path)
        except ConfigError:
            continue
        loss = summary.evaluations[-1].loss if summary.evaluations else None
        shown = "not evaluated" if loss is None else f"loss {loss:.4f}"
        if found := change_of(summary):
            spread = "" if found.spread is None else f" ± {found.spread:.4f}"
            on_nodes = f"on {len(found.nodes)} nodes {found.mean:+.4f}{spread}"
            shown = on_nodes if loss is None else f"{shown}, {on_nodes}"
        typer.echo(f"{'*' if path.resolve() == latest else ' '} {path}  {shown}")


def push(
    checkpoint: Checkpoint,
    repo_id: Annotated[str, typer.Option("--repo-id", help="user/name on the hub.")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Visibility of a new repository.")
    ] = True,
    tag: Annotated[str, typer.Option(help="A tag in place of fl-run-RUN-round-N.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, and list what would be sent.")
    ] = False,
) -> None:
    """Push a checkpoint to the hub, as one commit."""
    from zk0d.release import hub

    hub.check_names(repo_id, tag)
    files = hub.check(checkpoint)
    if dry_run:
        size = sum(path.stat().st_size for path in files)
        typer.echo(f"{len(files)} files, {size / 1e6:.1f} MB would go to {repo_id}:")
        for path in files:
            typer.echo(f"  {path.relative_to(checkpoint)}")
        return
    done = hub.push(checkpoint, repo_id, private=private, tag=tag)
    typer.echo(f"{done.url} (tag {done.tag})")
