"""Flower's SuperLink with a lock on its Control API.

Flower does not authenticate there: every process that reaches the port, of any user of this
machine, could enrol nodes and start runs. Here only callers that know the coordinator's control
secret get through; nodes (``/v1/fleet``) and SuperExecs (``/v1/runtime``) have Flower's own
authentication. The seam is Flower's hook for extensions.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0d.errors import ConfigError
from zk0d.flower.sessions import FILE_VARIABLE
from zk0d.flower.version import check_version, lacks

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

SECRET_VARIABLE = "ZK0D_CONTROL_SECRET_FILE"
SECRET_HEADER = "x-zk0d-control-secret"
#: What Flower authenticates itself; everything else asks for the secret.
OPEN_PATHS = ("/v1/fleet/", "/v1/runtime/")
SHORTEST_SECRET = 32


class ControlGuard:
    """ASGI middleware: 403 for everything but :data:`OPEN_PATHS` without the secret."""

    def __init__(self, app: ASGIApp, secret: bytes) -> None:
        self._app = app
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._may(scope):
            await self._app(scope, receive, send)
            return
        body = b"the coordinator's control secret is needed; zk0bot on the coordinator has it\n"
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _may(self, scope: Scope) -> bool:
        path = scope["path"]  # as Flower's router sees it
        if scope["type"] == "http" and path.startswith(OPEN_PATHS) and ".." not in path:
            return True
        given = dict(scope.get("headers", ())).get(SECRET_HEADER.encode(), b"")
        return hmac.compare_digest(given, self._secret)


def read_secret(path: Path) -> bytes:
    """The secret in ``path``.

    Raises
    ------
    ConfigError
        If it cannot be read, or is too short to be one.
    """
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: the coordinator's control secret cannot be read ({error.strerror}); are you"
            " root on the coordinator?"
        ) from None
    if len(secret) < SHORTEST_SECRET:
        raise ConfigError(f"{path}: is not a control secret; zk0bot server init makes one.")
    return secret


def install(secret: bytes | None, sessions: Path | None = None) -> None:
    """Have the SuperLink ask for ``secret``, note in ``sessions`` who uses which key, deliver every
    reply that it has, tell nodes that wait, and keep its deadlines when its clock is set back.

    Raises
    ------
    UnavailableError
        If this Flower has no such hook.
    """
    check_version()
    from flwr.superlink import extensions
    from starlette.middleware import Middleware

    from zk0d.flower import replies, set_back, waiting_room
    from zk0d.flower.replay import ReplayGuard
    from zk0d.flower.sessions import SessionWatch

    if not hasattr(extensions, "get_middleware"):
        raise lacks("get_middleware in its SuperLink")
    before = extensions.get_middleware
    ours = [Middleware(ControlGuard, secret=secret)] if secret else []
    ours.append(Middleware(ReplayGuard))
    if sessions is not None:
        ours.append(Middleware(SessionWatch, file=sessions))
    room = waiting_room.Room()
    ours.append(Middleware(waiting_room.WaitingRoom, room=room))

    def guarded() -> tuple[Any, ...]:
        return (*ours, *before())

    extensions.get_middleware = guarded
    replies.install()
    set_back.install()
    waiting_room.install(room)


def keep_no_access_log() -> None:
    """Have the web server write no line for each request; :mod:`zk0d.flower.logs` drops those."""
    import uvicorn

    serve = uvicorn.run

    def run(*args: Any, **named: Any) -> None:
        serve(*args, **{**named, "access_log": False})

    uvicorn.run = run


def main() -> None:
    """Run ``flower-superlink``; its Control API is open if the variable with the secret's file is
    empty.
    """
    path, sessions = os.environ.pop(SECRET_VARIABLE, ""), os.environ.pop(FILE_VARIABLE, "")
    install(read_secret(Path(path)) if path else None, Path(sessions) if sessions else None)
    keep_no_access_log()
    from flwr.superlink.cli.flower_superlink import flower_superlink

    flower_superlink()


if __name__ == "__main__":
    main()
