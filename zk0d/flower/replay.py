"""A node's signed request counts once.

A SuperNode signs the time and nothing else, and Flower takes a signature for five minutes:
a person with a request's headers could send other requests with them. Each request has its own
signature, so the same node with the same time is a copy.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("zk0d")

KEY_HEADER, TIME_HEADER = b"flwr-public-key", b"flwr-timestamp"
#: Longer than Flower takes a signature: 300 s, and 5 s for clocks that differ, on either side.
KEPT_SECONDS = 320.0
REFUSED = 401


class ReplayGuard:
    """ASGI middleware: 401 for a node's request whose signed time was seen before."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._seen: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        mark = headers.get(KEY_HEADER, b""), headers.get(TIME_HEADER, b"")
        if scope["type"] != "http" or not all(mark):
            await self._app(scope, receive, send)
            return
        self._forget_old()
        if mark in self._seen:
            log.warning("a node's signed request came a second time: refused")
            body = b"this request was seen before\n"
            about = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
            start = {"type": "http.response.start", "status": REFUSED, "headers": about}
            await send(start)
            await send({"type": "http.response.body", "body": body})
            return
        self._seen[mark] = time.monotonic() + KEPT_SECONDS

        async def answered(message: Message) -> None:
            # A request that Flower refuses is no node's: it must not fill the list.
            if message["type"] == "http.response.start" and message["status"] == REFUSED:
                self._seen.pop(mark, None)
            await send(message)

        await self._app(scope, receive, answered)

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self._seen and next(iter(self._seen.values())) < now:
            self._seen.popitem(last=False)
