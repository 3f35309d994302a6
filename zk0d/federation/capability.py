"""Who may fetch a round's weights or send its update: capabilities that end with the round.

A round's secret lies in a file of its run's folder, which the ServerApp writes and ``zk0d
superlink`` reads. What was signed with it is worth nothing once the file is gone or has another
secret, so no capability outlives its round. Only a node that is late keeps its own, for as long as
its update may still count. The ServerApp holds the file locked: if it is killed or the machine
loses its power, the kernel opens the lock, and the round is over as well.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from zk0d.config.base import Settings
from zk0d.errors import Zk0dError
from zk0d.files import rename
from zk0d.record.journal import disk

OPEN_ROUND = "transfer.json"
Direction = Literal["down", "up"]
_RUN = re.compile(r"[0-9A-Za-z_-]{1,64}")
#: In place of a node's key, with a number: a mirror's.
MIRROR = "mirror "
#: No token of ours is longer.
LONGEST_TOKEN = 1024


class Denied(Zk0dError):
    """A request that is refused, with the HTTP status that says how."""

    default_reason = "denied"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Capability(Settings):
    """What its bearer may do.

    ``until`` is of :func:`time.monotonic`, which all processes of a machine share.
    """

    run: str
    round: PositiveInt
    key: str  #: of the node that it was given to
    direction: Direction
    budget: NonNegativeInt  #: bytes
    until: float

    @property
    def is_mirrors(self) -> bool:
        """Whether a mirror shows it."""
        return self.key.startswith(MIRROR)

    @property
    def ticket(self) -> str:
        """Names the pieces of this node's update in this round."""
        return ticket(self.run, self.round, self.key)


class OpenRound(Settings):
    """What a run has open for transfer."""

    round: PositiveInt
    secret: str
    files: dict[str, PositiveInt]  #: length of what goes down, by its SHA-256
    tickets: tuple[str, ...]  #: of the nodes that were asked

    @property
    def name(self) -> str:
        """Names this opening of the round; the secret does not follow from it."""
        return hashlib.sha256(f"name/{self.secret}".encode()).hexdigest()[:16]

    def sign(self, capability: Capability) -> str:
        """A token that stands for ``capability``."""
        text = base64.urlsafe_b64encode(capability.model_dump_json().encode()).decode()
        return f"{text}.{self._signature(text)}"

    def signed(self, text: str, signature: str) -> bool:
        return hmac.compare_digest(self._signature(text), signature)

    def _signature(self, text: str) -> str:
        return hmac.new(bytes.fromhex(self.secret), text.encode(), hashlib.sha256).hexdigest()


def ticket(run: str, round_: int, key: str) -> str:
    """The same for a round that is sent again, so that what arrived need not come again."""
    return hashlib.sha256(f"{run}/{round_}/{key}".encode()).hexdigest()[:32]


class RoundFile:
    """What a run has open for transfer, in its folder; the ServerApp's end."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / OPEN_ROUND
        self._held: int | None = None
        self._secret = ""

    def open(
        self, number: int, files: dict[str, int], tickets: list[str], *, late: bool = False
    ) -> OpenRound:
        """Open a round; what was signed for an earlier one counts no more.

        Parameters
        ----------
        late
            Nodes are still at work on an earlier round. What was signed for those counts on, if
            ``tickets`` names them and ``files`` their weights.

        Raises
        ------
        TryAgainError
            If the disk is full.
        """
        if not late:
            self.close()
        self._secret = self._secret or secrets.token_hex(32)
        opened = OpenRound(round=number, secret=self._secret, files=files, tickets=tuple(tickets))
        before = self._held
        with disk(self._path.parent):
            draft = self._path.with_name(f".{OPEN_ROUND}.next")
            self._held = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o640)
            os.fchmod(self._held, 0o640)
            # Before it is seen: a late node may ask at any moment.
            fcntl.flock(self._held, fcntl.LOCK_EX)
            os.write(self._held, opened.model_dump_json().encode())
            rename(draft, self._path, durable=False)
        if before is not None:
            os.close(before)
        return opened

    def close(self) -> None:
        """Let no capability of the run count any more."""
        self._path.unlink(missing_ok=True)
        self._secret = ""
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _is_held(file: int) -> bool:
    """Whether the ServerApp that wrote a file lives."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


class OpenRounds:
    """The rounds that are open in a folder of runs, as ``zk0d superlink`` sees them.

    Parameters
    ----------
    clock
        That of the capabilities; replaced in tests.
    """

    def __init__(self, runs: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._runs = runs
        self._clock = clock
        self._read: dict[str, tuple[tuple[int, int], OpenRound]] = {}

    def check(self, token: str, direction: Direction) -> tuple[Capability, OpenRound]:
        """What a token allows now, and the round that it belongs to.

        Raises
        ------
        Denied
            With 401 if there is none, and 403 if it does not count.
        """
        if not token:
            raise Denied(401, "a capability is needed; the round's message has it.")
        text, _, signature = token[:LONGEST_TOKEN].partition(".")
        try:
            capability = Capability.model_validate_json(base64.urlsafe_b64decode(text))
        except ValueError:
            raise Denied(403, "this is not a capability.") from None
        opened = self.of(capability.run)
        if (
            opened is None
            or not opened.signed(text, signature)
            or not (capability.is_mirrors or capability.ticket in opened.tickets)
        ):
            raise Denied(403, "this capability's round is over, or it was not signed here.")
        if capability.direction != direction:
            raise Denied(403, f"this capability is for the way {capability.direction}.")
        if self._clock() > capability.until:
            raise Denied(403, "this capability has expired.")
        return capability, opened

    def of(self, run: str) -> OpenRound | None:
        """What a run has open."""
        if not _RUN.fullmatch(run):
            return None
        path = self._runs / run / OPEN_ROUND
        try:
            with path.open("rb") as file:
                if not _is_held(file.fileno()):
                    raise FileNotFoundError(path)
                found = os.fstat(file.fileno())
                mark = found.st_ino, found.st_mtime_ns
                if run not in self._read or self._read[run][0] != mark:
                    opened = OpenRound.model_validate_json(file.read())
                    self._read[run] = mark, opened
        except (OSError, ValueError):
            self._read.pop(run, None)
            return None
        return self._read[run][1]

    def tickets(self) -> set[str]:
        """Of every round that is open."""
        found = (self.of(path.parent.name) for path in self._runs.glob(f"*/{OPEN_ROUND}"))
        return {each for opened in found if opened is not None for each in opened.tickets}
