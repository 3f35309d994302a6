"""One dataset dealt out into several, by LeRobot's own tool."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from lerobot.datasets import dataset_tools

from zk0d.errors import TryAgainError
from zk0d.learning.partition import Scheme, partition
from zk0d.learning.recordings import open_recordings


def split_dataset(
    uri: str, output: Path, scheme: Scheme, parts: int, seed: int = 0, alpha: float = 0.5
) -> list[tuple[Path, int]]:
    """Write a dataset for each part below ``output``, which appears once all are whole.

    Returns
    -------
    Each part's folder and how many episodes it has.

    Raises
    ------
    DataError
        If it cannot be dealt out so (see :func:`zk0d.learning.partition.partition`).
    TryAgainError
        If they cannot be written.
    """
    recordings = open_recordings(uri)
    shares = partition(recordings, scheme, parts, seed=seed, alpha=alpha)
    names = [f"part-{number:0{len(str(parts - 1))}d}" for number in range(parts)]
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".splitting-", dir=output.parent) as draft:
            made = Path(draft) / "parts"
            dataset_tools.split_dataset(
                recordings.dataset, dict(zip(names, shares, strict=True)), output_dir=made
            )
            shutil.rmtree(output, ignore_errors=True)
            made.replace(output)
    except OSError as error:
        raise TryAgainError(
            f"{output}: the parts cannot be written ({error.strerror or error}); free space there"
            " or name another folder."
        ) from None
    return [(output / name, len(share)) for name, share in zip(names, shares, strict=True)]
