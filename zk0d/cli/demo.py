"""``zk0bot demo``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import click
import typer

from zk0d.config.families import FAMILIES


class Task(StrEnum):
    """Simulated tasks there are."""

    soreach = "soreach"
    so101 = "so101"


def demo(
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds to train (12; 50 on so101; 6 for multi_task_dit, xvla)."),
    ] = None,
    contributors: Annotated[
        int, typer.Option(min=1, max=26, help="Contributors that share the table.")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Fixes recordings, weights and sampling.")] = 0,
    policy: Annotated[
        str, typer.Option(help="Policy to train.", click_type=click.Choice(list(FAMILIES)))
    ] = "smolvla",
    task: Annotated[
        Task,
        typer.Option(help="Task to learn; so101 has physics and needs zk0d[sim]."),
    ] = Task.soreach,
    demonstrations: Annotated[
        int | None,
        typer.Option(min=1, help="Recorded episodes per contributor (150; 100 on so101)."),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Held-out episodes per region in the final table (100; 50 on so101)."
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="A new folder for everything (demo-runs/DATE).")
    ] = None,
    config: Annotated[
        list[str] | None, typer.Option("-c", "--config", help="Run settings, 'key=value ...'.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(help="Also save the view at the end as a picture.")
    ] = None,
) -> None:
    """Run a whole federation on this machine and compare it with training alone."""
    from rich.console import Console

    from zk0d.config.names import check_apart
    from zk0d.config.run import parse_overrides
    from zk0d.demo.budget import EPISODES
    from zk0d.demo.main import DemoOptions, run_demo
    from zk0d.errors import UsageError

    if svg is not None:
        check_apart(svg, "--svg")
        if not svg.parent.is_dir():
            raise UsageError(f"--svg: there is no folder {svg.parent}; make it or name another.")
    options = DemoOptions(
        seed=seed,
        contributors=contributors,
        rounds=rounds,
        policy=policy,
        task=task.value,
        demonstrations=demonstrations or EPISODES[task.value].recorded,
        episodes=episodes or EPISODES[task.value].driven,
        folder=folder,
        overrides=tuple(parse_overrides(config or []).items()),
    )
    try:
        run_demo(options, Console(), svg)
    except KeyboardInterrupt:
        typer.echo("zk0bot: interrupted; every process of the demo was stopped.", err=True)
        raise typer.Exit(130) from None
