"""What LeRobot's own tools write out of recordings: apart from them, offline, and verified.

Opened on a folder that lacks something, LeRobot's classes download it from the hub into that
folder, and they copy tables to a cache. Here they may do neither.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zk0d.errors import DataError, TryAgainError, UsageError, Zk0dError, disk_trouble
from zk0d.learning.layout import INFO, read_layout
from zk0d.learning.tables import read_columns
from zk0d.learning.videos import check_pictures, check_videos

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDataset


def check_apart(output: Path, option: str) -> None:
    """Refuse to write into recordings: no folder above ``output`` may be a dataset.

    Raises
    ------
    UsageError
        Naming the option and the dataset.
    """
    place = output.resolve()
    for folder in (place, *place.parents):
        if (folder / INFO).exists():
            raise UsageError(
                f"{option}: {output} lies in the recordings at {folder}; name a folder elsewhere."
            )


@contextmanager
def draft_of(output: Path, option: str, source: str) -> Iterator[Path]:
    """A folder beside ``output`` to write into; what is left in there afterwards is removed.

    Within, LeRobot's tools reach no network and keep their copies of tables in that folder.

    Raises
    ------
    UsageError
        If ``output`` lies in recordings.
    TryAgainError
        If the disk is full or forbidden.
    DataError
        If LeRobot's tools fail with ``source``.
    """
    check_apart(output, option)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder,
            _offline(Path(folder) / "cache"),
        ):
            yield Path(folder)
    except Zk0dError:
        raise
    except Exception as error:  # its tools raise whatever a damaged file leads to
        if trouble := disk_trouble(error):
            raise TryAgainError(
                f"{output}: cannot be written ({trouble}); free space there or name another"
                " folder.",
                reason="disk_full",
            ) from None
        raise DataError(
            f"{source}: LeRobot cannot work with it ({type(error).__name__}: {error}); is the"
            " dataset whole?"
        ) from error


def verify(folder: Path, uri: str) -> None:
    """Hold a dataset to every rule that needs no decoding, all cameras and all pictures included.

    Raises
    ------
    DataError
        Naming episode, file and cure.
    """
    layout = read_layout(folder, uri)
    times = read_columns(layout)["timestamp"]
    check_videos(layout, layout.cameras, times)
    check_pictures(layout, times)


def opened(folder: Path) -> LeRobotDataset:
    """A verified dataset for LeRobot's tools; only within :func:`draft_of`."""
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset(f"local/{folder.name or 'dataset'}", root=folder, video_backend="pyav")


@contextmanager
def _offline(cache: Path) -> Iterator[None]:
    import datasets
    import huggingface_hub

    hub, tables = huggingface_hub.constants, datasets.config
    before = hub.HF_HUB_OFFLINE, tables.HF_DATASETS_CACHE
    hub.HF_HUB_OFFLINE, tables.HF_DATASETS_CACHE = True, cache
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, tables.HF_DATASETS_CACHE = before
