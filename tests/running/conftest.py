"""One federation of real processes for every test that only looks at one.

Its first run is watched: by a Prometheus, if there is one, and by a look at each command line.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.learner.test_metrics import FakeNvml
from tests.monitoring.server import Prometheus, prometheus
from tests.monitoring.tools import program
from tests.processes import wait_until
from tests.running.lab import LOOK_SECONDS, finished, layout, zk0bot_run
from zk0d.config.ports import METRICS_PORTS
from zk0d.config.run import RunSettings
from zk0d.daemon.gpu import GpuCollector
from zk0d.daemon.metrics import Metrics
from zk0d.demo.federation import Federation, federation
from zk0d.flower.control import COMPLETED, FINISHED

SERVER, CLIENT = ("superlink", "server-superexec"), ("supernode", "client-superexec")
FAKE_GPU_PORT = 9479
ROUNDS = 3
#: The demo's SuperExecs look for work every 0.1 s, from which a test gains nothing.
SLOW_POLL = {"poll-interval": 0.5}
#: ``[run]`` in server.toml.
OWN_RUN = {"max-strikes": 7, "keep-rounds": 4}
#: The first run's own settings; one is the default, which is not what server.toml says.
FIRST_RUN: dict[str, Any] = {
    "eval-rollouts": 1,
    "num-server-rounds": ROUNDS,
    "keep-rounds": RunSettings().release.keep_rounds,
}


@pytest.fixture(scope="package")
def hosts() -> list[str]:
    """The machines' addresses: metrics have fixed ports, so each is another one of loopback."""
    net = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
    return [f"{net}.{i}" for i in (1, 2, 3)]


@pytest.fixture(scope="package")
def running(
    recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory, hosts: list[str]
) -> Iterator[Federation]:
    made = layout(tmp_path_factory.mktemp("running") / "lab", recordings_folder)
    server = {"run": OWN_RUN, "superexec": SLOW_POLL}
    client = {
        "superexec": SLOW_POLL,
        "limits": {"bytes-per-day": "10 GB"},
        "learner": {"holdout-episodes": 1},
    }
    with federation(
        made, cpu_threads=1, metrics_hosts=hosts, server=server, client=client
    ) as started:
        yield started


@dataclass
class Ran:
    """A run that is over."""

    state: Any
    folder: Path
    commands: set[str]  #: every command line below the services meanwhile


@pytest.fixture(scope="package")
def first_run(running: Federation) -> Ran:
    run_id = zk0bot_run(running, **FIRST_RUN)
    commands: set[str] = set()

    def over() -> bool:
        for child in running.children:
            for process in psutil.Process(child.pid).children(recursive=True):
                try:
                    commands.add(" ".join(process.cmdline()))
                except psutil.Error:
                    continue
        return bool(running.state(run_id).status == FINISHED)

    wait_until(over, "the run's end", 180, running.children, interval=LOOK_SECONDS)
    state = finished(running, run_id)
    assert state.outcome == COMPLETED, state.details
    return Ran(state, running.layout.runs / str(run_id), commands)


@dataclass
class Watched:
    """The federation after its first run, and the Prometheus that saw it."""

    server: Prometheus
    endpoints: dict[str, str]  #: by the service's name
    folders: tuple[Path, Path]  #: with settings: the coordinator's, a contributor's


class FakeGpu(FakeNvml):
    """One whose memory is in order."""

    remapped_rows = (5, 2, 0, 0)


@pytest.fixture(scope="package")
def watched(
    request: pytest.FixtureRequest, running: Federation, hosts: list[str]
) -> Iterator[Watched]:
    program("prometheus")  # or skip
    endpoints = {name: f"{hosts[0]}:{METRICS_PORTS[name]}" for name in SERVER}
    jobs: dict[str, Any] = {"zk0d-server": [(address, {}) for address in endpoints.values()]}
    jobs["zk0d-client"] = []
    for host, letter in zip(hosts[1:], "ab", strict=True):
        for name in CLIENT:
            endpoints[f"{letter}-{name}"] = address = f"{host}:{METRICS_PORTS[name]}"
            jobs["zk0d-client"].append((address, {"node": f"contributor-{letter}"}))
    # There is no GPU here: one that is made up, read by our own collector.
    gpu = Metrics("fake-gpu", hosts[1], FAKE_GPU_PORT)
    gpu.collect(GpuCollector(FakeGpu))
    gpu.serve()
    jobs["zk0d-client-fake-gpu"] = [(f"{hosts[1]}:{FAKE_GPU_PORT}", {"node": "contributor-a"})]
    made = running.layout
    folder = made.root.parent / "prometheus"
    folder.mkdir()
    try:
        with prometheus(folder, jobs) as server:
            wait_until(
                lambda: len(server.query("up == 1")) == len(endpoints) + 1, "the targets", 60
            )
            request.getfixturevalue("first_run")
            wait_until(lambda: bool(server.query(f"zk0d_round == {ROUNDS}")), "the last round", 150)
            wait_until(
                lambda: bool(server.query("zk0d:train_step_seconds:mean5m")), "the rules", 60
            )
            yield Watched(server, endpoints, (made.coordinator, made.home(made.contributors[0])))
    finally:
        gpu.close()
