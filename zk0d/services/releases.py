"""The coordinator's releases over HTTP, for the nodes of its roster alone.

``GET /releases`` says what there is, and ``GET /releases/RUN/ROUND/SHA256`` gives a file of one,
also a range of it. Each request is signed with the node's key. As with the rounds' files, nginx
sends the bytes of the file that an answer names, and without it the application does.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from zk0d.config.machine import ServerSettings
from zk0d.errors import Zk0dError
from zk0d.machine import release_key
from zk0d.machine.gateway import GATEWAY_HEADER, RELEASES_PREFIX
from zk0d.machine.node_word import HEADER, NodeWord, NodeWords, NotANode
from zk0d.machine.roster import read_roster
from zk0d.release.checkpoint import Releases
from zk0d.release.offer import Offered

log = logging.getLogger("zk0d")

_NOT_KEPT = {"Cache-Control": "no-store"}


class ReleasesDoor:
    """The application's part for releases.

    Parameters
    ----------
    shared
        Whether this coordinator offers any (``share-releases``).
    """

    def __init__(self, offered: Offered, roster: Path, *, shared: bool = True) -> None:
        self._offered = offered
        self._words = NodeWords(lambda: read_roster(roster))
        self._shared = shared

    @classmethod
    def of(cls, settings: ServerSettings) -> ReleasesDoor:
        """That of a coordinator, which has a key of releases from then on."""
        release_key.own_key(settings.superlink.state)
        offered = Offered(Releases.of(settings), settings.superlink.state)
        return cls(offered, settings.superlink.roster, shared=settings.share_releases)

    def look(self) -> None:
        """Look for new releases; from time to time."""
        if self._shared:
            self._offered.look()

    def close(self) -> None:
        self._offered.close()

    def routes(self, prefix: str) -> list[Route]:
        """Where it answers."""
        file = f"{prefix}/releases/{{run}}/{{round}}/{{sha256}}"
        return [
            Route(f"{prefix}/releases", _told(self._list), methods=["GET"]),
            Route(file, _told(self._file), methods=["GET"]),
        ]

    async def _list(self, request: Request) -> Response:
        word = await self._node(request)
        told = await run_in_threadpool(self._offered.told, word.nonce)
        return Response(told.model_dump_json(), media_type="application/json", headers=_NOT_KEPT)

    async def _file(self, request: Request) -> Response:
        await self._node(request)
        given = request.path_params
        found = self._offered.of(f"{given['run']}/{given['round']}")
        path = found.file(given["sha256"]) if found is not None else None
        if found is None or path is None:
            raise NotANode(
                HTTPStatus.NOT_FOUND,
                f"the coordinator offers no such file of release {given['run']}/{given['round']}"
                " any more; zk0bot policy list shows what it offers.",
            )
        about = {"Cache-Control": "private", "ETag": f'"{given["sha256"]}"'}
        if GATEWAY_HEADER in request.headers:
            home = found.folder.parents[1]
            inside = path.relative_to(home).as_posix()
            return Response(headers={"X-Accel-Redirect": f"{RELEASES_PREFIX}{inside}", **about})
        return FileResponse(path, media_type="application/octet-stream", headers=about)

    async def _node(self, request: Request) -> NodeWord:
        """The node that asks."""
        if not self._shared:
            raise NotANode(
                HTTPStatus.NOT_FOUND,
                "this coordinator does not share its releases (share-releases is false).",
            )
        # The roster's files are read, and a signature is checked.
        word = request.headers.get(HEADER, "")
        return await run_in_threadpool(self._words.check, word, request.url.path)


def _told(
    handler: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """A refusal as an answer with a sentence."""

    async def told(request: Request) -> Response:
        try:
            return await handler(request)
        except NotANode as error:
            log.info("release refused (%d): %s", error.status, error.message)
            return PlainTextResponse(f"{error.message}\n", error.status, _NOT_KEPT)
        except Zk0dError as error:
            log.error("releases: %s", error.message)
            said = "the coordinator cannot read its key of releases now; try again later.\n"
            return PlainTextResponse(said, HTTPStatus.SERVICE_UNAVAILABLE, _NOT_KEPT)

    return told
