"""What a GPU can do to a learner: its figures, a kernel that never ends, memory that is too small.

The learner is the real service with a task of ours; systemd's watchdog is played by this program,
which looks at the condition that the service reports and then sends SIGABRT as systemd does.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import pynvml
import torch

from tests import processes
from zk0d.daemon.gpu import GpuCollector
from zk0d.federation.messages import Message, Start
from zk0d.federation.update import Payload
from zk0d.learner.tasks import Learner, TaskControl

STANDS_STILL = 10.0


class Spinner(Learner):
    """Launches a kernel that runs for minutes."""

    kinds: ClassVar[dict[str, type[Message]]] = {"start": Start}

    def run(
        self, task: Message, payload: Payload | None, control: TaskControl
    ) -> tuple[Message, Payload | None]:
        control.report({"event": "progress", "step": 1, "steps": 9, "loss": 1.0, "seconds": 1.0})
        torch.cuda._sleep(10**12)
        torch.cuda.synchronize()
        raise AssertionError("the kernel ended")


def serve(socket: Path) -> None:
    from zk0d.services import learner

    learner.STEP_SECONDS = STANDS_STILL
    torch.zeros(2**28, device="cuda")  # 1 GiB that must come back

    class Told(learner.LearnerService):
        def look(self) -> Any:
            condition = super().look()
            print(condition, flush=True)
            return condition

    Told("learner", lambda: (Spinner(), socket)).run()


def main() -> None:
    if len(sys.argv) > 1:
        serve(Path(sys.argv[1]))
        return
    for family in GpuCollector().collect():
        for sample in family.samples:
            print(f"{sample.name}{sample.labels} {sample.value}")
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    before = pynvml.nvmlDeviceGetMemoryInfo(handle).used
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        socket = Path(folder) / "l.sock"
        log = Path(folder) / "log"
        with log.open("w") as output:
            served = [sys.executable, "-m", "tests.bench.gpu.faults", str(socket)]
            child = stack.enter_context(processes.started(served, stdout=output, stderr=output))
        _until(socket.exists, 60)
        began = time.monotonic()
        call = [sys.executable, "-c", _CALL.format(socket=str(socket))]
        caller = stack.enter_context(processes.started(call, stdout=subprocess.DEVNULL))
        _until(lambda: "stands_still" in log.read_text(), 60)
        print(f"a kernel that does not end is seen after {time.monotonic() - began:.1f} s")
        held = pynvml.nvmlDeviceGetMemoryInfo(handle).used - before
        began = time.monotonic()
        child.send_signal(signal.SIGABRT)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(60)
        print(f"the learner is gone after {time.monotonic() - began:.1f} s ({child.returncode})")
        caller.kill()
        caller.wait()
        _until(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used - before < held / 4, 60)
        print(f"its {held / 2**30:.1f} GiB are free after {time.monotonic() - began:.1f} s")
        value = float(torch.ones(8, device="cuda").sum())
        print(f"the GPU works again: {value == 8.0}; last: {log.read_text().splitlines()[-1]}")


_CALL = """
from pathlib import Path
from zk0d.federation.learner_client import LearnerClient
from zk0d.federation.messages import Start
LearnerClient(Path({socket!r})).start(Start(policy="smolvla", model_name="x", seed=0))
"""


def _until(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("faults: it did not happen in time")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
