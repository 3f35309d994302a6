"""Datasets of LeRobot's format v2.1, copied into v3.0 by LeRobot's own script."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from zk0d.errors import DataError, UsageError
from zk0d.files import rename
from zk0d.learning.layout import (
    INFO,
    Episode,
    Info,
    Layout,
    Span,
    first_line,
    read_table,
    wrong,
)
from zk0d.learning.rewriting import draft_of, verify
from zk0d.learning.videos import check_pictures

FROM = "v2.1"


def convert(folder: Path, output: Path) -> Path:
    """A converted copy of ``folder`` at ``output``, which appears once it is whole and verified.

    Raises
    ------
    DataError
        If the folder is no dataset of that format, if LeRobot cannot convert it, or if rows and
        pictures of the copy do not belong together.
    UsageError
        If the output is there already, or lies in recordings.
    TryAgainError
        If the copy cannot be written.
    """
    folder, output = folder.resolve(), output.resolve()
    _check(folder)
    if output.exists():
        raise UsageError(f"--output: {output} is there already; name a new folder.")
    with draft_of(output, "--output", str(folder)) as draft:
        # The script works in place and beside it.
        copy = draft / "work" / output.name
        shutil.copytree(folder, copy)
        _check_pictures(folder)
        _run_lerobots(copy)
        verify(copy, str(folder))
        rename(copy, output)
    return output


def _check(folder: Path) -> None:
    try:
        version = str(json.loads((folder / INFO).read_text(encoding="utf-8"))["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: is not a LeRobot dataset ({type(error).__name__} at {INFO}); give the"
            " folder that holds meta, data and videos."
        ) from None
    if version != FROM:
        raise DataError(
            f"{folder}: is of LeRobot's format {version}; only {FROM} can be converted."
        )


def _check_pictures(folder: Path) -> None:
    """Each episode's video has a picture for each of its rows; the script would not notice."""
    uri = str(folder)
    facts = json.loads((folder / INFO).read_text(encoding="utf-8"))
    try:
        info = Info.model_validate(facts)
        chunk_size = int(facts.get("chunks_size", 1000))
        episodes, times, rows = [], [], 0
        for number in range(info.total_episodes):
            names = {"episode_chunk": number // chunk_size, "episode_index": number}
            file = info.data_path.format(**names)
            stamps = read_table(folder, file, uri, ["timestamp"]).column(0).to_numpy()
            spans = {
                name: Span((info.video_path or "").format(video_key=name, **names), 0.0, 0.0)
                for name, feature in info.features.items()
                if feature.dtype == "video"
            }
            episodes.append(Episode(number, slice(rows, rows + len(stamps)), file, spans))
            times.append(stamps)
            rows += len(stamps)
    except (ValidationError, ValueError, KeyError) as error:
        raise wrong(uri, f"{INFO} cannot be read ({first_line(error)})") from None
    layout = Layout(uri, folder, info, (), tuple(episodes))
    check_pictures(layout, np.concatenate(times))


def _run_lerobots(copy: Path) -> None:
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    convert_dataset(f"local/{copy.name}", root=copy, push_to_hub=False)
