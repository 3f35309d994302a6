"""Who says in a simulation how far it is: a file, because Ray's workers are other processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zk0d.learning.progress import CacheUse, told_by

NAME = "progress.jsonl"
WRITE_SECONDS = 1.0

Report = Callable[[dict[str, Any]], None]


class ProgressFile:
    """Lines that any process of a simulation adds, and one reads."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._read = 0
        self._written = float("-inf")

    def begin(self) -> None:
        """Forget what earlier runs wrote."""
        self._path.unlink(missing_ok=True)
        self._read = 0

    def from_(self, who: str, report: Report = lambda event: None) -> Report:
        """Pass a learner's events on to ``report``, and write a line for some of them."""

        def write(event: dict[str, Any]) -> None:
            report(event)
            told, now = told_by(event), time.monotonic()
            if told is None:
                return
            if not isinstance(told, CacheUse):
                if now - self._written < WRITE_SECONDS:
                    return
                self._written = now
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # One write of a short line to a file that is appended to is whole.
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"who": who, **event}) + "\n")

        return write

    def new(self) -> list[tuple[str, bool]]:
        """Sentences that came since the last call, and whether each is told only once."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                fresh = file.read()
        except FileNotFoundError:
            return []
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read += len(whole)
        events = [json.loads(line) for line in whole.splitlines()]
        return [(f"{e['who']}: {told_by(e)}", isinstance(told_by(e), CacheUse)) for e in events]
