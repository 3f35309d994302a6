"""``zk0d learner`` and ``zk0d evaluator``: serve a learner over its unix socket."""

from __future__ import annotations

import logging
import os
import socket
import stat
from pathlib import Path

import uvicorn

from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.errors import TryAgainError, UnavailableError
from zk0d.learner.app import LearnerApp
from zk0d.learner.tasks import Learner

SOCKET_MODE = 0o660


def run(config: Path, *, evaluator: bool) -> None:
    """Open the recordings, then serve until SIGTERM.

    Raises
    ------
    Zk0dError
        If settings, recordings or socket are not as they must be; before anything is served.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    learner, path = _make(config, evaluator)
    listening = listen(path)
    try:
        server = uvicorn.Server(
            uvicorn.Config(
                LearnerApp(learner).asgi,
                lifespan="off",
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=2,
            )
        )
        server.run(sockets=[listening])
    finally:
        path.unlink(missing_ok=True)


def _make(config: Path, evaluator: bool) -> tuple[Learner, Path]:
    # Settings first: a mistake there should not have to wait for torch to load.
    if evaluator:
        server = ServerSettings.load(config)
        from zk0d.learner.evaluator import CoordinatorEvaluator

        made = CoordinatorEvaluator(server)
        made.open()
        return made, server.evaluator.socket
    client = ClientSettings.load(config)
    from zk0d.learner.contributor import Contributor

    contributor = Contributor(client)
    contributor.open()
    return contributor, client.learner.socket


def listen(path: Path) -> socket.socket:
    """A listening unix socket at ``path``, mode 0660; replaces one that nobody listens on.

    Raises
    ------
    UnavailableError
        If another process listens there.
    TryAgainError
        If the folder cannot be written.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise UnavailableError(
                        f"{path}: another learner already listens there; stop it first."
                    )
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(0o777 & ~SOCKET_MODE)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        listening.close()
        raise TryAgainError(
            f"{path}: no socket can be made there ({error.strerror or error})."
        ) from None
    listening.listen(16)
    return listening
