"""Invites that let nodes in by themselves: so many, until then.

The coordinator keeps a token's hash, its end and the uses that are left, in the SuperLink's folder.
Root adds and revokes them, and the SuperLink's service counts them.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from zk0d.errors import TryAgainError, UsageError, not_written
from zk0d.files import make_folder, whole_file
from zk0d.machine.rights import like_the_folder, writing

FILE, LOCK = "invites.json", "invites.lock"
VERSION = 1
TOKEN_BYTES = 16
#: Ends and uses are bounded, so that a forgotten invite is worth nothing.
LONGEST_SECONDS, MOST_USES, MOST_OPEN = 30 * 86400, 1000, 1000


class RefusedToken(Exception):
    """Why a token lets nobody in, in one sentence."""


@dataclass(frozen=True)
class OpenInvite:
    """An invite with a token.

    Attributes
    ----------
    id
        How it is called in lists and in the audit log.
    hash
        SHA-256 of the token, hexadecimal.
    until
        Its end, in seconds since 1970.
    uses
        How many nodes it still lets in.
    """

    id: str
    hash: str
    until: float
    uses: int


class OpenInvites:
    """Those of a coordinator, in the folder of its SuperLink; several processes may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, seconds: float, uses: int) -> tuple[OpenInvite, str]:
        """Make one; with the token, which is kept nowhere.

        Raises
        ------
        UsageError
            If it would be open for too long, let too many in, or too many are open.
        TryAgainError
            If it cannot be written.
        """
        if not 0 < seconds <= LONGEST_SECONDS:
            raise UsageError("--for: an invite is open for at most 30d.")
        if not 0 < uses <= MOST_USES:
            raise UsageError(f"--uses: an invite lets 1 to {MOST_USES} nodes in.")
        token = secrets.token_urlsafe(TOKEN_BYTES)
        made = OpenInvite(secrets.token_hex(4), _hash(token), time.time() + seconds, uses)
        with self._locked():
            there = self._open(self._read())
            if len(there) >= MOST_OPEN:
                raise UsageError("too many invites are open; zk0bot server invite --revoke ID.")
            self._write([*there, made])
        return made, token

    def still_open(self) -> list[OpenInvite]:
        """Those that still let nodes in.

        Raises
        ------
        TryAgainError
            If they may not be read.
        """
        return [each for each in self._open(self._read()) if each.uses]

    def revoke(self, id_: str) -> None:
        """End one.

        Raises
        ------
        UsageError
            If it is not open.
        """
        with self._locked():
            there = self._open(self._read())
            if not any(each.id == id_ and each.uses for each in there):
                raise UsageError(
                    f"there is no open invite '{id_}'; zk0bot server invite --list shows all."
                )
            self._write([each for each in there if each.id != id_])

    def use(self, token: str, let_in: Callable[[], None]) -> OpenInvite:
        """Let a node in by a token; the invite that did it.

        Parameters
        ----------
        let_in
            Does it. The use is counted before, so that no crash gives it twice, and no more if this
            raises.

        Raises
        ------
        RefusedToken
            If the token lets no node in.
        """
        hashed = _hash(token)
        with self._locked():
            there = self._read()
            own = next((each for each in there if hmac.compare_digest(each.hash, hashed)), None)
            if own is None:
                raise RefusedToken("the coordinator does not know this invite, or it was revoked")
            if time.time() >= own.until:
                raise RefusedToken("this invite has expired")
            if not own.uses:
                raise RefusedToken("this invite is used up")
            less = replace(own, uses=own.uses - 1)
            self._write([less if each is own else each for each in self._open(there)])
            try:
                let_in()
            except BaseException:
                self._write(self._open(there))
                raise
            return less

    @staticmethod
    def _open(invites: list[OpenInvite]) -> list[OpenInvite]:
        """Those that have not expired; used ones are kept until then, for what is told of them."""
        return [each for each in invites if time.time() < each.until]

    def _read(self) -> list[OpenInvite]:
        path = self._folder / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return [OpenInvite(**each) for each in content["invites"]]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise TryAgainError(
                f"{path}: cannot be read ({error.strerror}); are you root?"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise TryAgainError(
                f"{path}: is damaged; remove it, and make the invites again."
            ) from None

    def _write(self, invites: list[OpenInvite]) -> None:
        content = {"version": VERSION, "invites": [asdict(each) for each in invites]}
        with whole_file(self._folder / FILE, mode=0o600) as draft:
            draft.write_text(json.dumps(content), encoding="utf-8")
            like_the_folder(draft)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._folder / LOCK
        with writing(self._folder):
            if not self._folder.exists():  # systemd then gives it to the SuperLink's user
                make_folder(self._folder)
                self._folder.chmod(0o700)
        try:
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                like_the_folder(path)
                yield
        except OSError as error:
            raise not_written(f"{path}: invites cannot be written", error) from None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
