"""Writing where root alone may."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zk0d.errors import TryAgainError


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Say in one sentence that ``what`` could not be written, if so.

    Raises
    ------
    TryAgainError
        For an ``OSError`` of the block.
    """
    try:
        yield
    except OSError as error:
        raise TryAgainError(
            f"{what}: cannot be written ({error.strerror or error}); are you root?"
        ) from None


def like_the_folder(path: Path) -> None:
    """Give what root wrote to the owner of its folder, who reads and changes it."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
