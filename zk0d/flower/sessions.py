"""Which SuperNode processes use a node's key.

Flower knows a node by its key alone. A second machine with the same key (a copied disk) is
refused while the first is online, in the words that a quick restart gets as well; after an outage
both can be let in, and share the node's messages. So our SuperNodes name their process in each
request, and the SuperLink notes which processes use a key and whether two do so side by side.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zk0d.files import write_file
from zk0d.flower.replay import KEY_HEADER

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSION_HEADER = "x-zk0d-session"
SESSION_VARIABLE = "ZK0D_SESSION"
FILE_VARIABLE = "ZK0D_SESSIONS_FILE"
#: A process that is heard so long after another one began goes on beside it. What a dead process
#: had sent arrives within seconds.
BESIDE_SECONDS = 60.0
#: Flower counts a node online for so long after it was heard.
ONLINE_SECONDS = 60.0
#: A process is forgotten after this silence: longer than the wait between two starts of a SuperNode
#: that is refused.
KEPT_SECONDS = 180.0
LOOK_SECONDS = 1.0
#: What an inner middleware calls, in the scope, that lets a request in long before it is answered.
LET_IN = "zk0d.let-in"
MOST_SESSIONS, LONGEST_NAME = 32, 64
_ACTIVATE, _OK, _REFUSED = "/v1/fleet/activate-node", 200, 412


@dataclass
class _Session:
    began: float
    heard: float
    let_in: float = float("-inf")  #: when a request of it was last answered with what it asked for


@dataclass(frozen=True)
class KeyUse:
    """Who uses a key.

    Parameters
    ----------
    sessions
        The processes that the SuperLink lets in; ``""`` is one that does not name itself.
    shared
        Whether two processes have used it side by side.
    """

    sessions: tuple[str, ...] = ()
    shared: bool = False


class SessionWatch:
    """ASGI middleware: writes the :class:`KeyUse` of each key to ``file`` when it changes."""

    def __init__(
        self, app: ASGIApp, file: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._file = file
        self._clock = clock
        self._keys: dict[bytes, dict[str, _Session]] = {}
        self._written: dict[str, KeyUse] = {}
        self._next_look = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        key = headers.get(KEY_HEADER, b"")
        if scope["type"] != "http" or not key:
            await self._app(scope, receive, send)
            return
        name = headers.get(SESSION_HEADER.encode(), b"").decode("latin-1")[:LONGEST_NAME]
        came = self._clock()

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                # Any other answer may come before Flower has looked at the signature.
                if status == _OK or (status == _REFUSED and scope["path"] == _ACTIVATE):
                    self._note(key, name, came, let_in=status == _OK)
            await send(message)

        def let_in() -> None:
            self._note(key, name, came, let_in=True)

        await self._app({**scope, LET_IN: let_in}, receive, answered)

    def _note(self, key: bytes, name: str, came: float, *, let_in: bool) -> None:
        of_key = self._keys.setdefault(key, {})
        session = of_key.setdefault(name, _Session(came, came))
        session.heard = max(session.heard, came)
        if let_in:
            session.let_in = session.heard
        if len(of_key) > MOST_SESSIONS:
            del of_key[min(of_key, key=lambda name: of_key[name].heard)]
        if came >= self._next_look:
            self._next_look = came + LOOK_SECONDS
            self._look(came)

    def _look(self, now: float) -> None:
        for key, of_key in list(self._keys.items()):
            for name in [n for n, each in of_key.items() if now - each.heard > KEPT_SECONDS]:
                del of_key[name]
            if not of_key:
                del self._keys[key]
        uses = {
            _fingerprint(key): KeyUse(
                tuple(n for n, each in of_key.items() if now - each.let_in <= ONLINE_SECONDS),
                any(
                    older.heard - newer.began > BESIDE_SECONDS
                    for older in of_key.values()
                    for newer in of_key.values()
                    if older.began < newer.began
                ),
            )
            for key, of_key in self._keys.items()
        }
        if uses == self._written:
            return
        told = json.dumps({key: asdict(use) for key, use in uses.items()})
        with contextlib.suppress(OSError):  # a full disk costs this, and no node its answer
            write_file(self._file, told, durable=False)
            self._written = uses


def read_uses(file: Path) -> Mapping[str, KeyUse]:
    """Who uses which key, by fingerprint; empty where nothing was written yet."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {k: KeyUse(tuple(use["sessions"]), use["shared"]) for k, use in content.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _fingerprint(key: bytes) -> str:
    with contextlib.suppress(binascii.Error):
        key = base64.b64decode(key)
    return hashlib.sha256(key).hexdigest()
