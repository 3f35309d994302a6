"""The way to a contributor's own page: on loopback, for the person who has the link, and no other.

Every user and every page that a browser shows can reach loopback. So the link's token counts once
and becomes a cookie; the cookie is for a path that cannot be guessed, because a browser sends
cookies to all ports of a host; and a request counts only with our own host and origin.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from zk0d.errors import UsageError, Zk0dError
from zk0d.pages import FORM_HEADERS
from zk0d.services.own_page import OwnPage

#: A page that is shown asks again every half minute; so long after the last request nobody looks.
IDLE_SECONDS = 600.0
LOOK_SECONDS = 1.0
COOKIE = "zk0d"
#: Of a form's content.
MOST_BYTES = 4096
_NOT_KEPT = {"Cache-Control": "no-store"}


class OwnDoor:
    """Serves a page until it is closed.

    Parameters
    ----------
    clock
        Replaced in tests.
    """

    def __init__(self, page: OwnPage, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._page = page
        self._clock = clock
        self._used = clock()
        self._token: str | None = secrets.token_urlsafe(32)
        self._session, self._csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self._home = f"/{secrets.token_urlsafe(16)}/"
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        self.port = int(listening.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/?token={self._token}"
        self._hosts = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")}
        self._server = uvicorn.Server(
            uvicorn.Config(
                Starlette(
                    routes=[
                        Route("/", self._enter),
                        Route(self._home, self._show),
                        Route(f"{self._home}pause", self._pause, methods=["POST"]),
                        Route(f"{self._home}resume", self._resume, methods=["POST"]),
                        Route("/{path:path}", self._other),
                    ]
                ),
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=2,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, daemon=True
        )
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether no one has looked for :data:`IDLE_SECONDS`."""
        return self._clock() - self._used >= IDLE_SECONDS

    def wait(self) -> None:
        """Return when it :attr:`is_idle`."""
        while not self.is_idle:
            time.sleep(LOOK_SECONDS)

    def close(self) -> None:
        """End it; its link and its cookie are worth nothing then."""
        self._server.should_exit = True
        self._thread.join()

    async def _enter(self, request: Request) -> Response:
        given, token = request.query_params.get("token", ""), self._token
        if not self._is_ours(request) or token is None or request.method != "GET":
            return _refused()
        if not _same(given, token):
            return _refused()
        self._token, self._used = None, self._clock()
        answer = RedirectResponse(self._home, HTTPStatus.SEE_OTHER, _NOT_KEPT)
        answer.set_cookie(COOKIE, self._session, path=self._home, httponly=True, samesite="strict")
        return answer

    async def _show(self, request: Request) -> Response:
        return await self._shown() if self._may_see(request) else _refused()

    async def _pause(self, request: Request) -> Response:
        return await self._do(request, lambda form: self._page.pause(form.get("for", "")))

    async def _resume(self, request: Request) -> Response:
        return await self._do(request, lambda form: self._page.resume())

    async def _do(self, request: Request, change: Callable[[dict[str, str]], None]) -> Response:
        if not self._may_see(request):
            return _refused()
        form = await _form(request)
        if not _same(form.get("csrf", ""), self._csrf):
            return _refused()
        try:
            await run_in_threadpool(change, form)
        except UsageError as error:
            return await self._shown(error.message, HTTPStatus.BAD_REQUEST)
        except Zk0dError as error:
            return await self._shown(error.message, HTTPStatus.SERVICE_UNAVAILABLE)
        return RedirectResponse(self._home, HTTPStatus.SEE_OTHER, _NOT_KEPT)

    async def _other(self, request: Request) -> Response:
        return _refused()

    async def _shown(self, trouble: str = "", status: HTTPStatus = HTTPStatus.OK) -> Response:
        try:
            # Services are asked, which takes a moment.
            page = await run_in_threadpool(self._page.render, self._home, self._csrf, trouble)
        except Zk0dError as error:  # client.toml was changed meanwhile
            return PlainTextResponse(error.message, HTTPStatus.SERVICE_UNAVAILABLE, _NOT_KEPT)
        return Response(page, status, {**dict(FORM_HEADERS), **_NOT_KEPT})

    def _may_see(self, request: Request) -> bool:
        allowed = self._is_ours(request) and _same(request.cookies.get(COOKIE, ""), self._session)
        if allowed:
            self._used = self._clock()
        return allowed

    def _is_ours(self, request: Request) -> bool:
        """Whether neither another name of loopback nor another page asks."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "none")
        return (
            host in self._hosts
            and origin in (None, f"http://{host}")
            # To a browser another port of this host is the same site.
            and site in ("none", "same-origin")
        )


def _same(given: str, wanted: str) -> bool:
    return secrets.compare_digest(given.encode(), wanted.encode())


def _refused() -> Response:
    return PlainTextResponse(
        "403: this page needs the link that zk0bot client open prints, which works once.\n",
        HTTPStatus.FORBIDDEN,
        _NOT_KEPT,
    )


async def _form(request: Request) -> dict[str, str]:
    """A form's fields; none if it has too many bytes."""
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > MOST_BYTES:
            return {}
    fields = parse_qs(content.decode(errors="replace"))
    return {name: values[-1] for name, values in fields.items()}
