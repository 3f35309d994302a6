"""What capabilities have used of their bytes; it outlives a restart of ``zk0d superlink``.

A line for each grant is appended to a file of the service's own. Nothing is fsynced: a power cut
ends the rounds as well, and with them what their capabilities are worth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import NonNegativeInt, ValidationError

from zk0d.config.base import Settings
from zk0d.federation.capability import Capability, OpenRound
from zk0d.files import write_file


class _Grant(Settings):
    """One line. ``name`` is that of a piece; a file that goes down has none."""

    of: str  #: the capability's hash: the file holds nothing that anybody could show
    run: str
    round: str  #: :attr:`~zk0d.federation.capability.OpenRound.name`
    name: str = ""
    size: NonNegativeInt


@dataclass
class _Use:
    run: str
    round: str
    pieces: dict[str, int] = field(default_factory=dict)
    fetched: int = 0


class Spent:
    """The book, in one file.

    Raises
    ------
    OSError
        From any method that writes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._uses: dict[str, _Use] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            text = ""
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                self._take(_Grant.model_validate_json(line))
            except ValidationError:
                continue  # torn

    def pieces(self, token: str) -> dict[str, int]:
        """Sizes of the pieces that a capability has sent, or begun to, by name."""
        use = self._uses.get(_key(token))
        return dict(use.pieces) if use else {}

    def fetched(self, token: str) -> int:
        """Bytes that a capability has fetched."""
        use = self._uses.get(_key(token))
        return use.fetched if use else 0

    def grant(
        self, token: str, capability: Capability, opened: OpenRound, size: int, piece: str = ""
    ) -> None:
        """Note bytes before they move."""
        line = _Grant(of=_key(token), run=capability.run, round=opened.name, name=piece, size=size)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{'\n' * self._torn}{line.model_dump_json()}\n")
        self._torn = False
        self._take(line)

    def keep(self, counts: Callable[[str, str], bool]) -> None:
        """Forget the rounds, by run and name, that do not count any more."""
        left = {of: use for of, use in self._uses.items() if counts(use.run, use.round)}
        if len(left) == len(self._uses):
            return
        lines = []
        for of, use in left.items():
            grants = [*use.pieces.items(), *([("", use.fetched)] if use.fetched else [])]
            lines += [
                _Grant(of=of, run=use.run, round=use.round, name=name, size=size)
                for name, size in grants
            ]
        text = "".join(f"{line.model_dump_json()}\n" for line in lines)
        write_file(self._path, text, durable=False)
        self._uses, self._torn = left, False

    def _take(self, line: _Grant) -> None:
        use = self._uses.setdefault(line.of, _Use(line.run, line.round))
        if line.name:
            use.pieces[line.name] = line.size
        else:
            use.fetched += line.size


def _key(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:32]
