"""A run's truth on disk: an append-only journal and one folder per committed round.

``status``, reports, charts and resume read these and nothing else. A round exists once its folder
has its final name and the journal has its line; anything else is a draft that is thrown away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from zk0d.config.run import RunSettings, run_settings, stored_settings
from zk0d.errors import ConfigError, not_written
from zk0d.files import make_folder, sync_folder, whole_folder, write_file
from zk0d.record.events import EVENT, KINDS, AnyEvent, Event

JOURNAL, CONFIG, STATISTICS = "journal.jsonl", "config.json", "statistics.json"
WEIGHTS, MOMENTUM = "global.safetensors", "momentum.safetensors"
CHECKSUMS = "checksums.json"
#: A file in a run's folder by which a waiting run is asked to try at once.
TRY_NOW = "try-now"


class Journal:
    """The journal of one run, open for appending by its ServerApp.

    Parameters
    ----------
    folder
        The run's folder; made if it is not there.
    run
        The run's name, in every line.

    Raises
    ------
    TryAgainError
        From any method that writes, if the disk is full or the folder cannot be written.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder
        self.run = run
        with disk(folder):
            make_folder(self.rounds)
            for draft in self.rounds.glob(".*.partial"):
                shutil.rmtree(draft)
            self._drop_torn_line()

    @property
    def rounds(self) -> Path:
        return self.folder / "rounds"

    def _drop_torn_line(self) -> None:
        """A crash may have left half a line, which the next would be glued to."""
        path = self.folder / JOURNAL
        if path.exists():
            with path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def write[E: AnyEvent](self, event: E) -> E:
        """Append an event as a line, make it durable, and return it with its time and run."""
        event = event.model_copy(update={"time": time.time(), "run": self.run})
        text = json.dumps(event.model_dump(), allow_nan=False) + "\n"
        path = self.folder / JOURNAL
        with disk(self.folder):
            size = path.stat().st_size if path.exists() else 0
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):  # half a line, which the next would be glued to
                    os.truncate(path, size)
                raise
            if not size:
                sync_folder(self.folder)
        return event

    def round_folder(self, round_: int) -> Path:
        """Where a committed round lies."""
        return self.rounds / f"{round_:05d}"

    def write_json(self, name: str, content: Any) -> None:
        """Write a file of the run, whole or not at all."""
        text = json.dumps(content, indent=1, allow_nan=False)
        with disk(self.folder):
            write_file(self.folder / name, text)

    def commit(self, round_: int, files: dict[str, Callable[[Path], None]]) -> Path:
        """Write the folder of a round, which then exists whole and durable.

        Parameters
        ----------
        files
            For each file name a function that writes it at the path it is given.

        The folder also holds the files' SHA-256, by which :func:`is_whole` knows them.
        """
        final = self.round_folder(round_)
        with disk(self.rounds), whole_folder(final) as draft:
            sums = {}
            for name, write in files.items():
                write(draft / name)
                sums[name] = _sha256(draft / name)
            (draft / CHECKSUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        return final

    def prune(self, keep: int, also: Collection[int] = ()) -> None:
        """Remove all but the newest ``keep`` committed rounds and those in ``also``."""
        for number in committed_rounds(self.folder)[:-keep]:
            if number not in also:
                shutil.rmtree(self.round_folder(number), ignore_errors=True)


def read_journal(folder: Path) -> Iterator[Event]:
    """The events of a run's journal, oldest first; a torn last line is left out.

    So are kinds that this version does not know.
    """
    try:
        text = (folder / JOURNAL).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    yield from _events(line for line in text.splitlines(keepends=True) if line.endswith("\n"))


class JournalTail:
    """Follows a run's journal, reading each line once.

    Parameters
    ----------
    folder
        The run's folder; its journal may come later.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._at = 0

    def new_events(self) -> list[Event]:
        """The events whose whole lines came since the last call, oldest first."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                fresh = file.read()
        except FileNotFoundError:
            return []
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._at += len(whole)
        return list(_events(whole.splitlines()))


def settings_of(folder: Path) -> RunSettings:
    """The settings that the run in ``folder`` began with.

    Raises
    ------
    ConfigError
        If there is no such run, or they cannot be read.
    """
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: there is no such run to resume; zk0bot run starts a new one.",
            reason="nothing_to_resume",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: the run's settings cannot be read ({error}); start a new run.",
            reason="nothing_to_resume",
        ) from None
    return run_settings(stored_settings(values), where=str(path))


def _events(lines: Iterable[str | bytes]) -> Iterator[Event]:
    for line in lines:
        content = json.loads(line)
        if content.get("kind") in KINDS:
            yield EVENT.validate_python(content)


def is_whole(folder: Path) -> bool:
    """Whether a committed round's files are those that were written."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        return bool(sums) and all(_sha256(folder / name) == sum_ for name, sum_ in sums.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def committed_rounds(folder: Path) -> list[int]:
    """Rounds whose folder is there, ascending."""
    return sorted(int(path.name) for path in (folder / "rounds").glob("[0-9]*") if path.is_dir())


class disk:  # noqa: N801 - reads as a statement
    """Turns a failing disk into a sentence."""

    def __init__(self, where: Path) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            what = f"{self._where}: cannot be written"
            intact = " Every committed round is intact."
            raise not_written(what, error, " or choose another folder", intact) from None
