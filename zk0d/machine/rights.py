"""Writing where root alone may."""

from __future__ import annotations

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
