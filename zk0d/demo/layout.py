"""Where everything of a demo lies, under one folder, and what its contributors are called."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from zk0d.config.names import check_apart
from zk0d.errors import TryAgainError, UsageError
from zk0d.simulators.task import Sector

LETTERS = "abcdefghijklmnopqrstuvwxyz"
#: A unix socket's path has at most 107 bytes.
MAX_SOCKET_PATH = 100


@dataclass(frozen=True)
class Contributor:
    """One contributor: a letter, and its slice of the table."""

    letter: str
    sector: Sector

    @property
    def title(self) -> str:
        """How tables call it."""
        return self.letter.upper()

    @property
    def name(self) -> str:
        """How the federation calls it."""
        return f"contributor-{self.letter}"


@dataclass(frozen=True)
class Layout:
    """The folder of one demo."""

    root: Path
    count: int
    task: str = "soreach"  #: what they record
    _short: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, root: Path, count: int, task: str = "soreach") -> Layout:
        """Make the folder.

        Raises
        ------
        UsageError
            If there are too many contributors, or the folder holds something already or lies in
            recordings.
        TryAgainError
            If it cannot be written.
        """
        if not 1 <= count <= len(LETTERS):
            raise UsageError(f"--contributors: between 1 and {len(LETTERS)}, not {count}.")
        check_apart(root, "--folder")
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UsageError(f"--folder: {root} is not empty; name a new folder.")
        layout = cls(root.absolute(), count, task)
        try:
            layout.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TryAgainError(
                f"--folder: {root} cannot be written ({error.strerror}); name another folder."
            ) from None
        return layout

    @cached_property
    def contributors(self) -> list[Contributor]:
        return [Contributor(LETTERS[i], Sector(i, self.count)) for i in range(self.count)]

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def coordinator(self) -> Path:
        return self.root / "coordinator"

    @property
    def server_config(self) -> Path:
        return self.coordinator / "server.toml"

    @property
    def runs(self) -> Path:
        return self.coordinator / "runs"

    @property
    def everything(self) -> Path:
        """All recordings in one place, which a federation avoids."""
        return self.root / "recordings" / "everything"

    def home(self, contributor: Contributor) -> Path:
        return self.root / contributor.name

    def client_config(self, contributor: Contributor) -> Path:
        return self.home(contributor) / "client.toml"

    def recordings(self, contributor: Contributor) -> Path:
        return self.root / "recordings" / contributor.letter

    def held_out(self, contributor: Contributor) -> Path:
        return self.root / "recordings" / f"held-out-{contributor.letter}"

    def socket(self, name: str) -> Path:
        """A socket's path, in a short folder of the system's if ours is too long for one."""
        path = self.root / f"{name}.sock"
        if len(str(path).encode()) <= MAX_SOCKET_PATH:
            return path
        if not self._short:
            self._short.append(tempfile.mkdtemp(prefix="zk0d-"))
        return Path(self._short[0]) / f"{name}.sock"

    def clean(self) -> None:
        """Remove what does not lie under the folder."""
        for folder in self._short:
            for path in Path(folder).glob("*"):
                path.unlink(missing_ok=True)
            Path(folder).rmdir()
        self._short.clear()
