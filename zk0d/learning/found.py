"""Recordings that lie where LeRobot puts them on this machine. No torch."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zk0d.errors import Zk0dError
from zk0d.learning.layout import FORMAT, FORMER, INFO, datasets_folder, read_info

_USUAL = Path(".cache/huggingface/lerobot")  #: below a home


@dataclass(frozen=True)
class FoundDataset:
    """A dataset, by its metadata alone.

    Attributes
    ----------
    name
        Its folder below LeRobot's own, such as ``ann/arm``.
    problem
        Why it cannot be used as it is, in one sentence; empty if its metadata does not say so.
    """

    folder: Path
    name: str
    episodes: int = 0
    minutes: float = 0.0
    problem: str = ""


def lerobot_folders() -> list[Path]:
    """Where LeRobot keeps datasets: by this environment, in this home, in that of who typed sudo.

    What it downloaded into its cache of the hub is not among them: nobody recorded it here.
    """
    homes = [Path.home()]
    if who := os.environ.get("SUDO_UID"):
        with contextlib.suppress(KeyError, ValueError):
            homes.append(Path(pwd.getpwuid(int(who)).pw_dir))
    return list(dict.fromkeys([datasets_folder(), *(home / _USUAL for home in homes)]))


def look_through(folders: list[Path]) -> list[FoundDataset]:
    """The datasets in LeRobot's folders, the newest first."""
    found: dict[Path, FoundDataset] = {}
    for root in folders:
        for folder in _datasets(root):
            found.setdefault(
                folder.resolve(), _read(folder.resolve(), str(folder.relative_to(root)))
            )
    return sorted(found.values(), key=lambda each: _age(each.folder), reverse=True)


def _datasets(root: Path) -> Iterator[Path]:
    """Folders of datasets as LeRobot lays them: ``name`` or ``user/name``."""
    for depth in ("*", "*/*"):
        try:
            yield from (info.parents[1] for info in sorted(root.glob(f"{depth}/{INFO}")))
        except OSError:  # what may not be looked into is not offered
            continue


def _read(folder: Path, name: str) -> FoundDataset:
    try:
        info = read_info(folder, name, (FORMAT, *FORMER))
    except Zk0dError as error:
        return FoundDataset(folder, name, problem=error.message)
    minutes = info.total_frames / info.fps / 60
    problem = ""
    if not info.codebase_version.startswith(FORMAT):
        problem = f"format {info.codebase_version}; zk0bot data convert {folder} makes a copy"
    return FoundDataset(folder, name, info.total_episodes, minutes, problem)


def _age(folder: Path) -> float:
    try:
        return (folder / INFO).stat().st_mtime
    except OSError:
        return 0.0
