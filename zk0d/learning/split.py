"""One dataset split into several, by LeRobot's own tool."""

from __future__ import annotations

from pathlib import Path

from lerobot.datasets import dataset_tools

from zk0d.files import rename
from zk0d.learning.partition import Scheme, partition
from zk0d.learning.recordings import open_recordings
from zk0d.learning.rewriting import draft_of, keep_papers, opened, tidied, verify


def split_dataset(
    uri: str, output: Path, scheme: Scheme, parts: int, seed: int = 0, alpha: float = 0.5
) -> list[tuple[Path, int]]:
    """Write a dataset for each part below ``output``, which appears once all are verified.

    Returns
    -------
    Each part's folder and how many episodes it has.

    Raises
    ------
    DataError
        If it cannot be split so (see :func:`zk0d.learning.partition.partition`), if rows and
        pictures do not belong together, or if videos have a rate that is not a whole number.
    UsageError
        If the output lies in recordings.
    TryAgainError
        If they cannot be written.
    """
    recordings = open_recordings(uri)
    shares = partition(recordings, scheme, parts, seed=seed, alpha=alpha)
    names = [f"part-{number:0{len(str(parts - 1))}d}" for number in range(parts)]
    output = output.absolute()
    with draft_of(output, "OUTPUT", uri) as draft:
        # LeRobot counts pictures from a video's first: one that is missing would shift the others.
        layout = verify(recordings.layout.root, uri)
        if layout.info.fps % 1 and layout.episodes[0].spans:
            raise layout.wrong(
                f"has {layout.info.fps:g} frames per second; LeRobot splits videos of whole rates",
                "give the whole dataset to zk0bot simulate, which shares out its episodes",
            )
        made = draft / "parts"
        dataset_tools.split_dataset(
            opened(tidied(layout, draft / "whole")),
            dict(zip(names, shares, strict=True)),
            output_dir=made,
        )
        for name in names:
            keep_papers(layout.root, made / name)
            verify(made / name, f"{uri}: {name}")
        rename(made, output)
    return [(output / name, len(share)) for name, share in zip(names, shares, strict=True)]
