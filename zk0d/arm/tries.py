"""How often a policy succeeded on an owner's arm, as the owner said. No torch.

The counts lie in the owner's home, by the policy's weights and the type of robot. They go nowhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from pydantic import NonNegativeInt, ValidationError

from zk0d.config.base import Settings
from zk0d.config.names import WEIGHTS_FILE
from zk0d.errors import ConfigError, not_written
from zk0d.files import make_folder, write_file

FILE = "tries.json"
SCHEMA_VERSION = 1
#: Of a normal distribution, 95 % lie within so many standard deviations.
_Z = 1.959964


def wilson(succeeded: int, tried: int) -> tuple[float, float]:
    """The 95 % interval of a success rate (Wilson 1927), which also holds for few episodes."""
    if tried == 0:
        return 0.0, 1.0
    rate, weight = succeeded / tried, _Z**2 / tried
    middle = (rate + weight / 2) / (1 + weight)
    half = _Z * sqrt(rate * (1 - rate) / tried + weight / (4 * tried)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


class Tally(Settings):
    """The episodes of one policy on one type of robot."""

    policy_sha256: str  #: of the weights' file
    name: str  #: what the policy was called when it was tried last
    robot_type: str
    tried: NonNegativeInt = 0
    succeeded: NonNegativeInt = 0
    last: str = ""  #: UTC, ISO 8601

    @property
    def counts(self) -> str:
        """For a line of a list."""
        return f"tried {self.tried}, {self.succeeded} succeeded"

    def sentence(self) -> str:
        """The rate, and how sure it is."""
        low, high = wilson(self.succeeded, self.tried)
        rate = self.succeeded / self.tried if self.tried else 0.0
        return (
            f"{self.name} on {self.robot_type}: {self.counts}: {rate:.0%}, 95 % interval {low:.0%}"
            f" to {high:.0%}"
        )


class _Content(Settings):
    schema_version: int = SCHEMA_VERSION
    tries: tuple[Tally, ...] = ()


@dataclass(frozen=True)
class Tries:
    """The counts of a person."""

    folder: Path

    @classmethod
    def of_user(cls) -> Tries:
        """Those of who typed the command, also behind sudo."""
        return cls(_state_folder() / "zk0d")

    @property
    def file(self) -> Path:
        return self.folder / FILE

    def all(self) -> tuple[Tally, ...]:
        """Every count.

        Raises
        ------
        ConfigError
            If the file is there and cannot be read.
        """
        try:
            return _Content.model_validate_json(self.file.read_bytes()).tries
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            said = getattr(error, "strerror", None) or "it is damaged"
            raise ConfigError(
                f"{self.file}: the counts of tries cannot be read ({said}); move the file away to"
                " begin again."
            ) from None

    def add(self, sha256: str, name: str, robot_type: str, *, succeeded: bool) -> Tally:
        """Count an episode; returns the policy's counts on such a robot.

        Raises
        ------
        ConfigError
            If the file is there and cannot be read.
        TryAgainError
            If it cannot be written.
        """
        before = self.all()
        mine = next(
            (t for t in before if (t.policy_sha256, t.robot_type) == (sha256, robot_type)),
            Tally(policy_sha256=sha256, name=name, robot_type=robot_type),
        )
        now = mine.model_copy(
            update={
                "name": name,
                "tried": mine.tried + 1,
                "succeeded": mine.succeeded + succeeded,
                "last": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
        )
        content = _Content(tries=(*(each for each in before if each is not mine), now))
        try:
            for folder in _made(self.folder):
                _give_to_caller(folder)
            text = json.dumps(content.model_dump(mode="json"), indent=1)
            write_file(self.file, text + "\n")
            _give_to_caller(self.file)
        except OSError as error:
            raise not_written(f"{self.file}: the count cannot be written", error) from None
        return now


def weights_sha256(folder: Path) -> str:
    """What tells a policy from others: the SHA-256 of its weights' file.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with (folder / WEIGHTS_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _caller() -> pwd.struct_passwd | None:
    """Who typed sudo; ``None`` without it."""
    if os.geteuid() == 0 and (who := os.environ.get("SUDO_UID")):
        with contextlib.suppress(KeyError, ValueError):
            return pwd.getpwuid(int(who))
    return None


def _state_folder() -> Path:
    """Where a user's programs keep what they know, by the XDG rules."""
    if caller := _caller():
        return Path(caller.pw_dir) / ".local/state"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")


def _made(folder: Path) -> Iterator[Path]:
    """Make a folder; yields those that were not there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    yield from missing


def _give_to_caller(path: Path) -> None:
    if caller := _caller():
        os.chown(path, caller.pw_uid, caller.pw_gid)
