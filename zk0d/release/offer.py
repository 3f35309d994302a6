"""What a coordinator offers its nodes: its checkpoints, each with a signed manifest.

A checkpoint has gigabytes, so it is hashed once, by a thread of its own, and again only when a file
of it is another one. What was made lies in the SuperLink's folder and outlives a restart.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0d.errors import Zk0dError
from zk0d.files import write_file
from zk0d.machine import release_key
from zk0d.record.held_out import change_of
from zk0d.record.summary import RunSummary
from zk0d.release.checkpoint import (
    BEST,
    CARD,
    LATEST,
    METRICS,
    PROVENANCE,
    Releases,
    name_of,
    read_summary,
)
from zk0d.release.manifest import (
    Offer,
    OnNodes,
    Release,
    ReleaseFile,
    SignedOffer,
    SignedRelease,
    is_of_layout,
)

log = logging.getLogger("zk0d")

#: In the SuperLink's folder: a file for each checkpoint that was hashed.
FOLDER = "offered"
VERSION = 1
_LICENSE = re.compile(r"^license: *['\"]?([^'\"\n]+)", re.MULTILINE)

#: Of a file: length, when it was changed, and which one it is.
Marks = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Hashed:
    """A checkpoint whose files were hashed."""

    folder: Path
    marks: Marks
    signed: SignedRelease
    release: Release

    def file(self, sha256: str) -> Path | None:
        """The file with this content, if it is still the one that was hashed."""
        for each in self.release.files:
            if each.sha256 == sha256:
                path = self.folder / each.path
                return path if _mark(path) == self.marks[each.path] else None
        return None


class Offered:
    """The checkpoints of a coordinator, for the service that tells nodes of them.

    Parameters
    ----------
    state
        The SuperLink's folder, where the key is.
    """

    def __init__(self, releases: Releases, state: Path) -> None:
        self._releases = releases
        self._state = state
        self._kept = state / FOLDER
        self._there: dict[str, Hashed] = {}
        self._left = 0  #: checkpoints that are still to be hashed
        self._thread: threading.Thread | None = None
        self._ends = threading.Event()

    def look(self) -> None:
        """Look for what is new, and have it hashed; costs the look alone."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self.hash_new, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Hash no more."""
        self._ends.set()

    def hash_new(self) -> None:
        """Hash what is new, forget what is gone; one that cannot be read is said and left out."""
        folders = {name_of(path): path for path in self._folders()}
        waiting = []
        for name, folder in folders.items():
            try:
                marks = _marks(folder)
                known = self._there.get(name) or self._read(name, folder)
            except OSError:  # it was removed while we looked
                continue
            if known is not None and known.marks == marks:
                self._there[name] = known
            else:
                waiting.append((name, folder, marks))
        self._there = {name: each for name, each in self._there.items() if name in folders}
        for number, (name, folder, marks) in enumerate(waiting):
            self._left = len(waiting) - number
            if self._ends.is_set():
                return
            try:
                self._there = {**self._there, name: self._hash(name, folder, marks)}
            except (OSError, ValueError, Zk0dError) as error:
                log.warning("release %s is not offered: %s", name, error)
        self._left = 0
        for path in self._kept.glob("*.json"):
            if path.stem.replace(".", "/") not in folders:
                path.unlink(missing_ok=True)

    def of(self, name: str) -> Hashed | None:
        """A checkpoint that is offered, ``RUN/ROUND``."""
        return self._there.get(name)

    def told(self, nonce: str) -> SignedOffer:
        """What is offered now, to the request with this number.

        Raises
        ------
        Zk0dError
            If the key cannot be read.
        """
        there = self._there
        latest = self._named(self._releases.folder / LATEST, there)
        runs = {each.release.run for each in there.values()}
        bests = {
            run: best
            for run in sorted(runs)
            if (best := self._named(self._releases.folder / run / BEST, there))
        }
        offer = Offer(
            nonce=nonce,
            latest=latest,
            best=_best([each.release for each in there.values()], latest),
            runs=bests,
            preparing=self._left,
            releases=tuple(each.signed for _, each in sorted(there.items())),
        )
        return SignedOffer.of(offer, release_key.own_key(self._state))

    def _folders(self) -> Iterator[Path]:
        yield from sorted(self._releases.folder.glob("*/checkpoint_round_*"))

    def _named(self, link: Path, there: dict[str, Hashed]) -> str:
        """The release that a link names, if it is offered."""
        name = name_of(link.resolve()) if link.is_symlink() else ""
        return name if name in there else ""

    def _hash(self, name: str, folder: Path, marks: Marks) -> Hashed:
        files = []
        for path in sorted(marks):
            with (folder / path).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            files.append(ReleaseFile(path=path, size=marks[path][0], sha256=sha256))
        release = describe(folder, files)
        if _marks(folder) != marks:
            raise ValueError("it was changed while it was read")
        signed = SignedRelease.of(release, release_key.own_key(self._state))
        self._keep(name, marks, signed)
        log.info("release %s is offered to nodes", name)
        return Hashed(folder, marks, signed, release)

    def _keep(self, name: str, marks: Marks, signed: SignedRelease) -> None:
        content = {
            "version": VERSION,
            "key": release_key.fingerprint(
                release_key.public_half(release_key.own_key(self._state))
            ),
            "marks": marks,
            "signed": signed.model_dump(),
        }
        self._kept.mkdir(exist_ok=True)
        write_file(self._kept / f"{name.replace('/', '.')}.json", json.dumps(content))

    def _read(self, name: str, folder: Path) -> Hashed | None:
        """What was kept of a checkpoint, if the key is still the one that signed it."""
        path = self._kept / f"{name.replace('/', '.')}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            signed = SignedRelease.model_validate(content["signed"])
            signed.check(release_key.public_half(release_key.own_key(self._state)))
            marks = {place: tuple(mark) for place, mark in content["marks"].items()}
            return Hashed(folder, marks, signed, signed.read())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, Zk0dError):
            return None


