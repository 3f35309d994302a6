"""``zk0bot run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_SUPERLINK = "127.0.0.1:8000"
DEFAULT_CA = Path("/etc/zk0d/tls/ca.crt")


def run(
    config: Annotated[
        list[str] | None,
        typer.Option("-c", "--config", help="Run settings, 'num-server-rounds=50 policy=act'."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds to train.")] = None,
    superlink: Annotated[
        str, typer.Option(help="HOST:PORT of the coordinator's SuperLink, on loopback.")
    ] = DEFAULT_SUPERLINK,
    ca: Annotated[Path, typer.Option(help="CA certificate of that SuperLink.")] = DEFAULT_CA,
) -> None:
    """Start a run on this coordinator; its bundle holds settings and no code."""
    from zk0d.config.run import parse_overrides, run_settings
    from zk0d.flower.control import Control

    values = parse_overrides(config or [])
    if rounds is not None:
        values["num-server-rounds"] = rounds
    settings = run_settings(values)
    with Control(superlink, ca) as control:
        typer.echo(control.start_run(settings))
