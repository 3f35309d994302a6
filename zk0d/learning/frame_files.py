"""What was made of frames, kept in files from one start of a learner to the next.

A file holds one episode of one camera. Its name is a hash of all that its content follows from, so
nothing has to be compared, and recordings that grew or moved find what they had. Several processes
may use a folder: a file appears whole, is never changed, and is not removed while one of them uses
it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
import weakref
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from os import posix_fallocate
from pathlib import Path
from typing import Any

import torch

from zk0d.config.names import check_apart
from zk0d.errors import TryAgainError, not_written
from zk0d.files import whole_file, write_file
from zk0d.learning.progress import size

log = logging.getLogger("zk0d")

FOLDER = "frames"  #: within ``cache.folder``
#: Raised when the same names no longer mean the same content.
FORMAT = 1
#: What decodes, shrinks and embeds: another version of it may round in another way.
MAKERS = ("av", "pillow", "torch", "torchvision", "transformers", "lerobot")
OF_DISK = 0.9  #: of what a disk has free, and the folder has taken of it, that the folder may take
_MAGIC = b"zk0dfrm1"
_SUM = slice(len(_MAGIC), len(_MAGIC) + 4)  #: CRC-32 of all that comes after it
HEAD_BYTES = 4096  #: of a file: before its values, or a multiple if many frames are missing
_KEPT, _USE, _DRAFT = ".frames", ".use", ".partial"


@dataclass(frozen=True)
class Frames:
    """What was made of one episode of one camera.

    Attributes
    ----------
    values
        Shape ``(frames, …)``; of a file, mapped into memory. It is not to be written.
    missing
        Which frames have no picture, bool, shape ``(frames,)``.
    """

    values: torch.Tensor
    missing: torch.Tensor


@dataclass
class FrameFiles:
    """The files of one folder, as one process uses them.

    Parameters
    ----------
    place
        ``cache.folder``; the files are in a folder of their own within it.
    most
        How many bytes they may take, all of them together.
    """

    place: Path
    most: int
    _own: frozenset[str] = field(default=frozenset(), init=False)
    _use: Path | None = field(default=None, init=False)

    @property
    def folder(self) -> Path:
        return self.place / FOLDER

    @cached_property
    def usable(self) -> bool:
        """Whether files can be kept. The folder must be nobody else's: what lies there is believed.

        Raises
        ------
        UsageError
            If it lies in recordings.
        """
        if not self.most:
            return False
        check_apart(self.place, "cache.folder")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.folder.stat().st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it is another user's")
            with self._alone():
                return True
        except OSError as error:
            log.warning("%s: no frames are kept there (%s)", self.folder, error.strerror or error)
            return False

    def room(self) -> int:
        """Bytes that this process's files may take: what no other process uses."""
        if not self.usable:
            return 0
        with self._alone():
            files, used = self._files(), self._used_by_others()
            others = sum(each.stat.st_size for each in files if each.name in used)
            return max(0, self._limit(files) - others)

    def use(self, names: Collection[str]) -> None:
        """From now on these are not removed, as long as this object lives; others may be at once.

        Raises
        ------
        TryAgainError
            If the disk is full.
        """
        path = self.folder / f"{uuid.uuid4().hex}{_USE}"
        try:
            with self._alone():
                write_file(path, "\n".join(sorted(names)), mode=0o600, durable=False)
                handle = os.open(path, os.O_RDONLY)
                fcntl.flock(handle, fcntl.LOCK_SH)
                self._own = frozenset(names)
                self._make_room(0)
        except OSError as error:
            raise self._not_written(0, error) from None
        weakref.finalize(self, os.close, handle)
        if self._use is not None:
            self._use.unlink(missing_ok=True)
        self._use = path

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Frames | None:
        """What is kept under a name; ``None`` if nothing whole is."""
        path = self.folder / f"{name}{_KEPT}"
        try:
            found = _mapped(path, name, shape, dtype)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError) as error:
            log.warning("%s is not used and made again: %s", path, error)
            with suppress(OSError):
                path.unlink()
            return None
        return found

    def write(self, name: str, frames: Frames) -> Frames | None:
        """Keep them; as they are in the file, or ``None`` if there is no room.

        Raises
        ------
        TryAgainError
            If the disk is fuller than it said, or forbidden.
        """
        path, values = self.folder / f"{name}{_KEPT}", frames.values.contiguous()
        head = _head(name, frames)
        length = len(head) + values.nbytes
        try:
            with whole_file(path, mode=0o600, durable=False) as draft:
                with self._alone():
                    if not self._make_room(length, besides=draft):
                        raise _NoRoom
                    with draft.open("r+b") as file:
                        posix_fallocate(file.fileno(), 0, length)
                data = values.view(-1).view(torch.uint8).numpy()
                with draft.open("r+b") as file:
                    file.write(_summed(head, data))
                    file.write(data)
            return _view(path, len(head), frames)
        except _NoRoom:
            return None
        except (OSError, RuntimeError) as error:
            raise self._not_written(length, error) from None

    def _not_written(self, count: int, error: BaseException) -> TryAgainError:
        return not_written(
            f"{self.folder}: {size(count)} of decoded frames cannot be written",
            error,
            ", or set cache.folder to another disk, or cache.disk-gib to less",
        )

    # --- room -------------------------------------------------------------------------------------

    def _limit(self, files: Collection[_File]) -> int:
        taken = sum(each.stat.st_size for each in files)
        return min(self.most, int(OF_DISK * (shutil.disk_usage(self.folder).free + taken)))

    def _make_room(self, count: int, besides: Path | None = None) -> bool:
        """Remove what was used least recently, of what nobody uses, until ``count`` bytes fit."""
        files = [each for each in self._files() if each.path != besides]
        over = sum(each.stat.st_size for each in files) + count - self._limit(files)
        if over <= 0:
            return True
        used = self._own | self._used_by_others()
        idle = [each for each in files if each.name not in used and not _is_written(each.path)]
        if sum(each.stat.st_size for each in idle) < over:
            return False
        for each in sorted(idle, key=lambda each: each.stat.st_mtime):
            if over <= 0:
                break
            each.path.unlink(missing_ok=True)
            over -= each.stat.st_size
        return True

    def _files(self) -> list[_File]:
        """The files of frames, drafts too; nothing else that lies there is touched."""
        found = []
        for entry in os.scandir(self.folder):
            kept = entry.name.removeprefix(".").removesuffix(_DRAFT)
            if kept.endswith(_KEPT):
                with suppress(FileNotFoundError):
                    name = kept.removesuffix(_KEPT)
                    found.append(_File(Path(entry.path), name, entry.stat(follow_symlinks=False)))
        return found

    def _used_by_others(self) -> frozenset[str]:
        """The names that other processes, or other objects of this one, use."""
        names: set[str] = set()
        for path in self.folder.glob(f"*{_USE}"):
            if path == self._use:
                continue
            try:
                handle = os.open(path, os.O_RDONLY)
            except OSError:
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)  # who wrote it has ended
            except OSError:
                with open(handle, encoding="utf-8", closefd=False) as file:
                    names.update(file.read().split())
            finally:
                os.close(handle)
        return frozenset(names)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Room is measured and taken by one process at a time."""
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


@dataclass(frozen=True)
class _File:
    path: Path
    name: str
    stat: os.stat_result


class _NoRoom(Exception):
    """Only to leave a draft."""


def name_of(content: str, shape: tuple[int, ...], one: torch.Tensor, made_by: str) -> str:
    """The name of what is made of one episode of one camera.

    Parameters
    ----------
    content
        What decides its pictures (:func:`zk0d.learning.pictures.content`).
    shape
        Of its pictures: ``(frames, channels, height, width)``.
    one
        What is made of one of them.
    made_by
        Which policy makes it, and all of that policy that decides how; empty: the frame itself.
    """
    makers = {package: version(package) for package in MAKERS}
    facts = [FORMAT, content, shape, str(one.dtype), tuple(one.shape), made_by, makers]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _head(name: str, frames: Frames) -> bytes:
    """All that comes before the values: with an empty sum, and as long as pages are."""
    missing = torch.nonzero(frames.missing).flatten().tolist()
    told = json.dumps({"name": name, "missing": missing, "frames": len(frames.missing)}).encode()
    length = len(_MAGIC) + 8 + len(told)
    start = -(-length // HEAD_BYTES) * HEAD_BYTES
    return (_MAGIC + bytes(4) + len(told).to_bytes(4, "big") + told).ljust(start, b"\0")


def _summed(head: bytes, data: Any) -> bytes:
    """A head with the sum of what follows it."""
    found = zlib.crc32(data, zlib.crc32(head[_SUM.stop :]))
    return head[: _SUM.start] + found.to_bytes(4, "big") + head[_SUM.stop :]


def _mapped(path: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Frames:
    """A file whose every byte was looked at.

    Raises
    ------
    ValueError
        If it is not what was written.
    """
    length = path.stat().st_size
    if length < HEAD_BYTES:
        raise ValueError("it breaks off")
    whole = torch.from_file(str(path), shared=False, size=length, dtype=torch.uint8)
    content = whole.numpy()
    head = content[:HEAD_BYTES].tobytes()
    if not head.startswith(_MAGIC) or zlib.crc32(content[_SUM.stop :]) != int.from_bytes(
        head[_SUM], "big"
    ):
        raise ValueError("its content is not what was written")
    begin = _SUM.stop + 4
    end = begin + int.from_bytes(head[_SUM.stop : begin], "big")
    told = json.loads(content[begin:end].tobytes())
    missing = torch.zeros(told["frames"], dtype=torch.bool)
    missing[told["missing"]] = True
    start = -(-end // HEAD_BYTES) * HEAD_BYTES
    if told["name"] != name or told["frames"] != shape[0]:
        raise ValueError("it is another file's content")
    return Frames(whole[start:].view(dtype).view(shape), missing)


def _view(path: Path, start: int, frames: Frames) -> Frames:
    """What was just written, out of the file."""
    values = frames.values
    whole = torch.from_file(str(path), shared=False, size=start + values.nbytes, dtype=torch.uint8)
    return Frames(whole[start:].view(values.dtype).view(values.shape), frames.missing)


def _is_written(draft: Path) -> bool:
    """Whether a file is a draft that somebody writes just now."""
    if not draft.name.endswith(_DRAFT):
        return False
    with suppress(OSError), draft.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    return True
