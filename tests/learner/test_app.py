"""The learner's socket: one task at a time, an end that is always said."""

from __future__ import annotations

import errno
import gc
import shutil
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import httpx
import numpy as np
import pytest

from tests import processes
from tests.federation.fakes import SPEC, STATISTICS
from tests.processes import wait_until
from tests.serving import served
from zk0d.config.run import EvaluationSettings
from zk0d.errors import DataError, ExitCode, UnavailableError, Zk0dError
from zk0d.federation.learner_client import LearnerClient, LearnerError
from zk0d.federation.messages import (
    Evaluate,
    EvaluateReply,
    Message,
    Query,
    Start,
    StartReply,
)
from zk0d.federation.update import Payload
from zk0d.learner import app
from zk0d.learner.tasks import Learner, TaskControl
from zk0d.learning import policy
from zk0d.learning.statistics import merge_groups
from zk0d.record.events import DatasetResult
from zk0d.services.learner import LearnerService, listen

TASK = Start(policy="act", model_name="tiny", seed=0)
Work = Callable[[Message, Payload | None, TaskControl], tuple[Message, Payload | None]]


class Scripted(Learner):
    """Does what the test says."""

    kinds: ClassVar[dict[str, type[Message]]] = {"start": Start, "evaluate": Evaluate}

    def __init__(self) -> None:
        self.after: Callable[[], None] = lambda: None
        self.work: Work = lambda task, payload, control: (
            StartReply(spec=SPEC),
            Payload.of({"w": np.arange(2_000_000, dtype=np.float32)}, "weights"),
        )

    def run(
        self, task: Message, payload: Payload | None, control: TaskControl
    ) -> tuple[Message, Payload | None]:
        return self.work(task, payload, control)

    def release_gpu_memory(self) -> None:
        self.after()

    def facts(self) -> dict[str, Any]:
        return {"name": "scripted"}


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def path(scripted: Scripted, tmp_path: Path) -> Iterator[Path]:
    """The socket of a served learner."""
    with served(scripted, tmp_path / "learner.sock") as path:
        yield path


@pytest.fixture
def client(path: Path) -> Iterator[LearnerClient]:
    with LearnerClient(path) as client:
        yield client


def test_a_task_gives_its_answer_and_tensors(client: LearnerClient) -> None:
    reply, payload = client.start(TASK)
    assert reply.spec == SPEC
    assert np.array_equal(payload.arrays()["w"], np.arange(2_000_000))


def test_tensors_go_in_and_come_out_whole(scripted: Scripted, client: LearnerClient) -> None:
    sent = Payload.of({"w": np.random.default_rng(0).random(3_000_000, np.float32)}, "weights")
    seen: list[str] = []

    def work(task: Message, payload: Payload | None, _: TaskControl) -> tuple[Message, None]:
        assert payload is not None
        payload.arrays()
        seen.append(payload.manifest.sha256)
        return EvaluateReply(datasets=(DatasetResult(name="x", loss=0.5),)), None

    scripted.work = work
    task = Evaluate(
        run="r",
        round=0,
        spec=SPEC,
        base=sent.manifest.sha256,
        statistics=merge_groups("cohort", {"": [STATISTICS]}),
        evaluation=EvaluationSettings(eval_frames=1),
        seed=0,
    )
    assert client.evaluate(task, sent).loss == 0.5
    assert seen == [sent.manifest.sha256]


def test_a_refusal_keeps_its_reason(scripted: Scripted, client: LearnerClient) -> None:
    def work(*_: Any) -> Any:
        raise DataError("the recordings are empty.")

    scripted.work = work
    with pytest.raises(LearnerError, match="the recordings are empty") as error:
        client.start(TASK)
    assert error.value.reason == "data_error"
    assert client.status()["state"] == "idle", "it takes the next task"


def _caused_by(cause: Exception, error: Exception) -> Exception:
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "out_of_memory"),
        (_caused_by(MemoryError(), RuntimeError("the recording failed")), "out_of_memory"),
        (RuntimeError("CUDA error: unspecified launch failure"), "gpu_failed"),
        (_caused_by(RuntimeError("CUDA error: an assert"), TypeError("oops")), "gpu_failed"),
        (OSError(errno.ENOSPC, "No space left on device", "/t/file"), "disk_full"),
        (Exception("No space left on device (os error 28)"), "disk_full"),
        (shutil.Error([("a", "b", "[Errno 30] Read-only file system: 'b'")]), "disk_full"),
        (
            _caused_by(
                Exception("IO error: Disk quota exceeded (os error 122)"), TypeError("oops")
            ),
            "disk_full",
        ),
        (
            _caused_by(
                RuntimeError("CUDA error: an assert"), OSError(errno.ENOSPC, "No space left")
            ),
            "gpu_failed",
        ),
        (Exception("No such file or directory (os error 2)"), "bug"),
        (ZeroDivisionError("oops"), "bug"),
        (_caused_by(ZeroDivisionError(), RuntimeError("oops")), "bug"),
    ],
)
def test_a_failure_has_a_name(
    scripted: Scripted, client: LearnerClient, raised: Exception, reason: str
) -> None:
    def work(*_: Any) -> Any:
        raise raised

    scripted.work = work
    with pytest.raises(LearnerError) as error:
        client.start(TASK)
    assert error.value.reason == reason
    assert ("lower the run's batch-size" in error.value.message) == (reason == "out_of_memory")
    assert ("free space there" in error.value.message) == (reason == "disk_full")
    assert "oops" not in error.value.message, "details stay in the learner's log"