def describe(folder: Path, files: list[ReleaseFile]) -> Release:
    """The manifest of a checkpoint's folder, by what lies in it.

    Raises
    ------
    Zk0dError
        If it is no checkpoint of zk0d.
    ValueError
        If what it tells of itself has another form.
    """
    summary = read_summary(folder)
    gate = _json(folder / METRICS).get("gate", {})
    origin = _json(folder / PROVENANCE)
    points = {point.round: point for point in summary.evaluations}
    own, first = points.get(summary.round), points.get(0)
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).exists() else ""
    found = _LICENSE.search(card)
    comparable = json.dumps(summary.comparable, sort_keys=True, default=str)
    return Release(
        run=folder.parent.name,
        round=summary.round,
        began=summary.began,
        policy=str(summary.settings["policy"]),
        base_model=str(summary.settings["model-name"]),
        lerobot=summary.versions.get("lerobot", ""),
        zk0d=summary.versions.get("zk0d", ""),
        license=found[1].strip() if found else "",
        data_licenses=origin.get("evaluation_licenses", {}),
        robot_types=tuple(origin.get("robot_types", ())),
        contributors=len(summary.nodes),
        passed=bool(gate.get("passed")),
        accepted=str(gate.get("accepted", "")),
        reasons=tuple(gate.get("reasons", ())),
        loss=own.loss if own else None,
        baseline=first.loss if first else None,
        losses=own.losses if own else {},
        success=own.success if own else None,
        judged_by=str(gate.get("judged_by", "coordinator")),
        on_nodes=_on_nodes(summary),
        comparable=hashlib.sha256(comparable.encode()).hexdigest()[:16],
        files=tuple(files),
    )


def _on_nodes(summary: RunSummary) -> OnNodes | None:
    found = change_of(summary)
    if found is None:
        return None
    return OnNodes(
        nodes={each.node: each.change for each in found.nodes},
        change=found.mean,
        spread=found.spread,
    )


def _best(releases: list[Release], latest: str) -> str:
    """The lowest loss of what passed the gate, and was evaluated as the latest was."""
    like = next((each.comparable for each in releases if each.name == latest), "")
    ranked = [
        (each.loss, each.name)
        for each in releases
        if each.passed and each.loss is not None and each.comparable == like
    ]
    return min(ranked)[1] if ranked else latest


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no table")
    return content


def _marks(folder: Path) -> Marks:
    """The files of a checkpoint that are of LeRobot's layout; links and anything else stay here."""
    found: Marks = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if is_of_layout(name) and (mark := _mark(path)) is not None:
            found[name] = mark
    return found


def _mark(path: Path) -> tuple[int, int, int] | None:
    """What says whether a file is still the same; ``None`` if it is none."""
    try:
        seen = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(seen.st_mode):
        return None
    return seen.st_size, seen.st_mtime_ns, seen.st_ino
