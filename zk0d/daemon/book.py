"""A small record in a file of its own, which processes that live for one message write in turn."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from zk0d.config.base import Settings
from zk0d.files import whole_file


class Book[Record: Settings]:
    """The file.

    Parameters
    ----------
    kind
        What it holds; made without arguments it is the empty one.

    Raises
    ------
    OSError
        From any method that writes.
    """

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self.path = path
        self._kind = kind

    def read(self) -> Record:
        """What is noted; nothing if there is no file, or it cannot be read."""
        return self._read()[0]

    def is_hidden(self) -> bool:
        """Whether this user may not read it."""
        try:
            self.path.stat()
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return not os.access(self.path, os.R_OK)

    def change(self, change: Callable[[Record], Record], *, durable: bool = False) -> str:
        """Write what ``change`` makes of it; why what was noted before is lost, if it is.

        Parameters
        ----------
        durable
            Whether it outlives a power cut at once.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Two may write at once: the draft is one's alone, so what it reads stays so.
        with whole_file(self.path, mode=0o644, durable=durable) as draft:
            record, trouble = self._read()
            draft.write_text(change(record).model_dump_json(by_alias=True), encoding="utf-8")
        return trouble

    def _read(self) -> tuple[Record, str]:
        """The record, and what is wrong with the file."""
        try:
            return self._kind.model_validate_json(self.path.read_bytes()), ""
        except FileNotFoundError:
            return self._kind(), ""
        except ValidationError:
            return self._kind(), "it is damaged"
        except OSError as error:
            return self._kind(), error.strerror or type(error).__name__
