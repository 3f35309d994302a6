"""The learner's HTTP interface: one task at a time over a unix socket.

``POST /v1/tasks/KIND`` takes a safetensors body and streams events as JSON lines; when the caller
hangs up the task is stopped. ``GET /v1/results/ID`` gives the answer once. ``GET /v1/status`` tells
what is going on, ``GET /metrics`` the same in figures.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import time
import traceback
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from zk0d.daemon.metrics import Metrics
from zk0d.errors import Zk0dError, disk_trouble, no_permission, with_causes
from zk0d.federation.body import CONTENT_TYPE as BODY_TYPE
from zk0d.federation.body import BodyReader, write_body
from zk0d.federation.learner_client import HEARTBEAT_SECONDS
from zk0d.federation.messages import Message
from zk0d.federation.update import Payload
from zk0d.learner.metrics import CONTENT_TYPE, LearnerMetrics
from zk0d.learner.tasks import Learner, TaskControl

log = logging.getLogger(__name__)

GPU_IS_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC")
#: After such an error every further call to the GPU from this process fails as well.
GPU_FAILED = ("CUDA error:", "HIP error:")


@dataclass
class _Result:
    name: str
    message: Message
    payload: Payload | None


class LearnerApp:
    """Serves one :class:`Learner`."""

    def __init__(self, learner: Learner, metrics: LearnerMetrics | None = None) -> None:
        self._learner = learner
        self._metrics = metrics or LearnerMetrics(Metrics("learner", part="learner"), learner.kinds)
        # One thread: a policy is no thread's but this one's.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._control: TaskControl | None = None
        self._doing: dict[str, Any] = {"state": "idle"}
        self._result: _Result | None = None
        self._broken_by: Exception | None = None
        self.asgi = Starlette(
            routes=[
                Route("/v1/status", self._status),
                Route("/metrics", self._figures),
                Route("/v1/tasks/{kind}", self._task, methods=["POST"]),
                Route("/v1/results/{name}", self._give_result),
            ]
        )

    @property
    def broken(self) -> str:
        """Why this process can do no task any more; empty while it can."""
        return _gpu_failure(self._broken_by) if self._broken_by else ""

    @property
    def doing(self) -> dict[str, Any]:
        """What it does now; ``since`` when, and in ``seen`` when progress was last seen.

        Both are of :func:`time.monotonic`: a watchdog looks at them.
        """
        return dict(self._doing)

    async def _status(self, _: Request) -> Response:
        doing = {key: each for key, each in self._doing.items() if key not in ("since", "seen")}
        return JSONResponse({**doing, **self._learner.facts()})

    async def _figures(self, _: Request) -> Response:
        self._metrics.facts(self._learner.facts())
        # A GPU's driver may hang: in a thread of its own, nothing else waits for it.
        page = await asyncio.to_thread(self._metrics.page)
        return Response(page, media_type=CONTENT_TYPE)

    async def _task(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        expected = self._learner.kinds.get(kind)
        if expected is None:
            return _events_of(_error("unknown_task", f"this learner does not know '{kind}' tasks."))
        if self._control is not None:
            busy = self._doing.get("task", "a task")
            return _events_of(_error("learner_busy", f"the learner is busy with {busy}."))
        control = self._control = TaskControl()
        self._result = None
        now = time.monotonic()
        self._doing = {"state": "working", "task": kind, "since": now, "seen": now}
        self._metrics.began()
        reader = BodyReader()
        try:
            async for piece in request.stream():
                reader.feed(piece)
                self._metrics.received(len(piece))
                # A home's line may need an hour for it.
                self._doing = {**self._doing, "seen": time.monotonic()}
            task, payload = reader.finish(expected)
        except Zk0dError as error:
            self._over(kind, error.reason)
            return _events_of(_error(error.reason, error.message))
        except ClientDisconnect:
            self._over(kind, "dropped")
            raise
        return StreamingResponse(
            self._work(kind, task, payload, control), media_type="application/x-ndjson"
        )

    async def _work(
        self, kind: str, task: Message, payload: Payload | None, control: TaskControl
    ) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        def report(event: dict[str, Any]) -> None:
            self._doing = {**self._doing, **event, "seen": time.monotonic()}
            self._metrics.progress(event)
            loop.call_soon_threadsafe(events.put_nowait, event)

        control.report = report
        working = loop.run_in_executor(self._thread, self._run, task, payload, control)
        working.add_done_callback(lambda done: self._over(kind, _result_of(done)))
        del payload
        try:
            while not working.done():
                getting = asyncio.ensure_future(events.get())
                waiting: set[asyncio.Future[Any]] = {getting, working}
                await asyncio.wait(
                    waiting, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if getting.done():
                    yield _line(getting.result())
                else:
                    getting.cancel()
                    yield _line({"event": "alive"})
            yield _line(self._outcome(kind, working))
        finally:
            # The caller hung up: nobody waits for this task any more.
            control.stop()

    def _run(
        self, task: Message, payload: Payload | None, control: TaskControl
    ) -> tuple[Message, Payload | None]:
        try:
            return self._learner.run(task, payload, control)
        except Exception as error:
            if _gpu_failure(error):
                # Its tensors must outlive it: to free some of them asks the GPU, and PyTorch aborts
                # the process when it does not answer, before anybody is told.
                self._broken_by = error
                raise
            # Whoever keeps the error keeps its frames, and with them all tensors of a failed step.
            for each in with_causes(error):
                traceback.clear_frames(each.__traceback__)
            raise
        finally:
            if not self._broken_by:
                self._learner.release_gpu_memory()

    def _settle(self) -> None:
        try:
            self._learner.settle()
        except Exception:
            log.exception("what a task left could not be put away")

    def _outcome(self, kind: str, working: asyncio.Future[Any]) -> dict[str, Any]:
        try:
            message, result = working.result()
        except Zk0dError as error:
            log.warning("%s refused: %s", kind, error.message)
            return _error(error.reason, error.message)
        except Exception as error:
            for each in with_causes(error):
                if lacking := _lacking_memory(each):
                    said = _out_of_memory(lacking, kind)
                    log.error("%s refused: %s (%s)", kind, said["message"], each)
                    return said
            log.exception("%s failed", kind)
            if self.broken:
                return _error(
                    "gpu_failed",
                    f"the GPU failed in {kind} ({self.broken}); the learner restarts.",
                )
            if trouble := disk_trouble(error):
                return _error(
                    "disk_full",
                    f"{kind} cannot write on this machine ({trouble}); free space there, or in the"
                    " folder for temporary files (TMPDIR), or make it writable.",
                )
            if trouble := no_permission(error):
                return _error(
                    "forbidden",
                    f"{kind} lacks a right on this machine ({trouble}); give it to user"
                    f" {os.geteuid()}.",
                )
            name = type(error).__name__
            return _error("bug", f"{kind} failed with {name}; the learner's log has the details.")
        self._result = _Result(secrets.token_hex(8), message, result)
        return {"event": "done", "result": self._result.name}

    def _over(self, kind: str, result: str) -> None:
        self._metrics.ended(kind, result)
        if not self._broken_by:
            self._thread.submit(self._settle)  # before any other task
        self._control = None
        self._doing = {"state": "idle", "since": time.monotonic()}

    async def _give_result(self, request: Request) -> Response:
        result, self._result = self._result, None
        if result is None or result.name != request.path_params["name"]:
            return JSONResponse({"reason": "no_result"}, status_code=404)
        return StreamingResponse(self._pieces(result.message, result.payload), media_type=BODY_TYPE)

    async def _pieces(self, message: Message, payload: Payload | None) -> AsyncIterator[bytes]:
        for piece in write_body(message, payload):
            self._metrics.sent(len(piece))
            yield piece


def _result_of(working: asyncio.Future[Any]) -> str:
    """How a task ended, in a word."""
    error = working.exception()
    if error is None:
        return "done"
    return error.reason if isinstance(error, Zk0dError) else type(error).__name__


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event) + "\n"


def _lacking_memory(error: BaseException) -> str:
    """The owner of the memory that did not suffice; empty for another error.

    PyTorch has a type for it only where its own allocator asks for the GPU's memory. CUDA's
    libraries, the driver and the allocator on the CPU say it in a message.
    """
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or any(sign in text for sign in GPU_IS_FULL):
        return "the GPU's"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return "this machine's"
    return ""


def _gpu_failure(error: BaseException) -> str:
    """What the GPU's driver said of a failure that is none of memory; empty if it is no such."""
    each_error = list(with_causes(error))
    if any(map(_lacking_memory, each_error)):
        return ""
    for each in each_error:
        if any(sign in str(each) for sign in GPU_FAILED):
            return str(each).partition("\n")[0]
    return ""


def _out_of_memory(whose: str, kind: str) -> dict[str, Any]:
    return _error(
        "out_of_memory",
        f"{whose} memory does not suffice for {kind}; lower the run's batch-size, or end what else"
        " uses it.",
    )


def _error(reason: str, message: str) -> dict[str, Any]:
    return {"event": "error", "reason": reason, "message": message}


def _events_of(event: dict[str, Any]) -> Response:
    return Response(_line(event), media_type="application/x-ndjson")
