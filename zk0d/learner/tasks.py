"""What every kind of learner has: one task at a time, progress, and an end that is always said."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from zk0d.daemon.clock import uptime
from zk0d.errors import Zk0dError
from zk0d.federation.messages import Message
from zk0d.federation.update import Payload
from zk0d.learning.progress import Decoding, Progress, Training, event_of

PROGRESS_SECONDS = 0.5


class Stopped(Zk0dError):
    """A task was told to end (deadline, or nobody waits for its result any more)."""

    default_reason = "stopped"


class TaskControl:
    """Between a running task and its waiting caller.

    Parameters
    ----------
    report
        Takes progress events; called from the task's thread.
    """

    def __init__(self, report: Callable[[dict[str, Any]], None] = lambda event: None) -> None:
        self.report = report
        self._stop = threading.Event()
        self._told = float("-inf")
        self._deadline = float("inf")

    def tell(self, progress: Progress) -> None:
        """Report how far the task is; of what comes often, not each."""
        now = time.monotonic()
        match progress:
            case Decoding(frames=done, of=whole) | Training(step=done, steps=whole):
                if now - self._told < PROGRESS_SECONDS and done not in (0, whole):
                    return
                self._told = now
        self.report(event_of(progress))

    def stop(self) -> None:
        """Ask the task to end: nobody waits for it."""
        self._stop.set()

    def set_deadline(self, seconds: float) -> None:
        """From now on the task has so many seconds, suspended ones included."""
        self._deadline = uptime() + seconds

    def should_stop(self) -> bool:
        return self._stop.is_set() or uptime() > self._deadline

    def rest(self, seconds: float) -> None:
        """Do nothing for so long, or until the task should end."""
        self._stop.wait(max(0.0, min(seconds, self._deadline - uptime())))

    def check(self) -> None:
        """Raise :class:`Stopped` if the task should end."""
        if self._stop.is_set():
            raise Stopped(
                "the task was dropped: the coordinator does not wait for it.", reason="dropped"
            )
        if uptime() > self._deadline:
            raise Stopped("the round's deadline has passed.", reason="deadline")


class Learner(ABC):
    """A program that does tasks. Subclasses say which."""

    #: The tasks it takes, with the type of each one's message.
    kinds: ClassVar[dict[str, type[Message]]]

    @abstractmethod
    def run(
        self, task: Message, payload: Payload | None, control: TaskControl
    ) -> tuple[Message, Payload | None]:
        """Do one task; called from one thread at a time.

        Raises
        ------
        Zk0dError
            For everything that the other end should hear as a refusal with a reason.
        """

    @property
    def is_loaded(self) -> bool:
        """Whether it holds a policy from one task to the next."""
        return False

    def release_gpu_memory(self) -> None:  # noqa: B027
        """Free what only a running task needs; called after each, from the same thread."""

    def settle(self) -> None:  # noqa: B027
        """Do what nobody has to wait for; called after each task, from the same thread."""

    def facts(self) -> dict[str, Any]:
        """What ``status`` tells about it."""
        return {}
