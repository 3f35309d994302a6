"""What the verbs of ``zk0bot policy`` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0d.cli.simulate import cameras, reading
from zk0d.cli.verbs import place
from zk0d.machine import units

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from zk0d.learning.progress import Progress
    from zk0d.learning.trained import TrainedPolicy
    from zk0d.simulation.owned import OwnRecordings

Datasets = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        metavar="DATASET",
        help="Your recordings, a folder or user/name; may be repeated. Without it, those of this"
        " node's settings.",
    ),
]
HoldOut = Annotated[
    float | None,
    typer.Option(
        help="Share of each dataset's episodes, the newest, that the policy is measured on"
        " (learner.holdout-episodes of the settings, else 0.1)."
    ),
]
Frames = Annotated[int, typer.Option(min=0, help="Held-out frames to measure on; 0: all.")]
Seed = Annotated[int, typer.Option(min=0, help="Fixes noise, times and sampling.")]
Folder = Annotated[
    Path | None, typer.Option(help="Folder of a node's settings, which name its datasets.")
]


def trained(text: str) -> TrainedPolicy:
    """The policy that a person names, which LeRobot as it is here can run.

    Raises
    ------
    UnavailableError
        If there is none.
    ConfigError
        If another LeRobot wrote it, or no policy of zk0d's families is in it.
    """
    from zk0d.learning.trained import TrainedPolicy
    from zk0d.release.checkpoint import check_lerobot

    folder = folder_of(text)
    check_lerobot(folder, text)
    return TrainedPolicy.read(folder, text)


def folder_of(text: str) -> Path:
    """Where the policy that a person names lies.

    Raises
    ------
    UnavailableError
        If there is none.
    """
    from zk0d.errors import UnavailableError

    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise UnavailableError(
            f"{text}: there is no folder {folder.absolute()}; name a checkpoint's folder."
        )
    return folder.resolve()


def owned(
    datasets: list[str] | None,
    camera: list[str] | None,
    learner: list[str] | None,
    folder: Path | None,
    contributor: str,
) -> OwnRecordings:
    """The recordings that the options mean.

    Raises
    ------
    UsageError
        If they contradict each other, or name none.
    """
    from zk0d.errors import UsageError
    from zk0d.simulation.owned import OwnRecordings

    if datasets:
        if contributor or folder:
            raise UsageError("--dataset names recordings, so leave --folder and --contributor out.")
        return OwnRecordings.typed(datasets, cameras(camera), reading(learner))
    home = folder or units.CONFIG_FOLDER
    path = (place(home, contributor) if contributor else home) / "client.toml"
    if camera:
        raise UsageError(f"--camera goes with --dataset; {path} maps the cameras of its own.")
    return OwnRecordings.lent(path, reading(learner) if learner else None)


def teller(console: Console) -> Callable[[Progress], None]:
    """Says how far it is: on a terminal in one line, elsewhere now and then."""
    import time

    told = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            console.print(str(progress), soft_wrap=True, highlight=False, markup=False)

    return tell


TELL_SECONDS = 5.0
