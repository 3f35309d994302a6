"""Federations for the benches: ours with fake learners, and Flower's stock apps on stock nodes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from tests.processes import words_of
from tests.record.lines import read_lines
from zk0d.config.run import RunSettings
from zk0d.daemon.child import Child, stop_all, wait_until
from zk0d.daemon.environment import child_environment, program_path
from zk0d.demo import federation as demo
from zk0d.demo.layout import Layout
from zk0d.errors import Zk0dError
from zk0d.flower.control import COMPLETED, FINISHED
from zk0d.services import standalone
from zk0d.services.foreground import Program

STOCK_APP = Path(__file__).parent / "stock_app"
RUN_SECONDS = 900.0
#: Looks at a run, one after the other, that a busy SuperLink may leave unanswered.
UNANSWERED = 120


class RunFailed(SystemExit):
    """A run did not complete; says how it ended."""


@contextlib.contextmanager
def fake_federation(folder: Path, nodes: int, parameters: int) -> Iterator[demo.Federation]:
    """Our processes, with learners that train nothing."""
    layout = Layout.make(folder, nodes)
    names = {layout.client_config(c): (c.letter, c.name) for c in layout.contributors}
    names[layout.server_config] = ("evaluator", "evaluator")
    fake = Path(__file__).with_name("fake_learner.py")

    def programs(role: str, config: Path) -> list[Program]:
        socket, node = names[config]
        argv = (sys.executable, str(fake), str(layout.socket(socket)), node, str(parameters))
        return [
            replace(each, argv=argv) if each.name in ("evaluator", "learner") else each
            for each in standalone.programs(role, config)
        ]

    with (
        patch.object(demo, "programs", programs),
        # Flower's own program starts the peer's runs.
        demo.federation(layout, cpu_threads=1, open_control=True) as running,
    ):
        yield running


def run_ours(
    running: demo.Federation, rounds: int, nodes: int, more: Mapping[str, Any] = {}
) -> list[dict[str, Any]]:
    """The journal of a finished run; ``more`` are settings of the run."""
    settings = {
        "model-name": "tiny",
        "policy": "act",
        "num-server-rounds": rounds,
        "min-fit-clients": nodes,
        "eval-frequency": 0,
        "local-steps": 1,
        "keep-rounds": 1,
        "server-momentum": 0.0,
        "drift-correction": "none",  # the fake learner trains nothing, so it has no variate
        # All values of the fake learner are of one size, weights and updates alike.
        "max-update-ratio": 0.0,
        **more,
    }
    run_id = running.start_run(RunSettings.parse(settings, where="this bench's run"))
    _finish(running, run_id)
    return list(read_lines(running.layout.runs / str(run_id)))


@contextlib.contextmanager
def stock_nodes(running: demo.Federation) -> Iterator[None]:
    """Replace our SuperNodes and SuperExecs by Flower's own, unchanged, with its defaults."""
    layout = running.layout
    ours = [n for n in running.services.processes if "supernode" in n or "superexec" in n]
    stock: list[Child] = []
    try:
        commands_of = {name: _flower_child(running, name) for name in ours}
        for name in ours:
            running.services.stop(name)
        for name, (argv, environment) in commands_of.items():
            if "zk0d.flower.supernode" in argv:
                argv[:3] = [program_path("flower-supernode")]
            else:
                argv[:4] = [program_path("flower-superexec")]
            environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "1.0"
            log = layout.logs / f"stock-{name}.log"
            stock.append(Child(f"stock-{name}", argv, environment, log, layout.root))
        yield
    finally:
        stop_all(stock)


def _flower_child(running: demo.Federation, name: str) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of the Flower process that a service supervises."""
    service = running.services.processes[name].child.pid
    children = psutil.Process(service).children()
    # A coordinator's SuperExec may be writing a report as well.
    (process,) = (child for child in children if "zk0d.flower" in words_of(child))
    return process.cmdline(), process.environ()


def run_stock(running: demo.Federation, rounds: int, nodes: int, parameters: int) -> list[float]:
    """Times at which Flower's rounds ended, the start of the first included."""
    log = running.layout.root / "stock.log"
    log.unlink(missing_ok=True)
    home = running.layout.root / "flwr-home"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink.lab]\naddress = "{running.control.address}"\n'
        f'root-certificates = "{running.certificates.ca}"\n'
    )
    started = subprocess.run(
        [
            program_path("flwr"),
            *("run", str(STOCK_APP), "lab"),
            "--run-config",
            f"num-server-rounds={rounds} parameters={parameters} nodes={nodes} log='{log}'",
        ],
        env=child_environment(FLWR_HOME=str(home)),
        capture_output=True,
        text=True,
    )
    if started.returncode:
        raise SystemExit(f"bench: flwr run: {started.stdout[-800:]}{started.stderr[-800:]}")
    run_id = running.control.runs()[-1].run_id
    _finish(running, run_id)
    return [float(line.split()[1]) for line in log.read_text().splitlines()]


def _finish(running: demo.Federation, run_id: int) -> None:
    unanswered = 0

    def ended() -> bool:
        nonlocal unanswered
        try:
            answer = running.state(run_id).status == FINISHED
        except Zk0dError:  # a SuperLink with large messages answers 500 now and then
            unanswered += 1
            if unanswered > UNANSWERED:
                raise
            return False
        unanswered = 0
        return answer

    wait_until(ended, "the run's end", RUN_SECONDS, running.children, interval=0.5)
    state = running.state(run_id)
    if state.outcome != COMPLETED:
        raise RunFailed(f"bench: the run {state.outcome}: {state.details}")


def database_bytes(running: demo.Federation) -> int:
    """Size of the SuperLink's database, with what it has not merged yet."""
    found = running.layout.root.rglob("superlink.db*")
    return sum(path.stat().st_size for path in found)


class PeakMemory:
    """Watches the memory of processes by a word of their command line, in MB.

    ``peaks`` are of private memory, ``resident`` of all that is resident: mapped files and shared
    libraries count, too.

    Parameters
    ----------
    processes
        Those that may count; by default this one's descendants, since others run federations, too.
    """

    def __init__(
        self,
        words: tuple[str, ...],
        processes: Callable[[], Iterable[psutil.Process]] | None = None,
    ) -> None:
        self._words = words
        own = psutil.Process()
        self._processes = processes or (lambda: own.children(recursive=True))
        self._end = threading.Event()
        self.peaks = dict.fromkeys(words, 0.0)
        self.resident = dict.fromkeys(words, 0.0)
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            for process in self._processes():
                with contextlib.suppress(psutil.Error):
                    command = " ".join(process.cmdline()[:4])
                    for word in self._words:
                        if word in command:
                            seen = process.memory_full_info()
                            self.peaks[word] = max(self.peaks[word], seen.uss / 1e6)
                            self.resident[word] = max(self.resident[word], seen.rss / 1e6)
