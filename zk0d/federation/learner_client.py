"""Talks to a learner over its unix socket. No torch.

A task is one POST; its answer is a stream of JSON lines, one for each event, ending with ``done``
or ``error``. If the task produced tensors, ``done`` names where to fetch them. The stream is also
the lifeline: a learner whose caller goes away stops the task.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx

from zk0d.errors import Zk0dError
from zk0d.federation.body import CONTENT_TYPE, BodyReader, open_body, require_payload, write_body
from zk0d.federation.messages import (
    Evaluate,
    EvaluateReply,
    Measure,
    MeasureReply,
    Message,
    Query,
    QueryReply,
    Release,
    ReleaseReply,
    Start,
    StartReply,
    Train,
    TrainReply,
)
from zk0d.federation.update import Payload
from zk0d.learning.progress import Decoding, told_by
from zk0d.record.reasons import Reason

#: The learner sends a line at least this often while a task runs, even if there is nothing to say.
HEARTBEAT_SECONDS = 2.0
#: Longer silence than this means it hangs.
SILENCE_SECONDS = 60.0

#: After so long a node that decodes tells how far it is, unless it is over in so long.
PREPARING_SECONDS, ALMOST_SECONDS = 20.0, 10.0

#: In a learner's status: what :meth:`NodeLearner.held` says.
HOLDS = "holds"

Progress = Callable[[dict[str, Any]], None]


class LearnerError(Zk0dError):
    """The learner refused or failed a task, or is not there.

    ``reason`` is the learner's own, or one of ``learner_gone``, ``learner_silent``.

    Parameters
    ----------
    vanished
        Whether it was there before.
    """

    default_reason = "learner_error"

    def __init__(self, message: str, *, reason: str | None = None, vanished: bool = False) -> None:
        super().__init__(message, reason=reason)
        self.vanished = vanished
        self.exit_code = Reason.of(self.reason).exit_code


class Evaluator(Protocol):
    """What the server needs of the learner beside it."""

    def start(self, task: Start) -> tuple[StartReply, Payload]: ...

    def evaluate(self, task: Evaluate, weights: Payload) -> EvaluateReply: ...

    def release(self, task: Release, weights: Payload) -> ReleaseReply: ...


class NodeLearner(Protocol):
    """What a node's ClientApp needs of the learner beside it."""

    def query(self, task: Query, progress: Progress = ...) -> QueryReply: ...

    def answers(self) -> bool:
        """Whether it is there."""

    def held(self) -> str:
        """Manifest hash of the weights that it holds; empty if none."""

    def train(
        self, task: Train, weights: Payload, progress: Progress = ...
    ) -> tuple[TrainReply, Payload]: ...

    def measure(
        self, task: Measure, weights: Payload, progress: Progress = ...
    ) -> MeasureReply: ...


def _no_progress(event: dict[str, Any]) -> None:
    del event


