"""Several datasets in one, by LeRobot's own tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lerobot.datasets.aggregate import aggregate_datasets

from zk0d.files import rename
from zk0d.learning.rewriting import draft_of, verify


def merge_datasets(folders: Sequence[Path], output: Path) -> None:
    """Write one dataset with the episodes of all, in order; it appears once it is verified.

    Raises
    ------
    DataError
        If they do not fit together, or if rows and pictures do not.
    TryAgainError
        If it cannot be written.
    """
    for folder in folders:
        verify(folder, str(folder))
    with draft_of(output, "output", str(folders[0])) as draft:
        made = draft / output.name
        aggregate_datasets(
            [f"local/{folder.name}" for folder in folders],
            f"local/{output.name}",
            roots=list(folders),
            aggr_root=made,
        )
        verify(made, str(output))
        rename(made, output)
