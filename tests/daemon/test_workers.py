"""Workers are forked with what they need, write to their pool's log, and end with their owner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import processes
from tests.processes import wait_until
from zk0d.daemon.workers import worker_pool

#: Starts a pool of two that imports nothing, and waits.
OWNER = """\
import os, sys, time
from pathlib import Path
from zk0d.daemon import workers
workers.PRELOADED = "json"
with workers.worker_pool(2, Path(sys.argv[1])) as pool:
    working = [pool.submit(time.sleep, 600) for _ in range(2)]
    while not all(each.running() for each in working):
        time.sleep(0.01)
    print(*pool._processes, flush=True)
    time.sleep(600)
"""


def look(name: str) -> tuple[str | None, int, list[str]]:
    """What a worker sees; and it writes to its output, as an encoder does."""
    import torch

    os.write(1, b"an encoder's word\n")
    wanted: list[str] = ["lerobot", "zk0d.learning.policy"]
    loaded = [module for module in wanted if module in sys.modules]
    return os.environ.get(name), torch.get_num_threads(), loaded


@pytest.mark.slow
def test_a_worker_has_its_imports_one_thread_and_its_owners_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for value in ("first", "second"):
        monkeypatch.setenv("ZK0D_A_TEST", value)
        log = tmp_path / f"{value}.log"
        with worker_pool(1, log) as pool:
            seen = pool.submit(look, "ZK0D_A_TEST").result()
        assert seen == (value, 1, ["lerobot", "zk0d.learning.policy"])
        assert "an encoder's word" in log.read_text()
    assert capfd.readouterr() == ("", "")


def take_a_step() -> float:
    """As a comparison trains: on the CPU, whatever GPU there is."""
    import torch

    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0)
    weight.sum().backward()
    optimizer.step()
    return float(weight)


@pytest.mark.slow
def test_a_worker_trains_on_the_cpu_of_a_machine_with_a_gpu(tmp_path: Path) -> None:
    """Where there is none, this shows no more than that it trains."""
    with worker_pool(1, tmp_path / "log") as pool:
        assert pool.submit(take_a_step).result() == pytest.approx(0.5)
        assert pool.submit(look, "PYTORCH_NVML_BASED_CUDA_CHECK").result()[0] == "1"


def test_workers_end_with_an_owner_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path / "log")]
    with processes.started(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
        assert len(workers) == 2
        forking = workers[0].parent()
        assert forking is not None
        assert forking.pid != owner.pid
        owner.kill()
        for process in (*workers, forking):
            wait_until(lambda p=process: not p.is_running(), f"the end of {process}", 60)  # type: ignore[misc]