class LearnerClient:
    """One learner, by its socket.

    Parameters
    ----------
    streams
        Whether an update comes while it is read, once and before :meth:`close`, as whoever passes
        it on wants it; else it is in memory.
    """

    def __init__(self, socket: Path | str, *, streams: bool = False) -> None:
        self._socket = Path(socket)
        self._streams = streams
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)),
            base_url="http://learner",
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=10.0),
        )
        self._open = ExitStack()

    def close(self) -> None:
        self._open.close()
        self._http.close()

    def __enter__(self) -> LearnerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def status(self) -> dict[str, Any]:
        """What the learner is doing; raises :class:`LearnerError` if it does not answer."""
        try:
            answer = self._http.get("/v1/status", timeout=5.0)
            answer.raise_for_status()
            return dict(answer.json())
        except httpx.HTTPError as error:
            raise self._gone(error) from None

    def answers(self) -> bool:
        """Whether it is there."""
        try:
            self.status()
        except LearnerError:
            return False
        return True

    def held(self) -> str:
        """Manifest hash of the weights that it holds; empty if none, or if it does not answer."""
        try:
            return str(self.status().get(HOLDS, ""))
        except LearnerError:  # the task itself says what is wrong
            return ""

    def query(self, task: Query, progress: Progress = _no_progress) -> QueryReply:
        """Ask whether it can train a policy.

        Raises
        ------
        LearnerError
            With reason ``preparing`` if it decodes recordings for long, which continues.
        """
        began = time.monotonic()

        def heard(event: dict[str, Any]) -> None:
            progress(event)
            if time.monotonic() - began > PREPARING_SECONDS:
                _check_decodes(event)

        try:
            return self._run("query", task, None, QueryReply, heard)[0]
        except LearnerError as error:
            if error.reason == Reason.LEARNER_BUSY:
                _check_decodes(self.status())  # since an earlier question
            raise

    def train(
        self, task: Train, weights: Payload, progress: Progress = _no_progress
    ) -> tuple[TrainReply, Payload]:
        """One round of local steps from ``weights``; returns the update."""
        if not self._streams:
            reply, update = self._run("train", task, weights, TrainReply, progress)
            return reply, require_payload(update)
        with self._told():
            done = self._events("train", task, weights, progress)
            answer = self._open.enter_context(
                self._http.stream("GET", f"/v1/results/{done['result']}")
            )
            answer.raise_for_status()
            reply, payload = open_body(self._pieces(answer), TrainReply)
        return reply, require_payload(payload)

    def measure(
        self, task: Measure, weights: Payload, progress: Progress = _no_progress
    ) -> MeasureReply:
        """Evaluate ``weights`` on the node's own held-out episodes."""
        return self._run("measure", task, weights, MeasureReply, progress)[0]

    def _pieces(self, answer: httpx.Response) -> Iterator[bytes]:
        with self._told():
            yield from answer.iter_raw()

    def start(self, task: Start) -> tuple[StartReply, Payload]:
        """The run's policy and its first weights (evaluator only)."""
        reply, payload = self._run("start", task, None, StartReply, _no_progress)
        return reply, require_payload(payload)

    def evaluate(self, task: Evaluate, weights: Payload) -> EvaluateReply:
        """Evaluate ``weights`` (evaluator only)."""
        return self._run("evaluate", task, weights, EvaluateReply, _no_progress)[0]

    def release(self, task: Release, weights: Payload) -> ReleaseReply:
        """Write ``weights`` as a checkpoint (evaluator only)."""
        return self._run("release", task, weights, ReleaseReply, _no_progress)[0]

    def _run[M: Message](
        self,
        kind: str,
        task: Message,
        payload: Payload | None,
        expected: type[M],
        progress: Progress,
    ) -> tuple[M, Payload | None]:
        with self._told():
            done = self._events(kind, task, payload, progress)
            reader = BodyReader()
            with self._http.stream("GET", f"/v1/results/{done['result']}") as answer:
                answer.raise_for_status()
                for piece in answer.iter_raw():
                    reader.feed(piece)
            return reader.finish(expected)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say as an error of ours what goes wrong with the socket."""
        try:
            yield
        except httpx.ReadTimeout:
            raise LearnerError(
                f"the learner at {self._socket} said nothing for {SILENCE_SECONDS:.0f} s.",
                reason="learner_silent",
            ) from None
        except httpx.HTTPError as error:
            raise self._gone(error) from None

    def _events(
        self, kind: str, task: Message, payload: Payload | None, progress: Progress
    ) -> dict[str, Any]:
        request = self._http.build_request(
            "POST",
            f"/v1/tasks/{kind}",
            content=write_body(task, payload),
            headers={"content-type": CONTENT_TYPE},
        )
        answer = self._http.send(request, stream=True)
        try:
            for line in answer.iter_lines():
                event = json.loads(line)
                if event["event"] == "error":
                    raise LearnerError(event["message"], reason=event["reason"])
                if event["event"] == "done":
                    return dict(event)
                progress(event)
        finally:
            answer.close()
        raise httpx.RemoteProtocolError("the stream ended before the task did")

    def _gone(self, error: httpx.HTTPError) -> LearnerError:
        return LearnerError(
            f"the learner at {self._socket} is gone ({type(error).__name__}: {error}); it is"
            " restarted by its service and the next round can use it.",
            reason="learner_gone",
            vanished=not isinstance(error, httpx.ConnectError),
        )


def _check_decodes(told: dict[str, Any]) -> None:
    """Say how far a learner is that decodes, by its event or status, and is not almost done."""
    found = told_by(told)
    if isinstance(found, Decoding) and found.frames < found.of and found.left > ALMOST_SECONDS:
        raise LearnerError(f"preparing: {found.to_others()}", reason=Reason.PREPARING)
