"""What a run's journal says of the rounds that count, for going on with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zk0d.config.run import RunSettings, run_settings
from zk0d.errors import ConfigError
from zk0d.federation.journal import CONFIG, is_whole, read_journal


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
            f"{folder}: there is no such run to go on with; zk0bot run starts a new one.",
            reason="nothing_to_resume",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: the run's settings cannot be read ({error}); start a new run.",
            reason="nothing_to_resume",
        ) from None
    return run_settings(values, where=str(path))


@dataclass
class History:
    """A fold over the journal: a round that was committed again counts once, the last time."""

    rounds: dict[int, dict[str, Any]] = field(default_factory=dict)  #: ``round.committed`` lines
    refused: list[dict[str, Any]] = field(default_factory=list)  #: ``update.refused`` lines
    spec: dict[str, Any] | None = None
    statistics_sha256: str = ""
    began: float = 0.0  #: seconds since 1970
    finished: bool = False

    def take(self, line: dict[str, Any]) -> None:
        """Read the next line."""
        kind = line["kind"]
        if kind == "run.started":
            self.began = self.began or line["time"]
        elif kind == "model.ready":
            self.spec = line["spec"]
        elif kind == "statistics.merged":
            self.statistics_sha256 = line["sha256"]
        elif kind == "round.committed":
            self.rounds[line["round"]] = line
        elif kind == "update.refused":
            self.refused.append(line)
        elif kind == "run.resumed":
            self.cut(line["round"])
        elif kind == "run.finished":
            self.finished = True

    def cut(self, last: int) -> None:
        """Forget what came after round ``last``."""
        self.rounds = {n: line for n, line in self.rounds.items() if n <= last}
        self.refused = [line for line in self.refused if line["round"] <= last]

    @classmethod
    def read(cls, folder: Path) -> History:
        """The history of the run in ``folder``."""
        history = cls()
        for line in read_journal(folder):
            history.take(line)
        return history

    def last_whole(self, folder: Path) -> int:
        """The newest committed round whose files are what was written.

        Raises
        ------
        ConfigError
            If there is none.
        """
        for number in sorted(self.rounds, reverse=True):
            if is_whole(folder / "rounds" / f"{number:05d}"):
                return number
        raise ConfigError(
            f"{folder}: no committed round is whole, so there is nothing to go on from; start a"
            " new run.",
            reason="nothing_to_resume",
        )
