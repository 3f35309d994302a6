"""Files and folders that appear whole or not at all, and outlive a power cut.

Each is written as a draft beside its place. Then the draft is fsynced, takes its place by a rename,
and the folder that it lies in is fsynced. Only after that may anything name it. Errors are
``OSError``: the caller knows what to say.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(
    path: Path,
    content: str | bytes,
    *,
    mode: int | None = None,
    new: bool = False,
    durable: bool = True,
) -> None:
    """Write a file; the parameters are those of :func:`whole_file`."""
    with whole_file(path, mode=mode, new=new, durable=durable) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(
    path: Path, *, mode: int | None = None, new: bool = False, durable: bool = True
) -> Iterator[Path]:
    """A draft to write, which becomes ``path`` if the block ends well.

    Parameters
    ----------
    mode
        Of a file that was not there; by default the umask decides. One that is replaced passes its
        mode and owner on.
    new
        ``FileExistsError`` if the file is there already.
    durable
        ``False`` spares the fsyncs, for what can be made again.
    """
    draft = path.with_name(f".{path.name}.partial")
    old = None if new else _stat(path)
    wanted = stat.S_IMODE(old.st_mode) if old else mode
    handle = _alone(draft, wanted)
    made = os.fstat(handle)
    try:
        yield draft
        if old and (old.st_uid, old.st_gid) != (made.st_uid, made.st_gid):
            with contextlib.suppress(PermissionError):
                os.chown(draft, old.st_uid, old.st_gid)
        draft.chmod(stat.S_IMODE(made.st_mode) if wanted is None else wanted)
        if durable:
            _sync(draft)
        if new:
            os.link(draft, path)
            draft.unlink()
        else:
            os.replace(draft, path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder, in place of any that is there; its parents are made."""
    draft, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    make_folder(path.parent)
    if old.exists() and not path.exists():
        os.replace(old, path)  # the power went between the two renames below
    for leftover in (draft, old):
        shutil.rmtree(leftover, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        _sync_tree(draft)
        if path.exists():
            mode = stat.S_IMODE(path.stat().st_mode)
            # The parent gives the group's bit; RestrictSUIDSGID refuses a mode that says it.
            if mode != stat.S_IMODE(draft.stat().st_mode):
                draft.chmod(mode & 0o777)
            os.replace(path, old)
        os.replace(draft, path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def rename(draft: Path, path: Path, *, durable: bool = True) -> None:
    """Give a file or folder that was written elsewhere on this disk its final name.

    Parameters
    ----------
    durable
        ``False`` spares the fsyncs, for what can be made again.
    """
    if not durable:
        os.replace(draft, path)
        return
    if draft.is_dir():
        _sync_tree(draft)
    else:
        _sync(draft)
    os.replace(draft, path)
    sync_folder(path.parent)
    if draft.parent != path.parent:
        sync_folder(draft.parent)


def link_file(path: Path, second: Path) -> None:
    """Give a file that is never changed a second name, or a copy where a disk has no such links."""
    try:
        os.link(path, second)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copyfile(path, second)


def point(link: Path, target: Path) -> None:
    """Make ``link`` a symbolic link to ``target``, by a relative path."""
    draft = link.with_name(f".{link.name}.partial")
    draft.unlink(missing_ok=True)
    draft.symlink_to(os.path.relpath(target, link.parent))
    os.replace(draft, link)
    sync_folder(link.parent)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, each name of theirs durable."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems sync no folders
            raise


def _sync_tree(folder: Path) -> None:
    """Everything in it, then its own names."""
    for path in folder.iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            _sync_tree(path)
        else:
            _sync(path)
    sync_folder(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alone(draft: Path, mode: int | None) -> int:
    """An empty draft that is this caller's until its handle is closed.

    Another writer of the same file waits; what one that was killed left is written over.
    """
    while True:
        # Nobody reads a secret while it is written.
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT, 0o666 if mode is None else mode)
        fcntl.flock(handle, fcntl.LOCK_EX)
        there = _stat(draft)
        if there is not None and os.path.samestat(there, os.fstat(handle)):
            os.truncate(handle, 0)
            if mode is not None:
                os.fchmod(handle, mode)
            return handle
        os.close(handle)  # the other one's, which has its final name now


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
