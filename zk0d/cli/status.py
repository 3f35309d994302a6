"""``zk0bot status``, and what ``server status`` and ``client status`` share with it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zk0d.cli.verbs import Contributor, Folder, place
from zk0d.machine import contributors, units
from zk0d.machine.roles import Role

Json = Annotated[bool, typer.Option("--json", help="As JSON; docs/cli.md has the schema.")]


#: Nodes that are shown at once.
PAGE = 50
Page = Annotated[
    int, typer.Option("--page", min=1, help=f"Of a coordinator's nodes, {PAGE} at a time.")
]


def status(
    as_json: Json = False,
    page: Page = 1,
    folder: Folder = units.CONFIG_FOLDER,
    contributor: Contributor = "",
) -> None:
    """Show this host's services, run and nodes; exit code 1 if something is wrong."""
    from zk0d.errors import UnavailableError

    folder = place(folder, contributor)
    if contributor:
        roles: list[str] = [Role.CLIENT]
    elif units.by_systemd(folder):
        roles = units.enabled_roles()
    else:
        roles = [role for role in Role if (folder / f"{role}.toml").exists()]
    if not roles and (others := contributors.names(folder)):
        raise UnavailableError(
            f"the contributors here have names ({', '.join(others)}): zk0bot status"
            f" {contributors.OPTION} NAME shows one."
        )
    if not roles:
        raise UnavailableError(
            "no zk0d runs on this host: zk0bot server start or zk0bot client start starts it."
        )
    show(roles, as_json, folder, page)


def show(roles: Sequence[str], as_json: bool, folder: Path, page: int = 1) -> None:
    """Print the roles' state; exit with 1 if something is wrong."""
    from zk0d.services.status import gather

    content = gather(roles, folder)
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        _print(content, page)
    if not content["ok"]:
        raise typer.Exit(1)


def _print(content: dict[str, Any], page: int = 1) -> None:
    for service in content["services"]:
        typer.echo(f"{service['name']:24} {service['state']:18} {service['status']}")
    run = content["run"]
    if run:
        typer.echo(f"\nrun {run['run']}: {run['state']}, round {run['round']} of {run['rounds']}")
        if waiting := run.get("waiting"):
            since = time.strftime("%Y-%m-%d %H:%M", time.localtime(waiting["since"]))
            typer.echo(f"  waits since {since}: {waiting['for']}")
            typer.echo(f"  continues {waiting['until']}")
        if run.get("policy_loss") is not None:
            typer.echo(f"  policy loss {run['policy_loss']:.4f} on held-out recordings")
        if found := run.get("on_nodes"):
            whose = "one node's" if found["nodes"] == 1 else f"{found['nodes']} nodes'"
            typer.echo(
                f"  policy loss {found['loss']:.4f} on {whose} held-out episodes, after round"
                f" {found['round']}"
            )
        if run.get("agreement") is not None:
            typer.echo(f"  agreement of the last round's updates {run['agreement']:.2f}")
        for task, ratio in run.get("success", {}).items():
            typer.echo(f"  success on {task}: {ratio:.2f}")
    nodes, pages = content["nodes"], -(-len(content["nodes"]) // PAGE)
    for node in nodes[PAGE * (page - 1) : PAGE * page]:
        loss = "" if node["policy_loss"] is None else f", training loss {node['policy_loss']:.4f}"
        if node.get("agreement") is not None:
            loss += f", agreement {node['agreement']:.2f}"
        here = "online" if node["online"] else "offline"
        if node.get("rests"):
            until = node["rests_until"]
            here = "resting" + (
                time.strftime(" until %a %H:%M", time.localtime(until)) if until else ""
            )
        twice = ", its key is used by two machines" if node.get("key_shared") else ""
        typer.echo(f"node {node['name']}: {here}{twice}{loss}")
        if node.get("left_out"):
            typer.echo(f"  has no part in the run: {node['left_out']}")
        elif node.get("preparing"):
            typer.echo(f"  is {node['preparing']}")
    if pages > 1:
        typer.echo(f"page {page} of {pages}: zk0bot status --page N, or --json for all")
    if change := content["next_ca"]:
        have, lack = len(change["have"]), ", ".join(change["lack"])
        said = f"{have} of {have + len(change['lack'])} nodes have it"
        typer.echo(f"next CA: {said}{f', not {lack}' if lack else ''} (zk0bot server renew-ca)")
    if line := content["line"]:
        _print_line(line)
    if trained := content["trained"]:
        _print_trained(trained)
    if others := content["contributors"]:
        how = f"zk0bot status {contributors.OPTION} NAME"
        typer.echo(f"other contributors here: {', '.join(others)} ({how})")
    for todo in content["todo"]:
        typer.echo(f"what to do: {todo}")
    if os.geteuid() != 0:
        typer.echo("(root also sees the run and the nodes)", err=True)


def _print_line(line: dict[str, Any]) -> None:
    from zk0d.config.amounts import say_bytes

    today, limit = line["today"], line["bytes_per_day"]
    of = f", of {say_bytes(limit)} a day" if limit else ""
    typer.echo(f"line: {say_bytes(today['down'])} down, {say_bytes(today['up'])} up today{of}")
    if line["rests"]:
        typer.echo(f"  rests {line['rests']}")


def _print_trained(trained: dict[str, Any]) -> None:
    from zk0d.config.amounts import say_energy
    from zk0d.learning.progress import duration

    today = trained["today"]
    if today["rounds"]:
        energy = "" if today["joules"] is None else f", {say_energy(today['joules'])}"
        said = f"{today['rounds']} rounds, {duration(today['seconds'])}{energy}"
        typer.echo(f"trained: {said} today")
    losses = [
        (each["round"], each["holdout_loss"])
        for each in trained["rounds"]
        if each["holdout_loss"] is not None
    ]
    if losses:
        (first, before), (last, now) = losses[0], losses[-1]
        typer.echo(
            f"  shared policy on your held-out episodes: {before:.4f} after round {first - 1},"
            f" {now:.4f} after round {last - 1}"
        )
