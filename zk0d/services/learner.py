"""``zk0d learner``: serve a learner over its unix socket."""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from zk0d.config.machine import CacheSettings, ClientSettings
from zk0d.config.names import check_apart
from zk0d.daemon.disk import DiskCollector
from zk0d.daemon.freed import keep_freed_memory
from zk0d.daemon.metrics import Metrics
from zk0d.daemon.rest import Rest, read_rest
from zk0d.daemon.service import Condition, Service
from zk0d.errors import TryAgainError, UnavailableError
from zk0d.learner.app import LearnerApp
from zk0d.learner.metrics import LearnerMetrics
from zk0d.learner.tasks import Learner
from zk0d.learning.layout import find, read_layout
from zk0d.learning.progress import Decoding, told_by

SOCKET_MODE = 0o660
FIRST_INHERITED = 3  #: the first file descriptor that systemd hands over
EXTEND_SECONDS = 30.0
#: A task that reports nothing for so long stands still. Before its first step a policy is loaded
#: and caches are filled, which takes minutes on a slow disk.
STEP_SECONDS, LOAD_SECONDS = 180.0, 1800.0
STOP_SECONDS = 5.0


class GpuFailedError(UnavailableError):
    """The process can use its GPU no more."""


class LearnerService(Service):
    """Holds a learner, serves its socket, and sees that its tasks move.

    Parameters
    ----------
    make
        Opens the learner; may take long. Returns it with the path of its socket.
    cache
        Where frames are kept.
    state
        Where the learner keeps what it resumes from after a restart.
    rests
        Whether the owner needs this machine. The process then ends once it has no task, which
        frees all that it holds of the GPU and of memory; it is started again and loads a policy
        with the next task.
    """

    stuck_reasons = tuple(
        f"{kind}_stands_still" for kind in ("query", "train", "measure", "evaluate")
    )

    def __init__(
        self,
        name: str,
        make: Callable[[], tuple[Learner, Path]],
        cache: CacheSettings | None = None,
        state: Path | None = None,
        rests: Callable[[], Rest | None] = lambda: None,
    ) -> None:
        # It has no network: its metrics are read through its socket.
        self.name = name
        super().__init__(Metrics(name, part="learner"))
        if cache is not None:
            folders = {"cache": cache.place} | ({"state": state} if state else {})
            self.metrics.collect(DiskCollector(folders))
        self._make = make
        self._state = state
        self._rests = rests
        self._path: Path | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        keep_freed_memory()
        with self._more_time():
            learner, path = self._make()
        self._learner = learner
        listening = inherited()
        if listening is None:
            listening, self._path = listen(path), path
        self._figures = LearnerMetrics(self.metrics, learner.kinds, self._state)
        self._app = LearnerApp(learner, self._figures)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app.asgi,
                lifespan="off",
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=2,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, daemon=True
        )
        self._thread.start()

    def run(self) -> None:
        try:
            super().run()
        except GpuFailedError as error:
            print(f"zk0d: {error.message}", file=sys.stderr, flush=True)
            # Python's own end frees what is left on the GPU, at which PyTorch aborts: a core dump,
            # and no exit status that says anything.
            os._exit(error.exit_code)

    def look(self) -> Condition:
        assert self._server is not None
        assert self._thread is not None
        if not self._thread.is_alive():
            raise UnavailableError("the learner's socket was closed; see the lines above.")
        if self._app.broken:
            self._figures.gpu_failed()
            raise GpuFailedError(
                f"the GPU failed ({self._app.broken}), and only a new process can use it again; if"
                " that fails as well, see the kernel's log (journalctl -k) and restart the machine."
            )
        doing = self._app.doing
        ready = self._server.started
        if doing["state"] == "idle":
            return Condition(self._idle(), ready=ready)
        if isinstance(told_by(doing), Decoding) and (rest := self._rests()) and rest.at_once:
            # No step is lost, and what is decoded stays. A caller that hung up does not end it.
            self.end(f"{rest.sentence()}; decoding continues then")
        still = time.monotonic() - doing["seen"]
        limit = STEP_SECONDS if doing.get("step") else LOAD_SECONDS
        stuck = f"{doing['task']}_stands_still" if still > limit else ""
        return Condition(_sentence(doing), ready=ready, stuck=stuck)

    def _idle(self) -> str:
        """What it says without a task; while the owner needs the machine, it holds nothing."""
        rest = self._rests()
        if rest is None:
            return "ready, waiting for a round"
        if self._learner.is_loaded:
            self.end(f"{rest.sentence()}, with what it holds of memory freed")
        return rest.sentence()

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(STOP_SECONDS)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    @contextmanager
    def _more_time(self) -> Iterator[None]:
        """Tell systemd that the start continues, as long as the block runs."""
        over = threading.Event()

        def extend() -> None:
            while not over.is_set():
                self.notify.extend_start(EXTEND_SECONDS)
                over.wait(EXTEND_SECONDS / 3)

        self.notify.status("loading the recordings")
        thread = threading.Thread(target=extend, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def run(config: Path) -> None:
    """Open the recordings, then serve until SIGTERM.

    Raises
    ------
    Zk0dError
        If settings, recordings or socket are not as they must be; before anything is served.
    """
    settings = ClientSettings.load(config)
    settings.require_dataset()
    check_apart(settings.learner.state, "learner.state")
    look_first(settings.learner.socket, [each.uri for each in settings.lent])

    def make() -> tuple[Learner, Path]:
        from zk0d.learner.contributor import Contributor
        from zk0d.learner.parked import ParkedState

        made = Contributor(settings, ParkedState(settings.learner.state))
        made.open()
        return made, settings.learner.socket

    rests = partial(read_rest, settings.owner.state, settings.limits)
    own = settings.learner
    LearnerService("learner", make, own.cache, own.state, rests).run()


def look_first(path: Path, datasets: Iterable[str]) -> None:
    """Refuse a socket that is taken, and recordings that are not there or broken off.

    No mistake that shows without torch waits for it to load.
    """
    if _is_taken(path) and not _is_handed_over():
        raise _taken(path)
    for uri in datasets:
        read_layout(find(uri), uri)


def _is_taken(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _taken(path: Path) -> UnavailableError:
    return UnavailableError(f"{path}: another learner listens there already; stop it first.")


def _sentence(doing: dict[str, Any]) -> str:
    progress = told_by(doing)
    return f"{doing['task']} is under way" if progress is None else str(progress)


def _is_handed_over() -> bool:
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def inherited() -> socket.socket | None:
    """The socket that systemd made for us and listens on already, if it did."""
    if not _is_handed_over():
        return None
    del os.environ["LISTEN_PID"]
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    return socket.socket(fileno=FIRST_INHERITED) if count else None


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
            if _is_taken(path):
                raise _taken(path)
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
            f"{path}: the socket cannot be made ({error.strerror or error})."
        ) from None
    listening.listen(16)
    return listening