@pytest.mark.parametrize(
    ("raised", "reason", "said"),
    [
        (OSError(errno.ENOSPC, "full"), "disk_full", r"\(No space left on device\); free space"),
        (RuntimeError("No space left on device (os error 28)"), "disk_full", "free space there"),
        (PermissionError(errno.EACCES, "forbidden"), "model_unavailable", "fetch it again"),
        (ValueError("not JSON"), "model_unavailable", "fetch it again"),
    ],
)
def test_a_full_disk_is_not_blamed_on_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raised: Exception, reason: str, said: str
) -> None:
    def fail(*_: Any) -> Any:
        raise raised

    for name in ("_model_folder", "_pretrained_config", "refuse_code", "family"):
        monkeypatch.setattr(policy, name, lambda *_: Mock(from_folder=fail))
    with pytest.raises(Zk0dError, match=said) as error:
        policy.load_policy(SPEC.model_copy(update={"model_name": "me/model"}), device="cpu")
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (OSError(errno.ENOSPC, "full"), "disk_full"),
        (OSError("We couldn't connect to the hub"), "hub_unreachable"),
    ],
)
def test_a_disk_that_a_download_fills_is_not_the_hubs_fault(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, reason: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(policy, "snapshot_download", fail)
    with pytest.raises(Zk0dError, match="model 'me/model'") as error:
        policy.load_policy(SPEC.model_copy(update={"model_name": "me/model"}), device="cpu")
    assert error.value.reason == reason


def test_a_learner_with_a_failed_gpu_ends_so_that_it_restarts(
    scripted: Scripted, tmp_path: Path
) -> None:
    def work(*_: Any) -> Any:
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be")

    path = tmp_path / "learner.sock"
    service = LearnerService("learner", lambda: (scripted, path))
    service.start()
    try:
        with LearnerClient(path) as client:
            client.start(TASK)
            assert service.look().status == "ready, waiting for a round"
            scripted.work = work
            with pytest.raises(LearnerError, match=r"launch failure\); the learner restarts"):
                client.start(TASK)
        with pytest.raises(UnavailableError, match=r"unspecified launch failure.*new process"):
            service.look()
    finally:
        service.stop()


def test_nothing_is_freed_on_a_gpu_that_failed(
    scripted: Scripted, client: LearnerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch aborts the process when the GPU does not answer, before the coordinator is told."""
    # What pytest keeps of a log would keep the tensors, too.
    monkeypatch.setattr(app.log, "exception", lambda *_: None)
    held: list[weakref.ref[Any]] = []
    given: list[int] = []

    def work(*_: Any) -> Any:
        pinned = np.zeros(10)
        held.append(weakref.ref(pinned))
        raise RuntimeError("CUDA error: device-side assert triggered")

    scripted.work = work
    scripted.after = lambda: given.append(1)
    with pytest.raises(LearnerError) as error:
        client.start(TASK)
    assert error.value.reason == "gpu_failed"
    gc.collect()
    assert held[0]() is not None
    assert given == []


ENDS = """
import os, sys
from pathlib import Path
from tests.learner.test_app import Scripted
from zk0d.daemon.program import guarded
from zk0d.services.learner import LearnerService

class Pinned:
    def __del__(self): os.abort()  # as PyTorch does

def work(*_):
    pinned = Pinned()
    raise RuntimeError("CUDA error: device-side assert triggered")

learner = Scripted()
learner.work = work
service = LearnerService("learner", lambda: (learner, Path(sys.argv[1])))
sys.exit(guarded("zk0d", service.run))
"""


@pytest.mark.slow
def test_a_process_with_a_failed_gpu_ends_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "learner.sock"
    command = [sys.executable, "-c", ENDS, str(path)]
    with processes.started(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until(path.exists, "the learner's start", 60, [])
        with LearnerClient(path) as client, pytest.raises(LearnerError) as error:
            client.start(TASK)
        assert error.value.reason == "gpu_failed"
        said = process.communicate(timeout=30)[1]
    assert process.returncode == ExitCode.UNAVAILABLE, said
    assert "zk0d: the GPU failed (CUDA error: device-side assert triggered), and only" in said
    assert not path.exists()


def test_a_failure_keeps_nothing_of_its_task(scripted: Scripted, client: LearnerClient) -> None:
    held: list[weakref.ref[Any]] = []
    at_the_end: list[bool] = []

    def work(*_: Any) -> Any:
        big = np.zeros(10)
        held.append(weakref.ref(big))
        try:
            len(3)  # type: ignore[arg-type]
        except TypeError:
            raise MemoryError from None

    scripted.work = work
    scripted.after = lambda: at_the_end.append(held[-1]() is None)
    with pytest.raises(LearnerError):
        client.start(TASK)
    assert at_the_end == [True], "gone before memory is given back, while the error is still kept"


def test_memory_is_freed_after_a_task_too(scripted: Scripted, client: LearnerClient) -> None:
    given: list[str] = []
    scripted.after = lambda: given.append(threading.current_thread().name)
    client.start(TASK)
    assert given == ["learner_0"], "from the task's thread, once"


def test_a_learner_does_one_task_at_a_time(scripted: Scripted, path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()
    before = scripted.work

    def work(task: Message, payload: Payload | None, control: TaskControl) -> Any:
        entered.set()
        assert leave.wait(20)
        return before(task, payload, control)

    scripted.work = work
    results: list[Any] = []

    def first() -> None:
        with LearnerClient(path) as client:
            results.append(client.start(TASK))

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    with LearnerClient(path) as second:
        assert second.status() | {"state": "working", "task": "start"} == second.status()
        with pytest.raises(LearnerError, match="busy with start") as error:
            second.start(TASK)
        assert error.value.reason == "learner_busy"
    leave.set()
    thread.join(20)
    assert results, "the first was not disturbed"


def test_progress_is_streamed(scripted: Scripted, client: LearnerClient) -> None:
    before = scripted.work

    def work(task: Message, payload: Payload | None, control: TaskControl) -> Any:
        for step in range(3):
            control.report({"event": "progress", "step": step, "seconds": 0.1 * step})
        # The last events and the end may come in one piece; the first two cannot be overtaken.
        assert seen_two.wait(10)
        return before(task, payload, control)

    seen: list[int] = []
    seen_two = threading.Event()

    def progress(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            seen.append(event["step"])
            if len(seen) == 2:
                seen_two.set()

    scripted.work = work
    client._run("start", TASK, None, StartReply, progress)
    assert seen[:2] == [0, 1]


def test_a_caller_that_hangs_up_stops_the_task(scripted: Scripted, path: Path) -> None:
    stopped = threading.Event()
    entered = threading.Event()

    def work(task: Message, payload: Payload | None, control: TaskControl) -> Any:
        entered.set()
        while True:
            try:
                control.check()
            except Exception:
                stopped.set()
                raise

    scripted.work = work
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://learner") as http:
        from zk0d.federation.body import write_body

        request = http.build_request("POST", "/v1/tasks/start", content=write_body(TASK))
        answer = http.send(request, stream=True)
        assert entered.wait(10)
        answer.close()
    assert stopped.wait(20)


def test_a_deadline_ends_a_task(scripted: Scripted, client: LearnerClient) -> None:
    def work(task: Message, payload: Payload | None, control: TaskControl) -> Any:
        control.set_deadline(0.05)
        while True:
            control.check()

    scripted.work = work
    with pytest.raises(LearnerError) as error:
        client.start(TASK)
    assert error.value.reason == "deadline"


def test_an_unknown_task_is_refused(client: LearnerClient) -> None:
    with pytest.raises(LearnerError) as error:
        client.query(Query(run="r", spec=SPEC))
    assert error.value.reason == "unknown_task"


def test_a_wrong_body_is_refused(path: Path) -> None:
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://learner") as http:
        answer = http.post("/v1/tasks/start", content=b"\x02\0\0\0\0\0\0\0no")
        assert answer.json()["reason"] == "bad_body"
        assert http.get("/v1/status").json()["state"] == "idle"


def test_a_result_is_given_once(path: Path, client: LearnerClient) -> None:
    client.start(TASK)
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://learner") as http:
        assert http.get("/v1/results/guess").status_code == 404


def test_no_learner_is_a_sentence(tmp_path: Path) -> None:
    with LearnerClient(tmp_path / "nobody.sock") as client:
        for ask in (client.status, lambda: client.start(TASK)):
            with pytest.raises(LearnerError, match=r"nobody\.sock is gone") as error:
                ask()
            assert error.value.reason == "learner_gone"


def test_a_learner_that_dies_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "dying.sock"
    listening = listen(path)

    def die() -> None:
        connection, _ = listening.accept()
        connection.recv(65536)
        line = b'{"event": "alive"}\n'
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + b"%x\r\n%s\r\n" % (len(line), line))
        connection.close()

    thread = threading.Thread(target=die)
    thread.start()
    with LearnerClient(path) as client, pytest.raises(LearnerError) as error:
        client.start(TASK)
    thread.join()
    assert error.value.reason == "learner_gone"


def test_the_socket_is_for_its_group(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o660


def test_a_stale_socket_is_replaced_and_a_used_one_is_not(tmp_path: Path) -> None:
    from zk0d.errors import TryAgainError

    path = tmp_path / "learner.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    listening = listen(path)
    with pytest.raises(UnavailableError, match="another learner listens there already"):
        listen(path)
    listening.close()
    with pytest.raises(TryAgainError, match="the socket cannot be made"):
        listen(Path("/proc/learner.sock"))
