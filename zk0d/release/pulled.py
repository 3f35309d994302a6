"""The coordinator's releases on an owner's machine: where they lie, and which one a word means.

```text
POLICIES/RUN/checkpoint_round_N/   a release, as LeRobot loads it, with its signed manifest
         latest, best              links to what was fetched under these names
         release.pub               the coordinator's key, if no invite brought it
         .incoming/                files that have not come whole
```

Files are read-only, and large ones are one file on the disk for all releases that have them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zk0d.config.machine import ClientSettings
from zk0d.config.names import POLICY_PARTS
from zk0d.errors import ConfigError, UnavailableError, UsageError
from zk0d.machine import release_key
from zk0d.release.checkpoint import BEST, LATEST
from zk0d.release.manifest import FILE, Release, SignedRelease

INCOMING = ".incoming"
NAMES = (LATEST, BEST)

#: What is known of a release here: signed by the coordinator's key and as it was signed; of
#: another key; changed or cut short since.
State = Literal["whole", "unknown-key", "changed"]


@dataclass(frozen=True)
class PulledRelease:
    """One that lies here."""

    folder: Path
    signed: SignedRelease
    release: Release

    @classmethod
    def read(cls, folder: Path) -> PulledRelease:
        """The one in a folder.

        Raises
        ------
        ConfigError
            If the folder holds none.
        """
        path = folder / FILE
        try:
            signed = SignedRelease.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or "it is damaged"
            raise ConfigError(
                f"{folder}: is not a release that was pulled ({path.name}: {said}); zk0bot policy"
                " list shows those that are here."
            ) from None
        return cls(folder, signed, signed.read())

    def has_sizes(self) -> bool:
        """Whether each file is there with its length: what a look costs."""
        try:
            return all(
                (self.folder / file.path).lstat().st_size == file.size
                for file in self.release.files
            )
        except OSError:
            return False

    def check(self, key: str) -> tuple[State, str]:
        """What is known of it by the coordinator's key, and which file says so; reads them all."""
        try:
            self.signed.check(key)
        except ConfigError:
            return "unknown-key", FILE
        file = self.changed()
        return ("changed", file) if file else ("whole", "")

    def changed(self) -> str:
        """The first file that is not as the manifest says; empty if all are. Reads them all."""
        wrong = (
            file.path
            for file in self.release.files
            if not is_this(self.folder / file.path, file.size, file.sha256)
        )
        return next(wrong, "")


class Pulled:
    """The folder of an owner's releases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, settings: ClientSettings) -> Pulled:
        """That of a contributor."""
        return cls(settings.policies_folder)

    @property
    def incoming(self) -> Path:
        """Where files are that have not come whole."""
        return self.folder / INCOMING

    def all(self) -> list[PulledRelease]:
        """Those that are here, the newest run and round last."""
        return sorted(self._found(), key=lambda each: (each.release.began, each.release.round))

    def _found(self) -> Iterator[PulledRelease]:
        for path in self.folder.glob(f"*/checkpoint_round_*/{FILE}"):
            try:
                yield PulledRelease.read(path.parent)
            except ConfigError:
                continue

    def named(self, name: str) -> Path | None:
        """What ``latest`` or ``best`` names here."""
        link = self.folder / name
        return link.resolve() if link.is_dir() else None

    def known_key(self, settings: ClientSettings) -> str:
        """The coordinator's key of releases; empty if none is known yet."""
        return release_key.known(settings.coordinator.release_key, self.folder)

    def find(self, name: str) -> Path:
        """The folder that a word means.

        Parameters
        ----------
        name
            ``latest``, ``best``, a run's name for the best of it that is here, ``RUN/ROUND``, or
            any folder of a policy.

        Raises
        ------
        UnavailableError
            If it is not here.
        UsageError
            If it is a folder without a policy.
        """
        if (folder := self._place(name)) is not None:
            return folder
        path = Path(name).expanduser()
        if path.is_dir():
            if missing := next((part for part in POLICY_PARTS if not (path / part).is_file()), ""):
                raise UsageError(f"{name}: holds no policy of LeRobot ({missing} is missing).")
            return path.resolve()
        if not self.all() and name in NAMES:
            raise UnavailableError(
                f"no release is in {self.folder} yet; zk0bot policy pull fetches the latest one.",
                reason="no_release",
            )
        raise UnavailableError(
            f"release '{name}' is not in {self.folder}, and there is no such folder; zk0bot policy"
            f" pull {name} fetches it, zk0bot policy list shows what there is.",
            reason="no_release",
        )

    def _place(self, name: str) -> Path | None:
        """The folder of a release that is here."""
        if name in NAMES:
            return self.named(name)
        run, _, number = name.partition("/")
        ours = [each for each in self.all() if each.release.run == run]
        if number:
            return next((each.folder for each in ours if each.release.name == name), None)
        ranked = [
            (each.release.is_released, -each.release.loss, each.release.round, each.folder)
            for each in ours
            if each.release.loss is not None
        ]
        if ranked:
            return max(ranked)[-1]
        return ours[-1].folder if ours else None

    def holder(self, size: int, sha256: str) -> Path | None:
        """A file that is here with this content."""
        for each in self._found():
            for file in each.release.files:
                if file.sha256 == sha256 and is_this(each.folder / file.path, size, sha256):
                    return each.folder / file.path
        return None


def policy_folder(name: str, settings: ClientSettings) -> Path:
    """The folder that ``latest``, ``best``, a run, ``RUN/ROUND`` or a folder means on this machine.

    Raises as :meth:`Pulled.find`.
    """
    return Pulled.of(settings).find(name)


def check_whole(folder: Path, title: str, settings: ClientSettings | None) -> str:
    """Refuse a release that is not as its coordinator signed it; reads all of its files.

    Returns
    -------
    A sentence, if nothing says whose the folder is or by which key to tell; else nothing.

    Raises
    ------
    ConfigError
        If a file is another one, or another key signed it.
    """
    if not (folder / FILE).is_file():
        return f"{title} was not pulled from a coordinator, so its files have no signature."
    found = PulledRelease.read(folder)
    key = Pulled.of(settings).known_key(settings) if settings else ""
    state, file = found.check(key) if key else ("whole", found.changed())
    if state == "unknown-key":
        raise ConfigError(
            f"{title}: another key signed it than the coordinator's that this machine knows; do not"
            " use it, and tell the coordinator's operator.",
            reason="wrong_signature",
        )
    if file:
        raise ConfigError(
            f"{title}: {folder / file} is not as the coordinator signed it; pull the release"
            " again.",
            reason="wrong_hash",
        )
    return "" if key else f"{title}: this machine knows no key to check who signed it."


def is_this(path: Path, size: int, sha256: str) -> bool:
    """Whether a file has this length and content."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
