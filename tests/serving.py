"""Serves a learner from a thread, over a real unix socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from zk0d.learner.app import LearnerApp
from zk0d.learner.tasks import Learner
from zk0d.services.learner import listen


@contextmanager
def served(learner: Learner, path: Path) -> Iterator[Path]:
    """The learner's socket, while the block runs."""
    listening = listen(path)
    server = uvicorn.Server(
        uvicorn.Config(
            LearnerApp(learner).asgi, lifespan="off", log_config=None, timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        server.should_exit = True
        thread.join(10)
