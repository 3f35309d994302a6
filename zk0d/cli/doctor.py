"""``zk0bot doctor``: what is wrong with this machine, and what to do."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from zk0d.cli.status import Json
from zk0d.cli.verbs import Contributor, Folder, place
from zk0d.machine import units
from zk0d.machine.roles import Role

if TYPE_CHECKING:
    from zk0d.doctor.finding import Finding

SCHEMA_VERSION = 1


def doctor(
    role: Annotated[
        Role | None,
        typer.Argument(help="The role to check; by default all that have settings here."),
    ] = None,
    as_json: Json = False,
    folder: Folder = units.CONFIG_FOLDER,
    contributor: Contributor = "",
) -> None:
    """Check this machine; show each problem, its evidence and its cure (exit code 1)."""
    from zk0d.doctor.finding import Host
    from zk0d.doctor.main import examine

    folder = place(folder, contributor)
    role = role or (Role.CLIENT if contributor else None)
    findings = []
    for finding in examine([role.value] if role else [], folder, Host.of(folder)):
        findings.append(finding)
        if not as_json:
            _print(finding)
    ok = all(finding.ok is not False for finding in findings)
    if as_json:
        content = {
            "schema_version": SCHEMA_VERSION,
            "ok": ok,
            "findings": [asdict(finding) for finding in findings],
        }
        typer.echo(json.dumps(content, indent=1))
    elif os.geteuid() != 0:
        typer.echo("(root also sees keys and the programs that hold a port)", err=True)
    if not ok:
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    if finding.ok is None:
        typer.echo(f"?     {finding.rule}: {finding.problem}")
    elif finding.ok:
        typer.echo(f"ok    {finding.rule}: {finding.evidence}")
    else:
        typer.echo(f"WRONG {finding.rule}: {finding.problem}")
        typer.echo(f"      evidence: {finding.evidence}")
        typer.echo(f"      what to do: {finding.cure}")
