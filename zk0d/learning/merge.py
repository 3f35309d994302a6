"""Several datasets in one, by LeRobot's own tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lerobot.datasets.aggregate import aggregate_datasets

from zk0d.files import rename
from zk0d.learning.rewriting import draft_of, tidied, verify


def merge_datasets(folders: Sequence[Path], output: Path) -> None:
    """Write one dataset with the episodes of all, in order; it appears once it is verified.

    Raises
    ------
    DataError
        If they do not fit together, or if rows and pictures do not.
    TryAgainError
        If it cannot be written.
    """
    layouts = [verify(folder, str(folder)) for folder in folders]
    with draft_of(output, "output", str(folders[0])) as draft:
        made = draft / output.name
        sources = [
            tidied(layout, draft / "sources" / str(place)) for place, layout in enumerate(layouts)
        ]
        aggregate_datasets(
            [f"local/{source.name}" for source in sources],
            f"local/{output.name}",
            roots=sources,
            aggr_root=made,
        )
        verify(made, str(output))
        rename(made, output)
