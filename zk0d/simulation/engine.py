"""Runs a simulation: evaluator and ServerApp here, the contributors on an engine."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import uvicorn

from zk0d.config.cameras import MappedAt
from zk0d.config.machine import CONFIG_VARIABLE, EvaluationDataset, ServerSettings
from zk0d.config.run import RunSettings
from zk0d.errors import TryAgainError
from zk0d.federation import server_app
from zk0d.federation.messages import Message
from zk0d.federation.update import Payload
from zk0d.flower.simulation import RayOptions, log_to, run_in_process, run_on_ray
from zk0d.learner.app import LearnerApp
from zk0d.learner.evaluator import CoordinatorEvaluator
from zk0d.learner.tasks import Learner, TaskControl
from zk0d.machine.setup import merged, write_settings
from zk0d.record.events import (
    Event,
    NodeRefused,
    RoundCommitted,
    RoundStarted,
    StatisticsMerged,
    UpdateRefused,
)
from zk0d.record.journal import JournalTail
from zk0d.record.reasons import Reason
from zk0d.services.learner import listen
from zk0d.simulation.plan import Plan
from zk0d.simulation.progress import ProgressFile
from zk0d.simulation.worker import STEP_SECONDS, VirtualApp, training_seconds

Engine = Literal["in-process", "ray"]
LOOK_SECONDS = 0.2
TELL_SECONDS = 5.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Simulation:
    """One run to simulate.

    Attributes
    ----------
    folder
        Holds ``runs`` afterwards, as a coordinator's state folder does.
    evaluation
        The coordinator's held-out recordings.
    """

    folder: Path
    plan: Plan
    settings: RunSettings
    evaluation: tuple[EvaluationDataset, ...]
    engine: Engine = "in-process"
    ray: RayOptions = field(default_factory=RayOptions)
    number: int = 1  #: names the run's folder, unless the settings resume another

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / (self.settings.resume or str(self.number))


def simulate(
    simulation: Simulation,
    show: Callable[[Event], None] = lambda event: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """Run it to its end; the run's folder.

    Parameters
    ----------
    show
        Takes each event of the run as it is written. From a refusal on that may end the run, events
        wait until it goes on or ends: a refusal that the error repeats is not shown.
    tell
        Takes from time to time how far decoding or training is.

    Raises
    ------
    Zk0dError
        What the run ends with.
    """
    failed: list[BaseException] = []
    waiting: list[Event] = []

    def work() -> None:
        try:
            _run(simulation)
        except BaseException as error:  # told to who waits
            failed.append(error)

    try:
        simulation.folder.mkdir(parents=True, exist_ok=True)
        log_to(simulation.folder / "flower.log")
    except OSError as error:
        raise TryAgainError(
            f"{simulation.folder}: cannot be written ({error.strerror}); name another folder."
        ) from None
    progress, told = ProgressFile(simulation.plan.state), float("-inf")
    progress.begin()
    tail = JournalTail(simulation.run_folder)
    if simulation.settings.resume:
        tail.new_events()  # what it did before is known
    # Who looks must be free to see Ctrl-C and to draw.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    working = True
    while working:
        thread.join(LOOK_SECONDS)
        working = thread.is_alive()  # asked before the last look, which then misses nothing
        for event in tail.new_events():
            waiting.append(event)
            goes_on = isinstance(event, StatisticsMerged | RoundStarted | RoundCommitted)
            if goes_on or not any(_cause(each) for each in waiting):
                for each in waiting:
                    show(each)
                waiting.clear()
        for text, once in progress.new():
            if once or time.monotonic() - told > TELL_SECONDS:
                told = told if once else time.monotonic()
                tell(text)
    ending = str(failed[0]) if failed else ""
    for event in waiting:
        cause = _cause(event)
        if not cause or cause not in ending:
            show(event)
    if failed:
        raise failed[0]
    return simulation.run_folder


def _cause(event: Event) -> str:
    """What the error of a run that this event ends would repeat; empty if it cannot end one."""
    match event:
        case NodeRefused() if not Reason.of(event.reason).passes:
            return event.message.rstrip(".")
        case UpdateRefused(strike=False) if not Reason.of(event.reason).passes:
            return event.message.rstrip(".")
    return ""


def _run(simulation: Simulation) -> None:
    settings = simulation.settings
    plan = simulation.plan.model_copy(update={"waits": simulation.engine == "ray"})
    with tempfile.TemporaryDirectory(prefix="zk0d-") as short:
        socket, config = Path(short) / "evaluator.sock", Path(short) / "server.toml"
        # The ServerApp needs no more of them: the evaluator is here.
        apps = {
            "state": simulation.folder.absolute(),
            "poll-interval": POLL_SECONDS if plan.waits else STEP_SECONDS,
            "evaluator": {"socket": socket},
        }
        write_settings(config, ServerSettings.parse(apps, where="simulation"))
        more = {
            "models": plan.models,
            "evaluation": [each.model_dump(by_alias=True) for each in simulation.evaluation],
            "run": {"allow-mixed-units": settings.admission.allow_mixed_units},
            "evaluator": {
                "device": plan.device,
                "precision": plan.precision,
                "cpu-threads": plan.cpu_threads,
                **plan.reading.model_dump(by_alias=True),
            },
        }
        server = ServerSettings.parse(merged(apps, more), where="simulation")
        os.environ[CONFIG_VARIABLE] = str(config)
        if not settings.resume:
            shutil.rmtree(plan.state, ignore_errors=True)
        evaluator = _Evaluator(server, ProgressFile(plan.state))
        evaluator.open()
        with _served(evaluator, socket):
            work = (
                server_app.app,
                VirtualApp(plan),
                [node.name for node in plan.nodes],
                settings.to_flat(),
                simulation.number,
            )
            if simulation.engine == "ray":
                run_on_ray(*work, simulation.ray)
            elif any(node.slow > 1.0 for node in plan.nodes):
                run_in_process(*work, training_seconds(plan))
            else:
                run_in_process(*work)


class _Evaluator(CoordinatorEvaluator):
    """The coordinator's evaluator, which tells whoever looks how far it is."""

    def __init__(self, settings: ServerSettings, progress: ProgressFile) -> None:
        super().__init__(settings, MappedAt.COMMAND)
        self._progress = progress

    def run(
        self, task: Message, payload: Payload | None, control: TaskControl
    ) -> tuple[Message, Payload | None]:
        control.report = self._progress.from_("evaluation", control.report)
        return super().run(task, payload, control)


@contextmanager
def _served(learner: Learner, path: Path) -> Iterator[None]:
    """Serve a learner's socket from a thread while the block runs."""
    server = uvicorn.Server(
        uvicorn.Config(
            LearnerApp(learner).asgi, lifespan="off", log_config=None, timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listen(path)]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)
