"""A learner's process that is killed in a round: the same message still gets its update."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors import SafetensorError, safe_open

from tests import processes
from tests.processes import wait_until
from tests.recordings.shapes import write
from zk0d.config.machine import SOCKET_KEY, ClientSettings
from zk0d.config.run import EvaluationSettings, TrainingSettings
from zk0d.federation import client_app
from zk0d.federation.envelope import from_record, kind_of, to_record
from zk0d.federation.learner_client import LearnerClient
from zk0d.federation.messages import Query, Refusal, Train, TrainReply
from zk0d.federation.update import Payload
from zk0d.learner.parked import NAME
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.recordings import open_recordings
from zk0d.learning.schedule import CosineSchedule

pytestmark = pytest.mark.slow

STEPS = 250

#: ``zk0d learner``, but for how often it keeps a step.
LEARNER = """
import sys
from zk0d.daemon.logs import log_to_stderr

log_to_stderr()

from zk0d.config.machine import ClientSettings
from zk0d.learner.contributor import Contributor
from zk0d.learner.parked import ParkedState
from zk0d.services.learner import LearnerService

settings = ClientSettings.load(sys.argv[1])

def make():
    made = Contributor(settings, ParkedState(settings.learner.state, every=0.1, share=1.0))
    made.open()
    return made, settings.learner.socket

LearnerService("learner", make).run()
"""


class Machine:
    """A node's, on which learners begin and are killed."""

    def __init__(self, folder: Path, recordings: Path) -> None:
        folder.mkdir()
        self.socket, self.state, self.log = (
            folder / name for name in ("l.sock", "state", "learner.log")
        )
        self.settings = folder / "client.toml"
        self.settings.write_text(
            f'name = "left"\ndataset-uri = "local:{recordings}"\n[learner]\ndevice = "cpu"\n'
            f'cpu-threads = 1\nsocket = "{self.socket}"\nstate = "{self.state}"\n'
        )
        ClientSettings.load(self.settings)

    @contextmanager
    def learner(self) -> Iterator[subprocess.Popen[bytes]]:
        """One that is ready."""
        argv = [sys.executable, "-c", LEARNER, self.settings]
        with (
            self.log.open("ab") as log,
            processes.started(argv, stdout=log, stderr=log) as process,
        ):
            wait_until(self.is_there, "the learner's start", 60)
            yield process

    def is_there(self) -> bool:
        with LearnerClient(self.socket) as client:
            return client.answers()

    def has_kept_a_step(self) -> bool:
        try:
            with safe_open(self.state / NAME, "pt") as file:
                label = json.loads(file.metadata()["label"])
                return bool(label["step"] and json.loads(label["step"]["counts"])["step"] > 9)
        except (OSError, SafetensorError):
            return False

    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings") / "arm"
    write(folder, lengths=(12, 9))
    return folder


@pytest.fixture(scope="module")
def asked(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Train, Payload]:
    """A round, and its weights."""
    spec = spec_for("smolvla", "tiny", 0, open_recordings(f"local:{recordings}").summary, {})
    weights = Payload.of(load_policy(spec, device="cpu").weights(), "weights")
    machine = Machine(tmp_path_factory.mktemp("query") / "machine", recordings)
    with machine.learner(), LearnerClient(machine.socket) as client:
        statistics = client.query(Query(run="1", spec=spec)).statistics
    assert statistics is not None
    task = Train(
        run="1",
        round=1,
        spec=spec,
        base=weights.manifest.sha256,
        statistics=statistics,
        statistics_sha256=statistics.sha256,
        training=TrainingSettings(local_steps=STEPS, batch_size=8),
        first_step=0,
        schedule=CosineSchedule(peak=2e-3, end=1e-4, warmup_steps=4, total_steps=800),
        seed=3,
        proximal_mu=0.0,
        evaluation=EvaluationSettings(),
        deadline_seconds=600.0,
    )
    return task, weights


def answer(machine: Machine, task: Train, weights: Payload) -> RecordDict:
    """What the ClientApp sends."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    message = Message(to_record(task, weights), dst_node_id=1, message_type="train")
    config = {SOCKET_KEY: str(machine.socket)}
    context = Context(
        run_id=1, node_id=1, node_config=dict(config), state=RecordDict(), run_config={}
    )
    return client_app.app(message, context).content


def test_a_learner_that_is_killed_resumes_inside_the_round(
    tmp_path: Path, recordings: Path, asked: tuple[Train, Payload]
) -> None:
    alone = Machine(tmp_path / "alone", recordings)
    with alone.learner():
        whole, update = from_record(answer(alone, *asked), TrainReply)
    assert update is not None

    machine = Machine(tmp_path / "killed", recordings)
    answers: list[RecordDict] = []
    waiting = threading.Thread(target=lambda: answers.append(answer(machine, *asked)), daemon=True)
    with machine.learner() as process:
        waiting.start()
        wait_until(machine.has_kept_a_step, "a step that is kept", 60, interval=0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    assert not answers, "it was killed in the middle"
    with machine.learner():
        waiting.join(240)
    at = re.search(r"round 1 resumes at step (\d+)$", machine.said(), re.MULTILINE)
    assert at is not None, machine.said()
    assert 9 < int(at[1]) < STEPS
    assert answers, machine.said()
    reply, same = from_record(answers[0], TrainReply)
    assert same is not None
    assert same.manifest == update.manifest
    assert [each.manifest for each in same.beside] == [each.manifest for each in update.beside]
    times = {"seconds"}
    assert reply.figures.model_dump(exclude=times) == whole.figures.model_dump(exclude=times)
    assert reply.figures.steps == STEPS


def test_a_learner_that_dies_of_the_round_is_a_refusal(
    tmp_path: Path, recordings: Path, asked: tuple[Train, Payload]
) -> None:
    """It is killed before its first step, twice."""
    machine = Machine(tmp_path / "killed", recordings)
    answers: list[RecordDict] = []
    waiting = threading.Thread(target=lambda: answers.append(answer(machine, *asked)), daemon=True)
    begun = False

    def at_work() -> bool:
        with LearnerClient(machine.socket) as client:
            return client.status()["state"] == "working"

    for _ in range(2):
        with machine.learner() as process:
            if not begun:
                waiting.start()
                begun = True
            wait_until(at_work, "the round", 60, interval=0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(30)
    waiting.join(60)
    assert answers
    assert kind_of(answers[0]) == Refusal.__name__
    with pytest.raises(Exception, match=r"the learner at .* is gone") as error:
        from_record(answers[0], TrainReply)
    assert error.value.reason == "learner_gone"  # type: ignore[attr-defined]
