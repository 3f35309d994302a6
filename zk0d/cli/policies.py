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

    from zk0d.config.machine import ClientSettings
    from zk0d.learning.progress import Progress
    from zk0d.learning.trained import TrainedPolicy
    from zk0d.simulation.owned import OwnRecordings

TELL_SECONDS = 5.0
NAMED = "latest, best, a run's name for its best, RUN/ROUND, or a folder in LeRobot's layout."

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
    Path | None,
    typer.Option(help="Folder of a node's settings, which name its datasets and releases."),
]


def trained(text: str, folder: Path | None, contributor: str) -> TrainedPolicy:
    """The policy that a person names, which LeRobot as it is here can run.

    Raises
    ------
    UnavailableError
        If there is none.
    UsageError
        If it is a folder without a policy.
    ConfigError
        If another LeRobot wrote it, or no policy of zk0d's families is in it.
    """
    from zk0d.learning.trained import TrainedPolicy
    from zk0d.release.checkpoint import check_lerobot, joints_of, robot_types_of

    found = folder_of(text, folder, contributor)
    check_lerobot(found, text)
    return TrainedPolicy.read(found, text, robot_types_of(found), joints_of(found))


def folder_of(text: str, folder: Path | None, contributor: str) -> Path:
    """Where the policy that a person names lies: a release that was pulled, or any folder.

    Raises
    ------
    UnavailableError
        If there is none.
    UsageError
        If it is a folder without a policy.
    """
    from zk0d.config.machine import DEFAULT_POLICIES
    from zk0d.release.pulled import Pulled

    if text.startswith((".", "/", "~")):  # no release is called so, and settings need not be there
        return Pulled(DEFAULT_POLICIES).find(text)
    settings = settings_of(folder, contributor)
    return (Pulled.of(settings) if settings else Pulled(DEFAULT_POLICIES)).find(text)


def settings_of(folder: Path | None, contributor: str) -> ClientSettings | None:
    """The node's settings; ``None`` if this machine has none."""
    from zk0d.config.machine import ClientSettings

    path = _settings(folder, contributor)
    return ClientSettings.load(path) if path.exists() else None


def _settings(folder: Path | None, contributor: str) -> Path:
    return place(folder or units.CONFIG_FOLDER, contributor) / "client.toml"


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
        If they name none, or map cameras that the settings map.
    """
    from zk0d.errors import UsageError
    from zk0d.simulation.owned import OwnRecordings

    if datasets:
        return OwnRecordings.typed(datasets, cameras(camera), reading(learner))
    path = _settings(folder, contributor)
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
