"""Datasets of LeRobot's format v2.1, copied into v3.0 by LeRobot's own script."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from zk0d.errors import DataError, TryAgainError, UsageError
from zk0d.learning.recordings import open_recordings

FROM = "v2.1"


def convert(folder: Path, output: Path) -> Path:
    """A converted copy of ``folder`` at ``output``, which appears once it is whole and opens.

    Raises
    ------
    DataError
        If the folder is no dataset of that format, or LeRobot cannot convert it.
    UsageError
        If the output is there already.
    TryAgainError
        If the copy cannot be written.
    """
    folder, output = folder.resolve(), output.resolve()
    _check(folder)
    if output.exists():
        raise UsageError(f"--output: {output} is there already; name a new folder.")
    try:
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=output.parent) as draft:
            # The script works in place and beside it.
            copy = Path(draft) / output.name
            shutil.copytree(folder, copy)
            _run_lerobots(copy)
            open_recordings(f"local:{copy}")
            copy.replace(output)
    except OSError as error:
        raise TryAgainError(
            f"{output}: the copy cannot be written ({error.strerror or error}); free space there or"
            " name another folder with --output."
        ) from None
    return output


def _check(folder: Path) -> None:
    info = folder / "meta" / "info.json"
    try:
        version = str(json.loads(info.read_text(encoding="utf-8"))["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: is no LeRobot dataset ({type(error).__name__} at meta/info.json); give the"
            " folder that holds meta, data and videos."
        ) from None
    if version != FROM:
        raise DataError(
            f"{folder}: is of LeRobot's format {version}; only {FROM} can be converted."
        )


def _run_lerobots(copy: Path) -> None:
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    try:
        convert_dataset(f"local/{copy.name}", root=copy, push_to_hub=False)
    except OSError:
        raise
    except Exception as error:  # its script raises whatever a damaged file leads to
        raise DataError(
            f"{copy.name}: LeRobot cannot convert it ({type(error).__name__}: {error}); is the"
            " dataset whole?"
        ) from error
