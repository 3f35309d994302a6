"""The real apps, learners and policies, without a SuperLink: messages go from hand to hand."""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from lerobot.configs import NormalizationMode

from tests.federation.fakes import _copied, raw_payload
from tests.learner.tasks import train_task
from tests.learning.damage import change_rows, data_table
from tests.record.lines import read_lines
from tests.serving import served
from zk0d.config.machine import (
    CONFIG_VARIABLE,
    COORDINATOR_VARIABLE,
    LINE_FOLDER_VARIABLE,
    SOCKET_KEY,
    ClientSettings,
    ServerSettings,
)
from zk0d.config.run import EvaluationSettings, run_settings
from zk0d.daemon.own_rounds import RoundBook
from zk0d.errors import ConfigError, Zk0dError
from zk0d.federation import client_app, model, server_app, tries
from zk0d.federation.aggregate import Combined, aggregate
from zk0d.federation.learner_client import LearnerClient, LearnerError
from zk0d.federation.measuring import Measuring
from zk0d.federation.messages import Evaluate, Measure, Query, Start, Train, WithWeights
from zk0d.federation.rounds import RunFailedError
from zk0d.federation.transport import BesideMessages
from zk0d.federation.update import Payload
from zk0d.learner import contributor, pace
from zk0d.learner.contributor import Contributor, round_seed
from zk0d.learner.evaluator import CoordinatorEvaluator
from zk0d.learning.pace import TimedPace
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.recordings import open_recordings
from zk0d.learning.schedule import ConstantSchedule
from zk0d.learning.spec import Components
from zk0d.learning.statistics import Statistics, merge_groups
from zk0d.learning.step import Correction
from zk0d.record.journal import Journal, committed_rounds
from zk0d.release.manifest import ReleaseFile
from zk0d.release.offer import describe
from zk0d.services.presence import Presence, PresencePage
from zk0d.services.transfers import Transfers

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "policy": "smolvla",
    "model-name": "tiny",
    "num-server-rounds": 2,
    "local-steps": 12,
    "batch-size": 16,
    "initial-lr": 2e-3,
    "warmup-steps": 4,
    "node-wait": 30.0,
    "eval-frames": 40,
    "eval-rollouts": 2,
}


class DirectGrid(Grid):
    """Runs the ClientApp at once, in this process, for every message."""

    def __init__(self, sockets: dict[str, Path]) -> None:
        self._sockets = dict(enumerate(sockets.items(), 1))
        self._answers: dict[str, Message] = {}
        self._ids = itertools.count(1)
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self._sockets)

    def get_nodes(self) -> list[Any]:
        return [
            SimpleNamespace(node_id=number, status="online", name=name)
            for number, (name, _) in self._sockets.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            name = f"m{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = name
            number = message.metadata.dst_node_id
            context = Context(
                run_id=1,
                node_id=number,
                node_config={SOCKET_KEY: str(self._sockets[number][1])},
                state=RecordDict(),
                run_config={},
            )
            message.content = _copied(message.content)
            TaskIdentity.node_id = number
            self._answers[name] = client_app.app(message, context)
            TaskIdentity.node_id = 1
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._answers.pop(i) for i in list(message_ids) if i in self._answers]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: Any = None
    ) -> list[Message]:
        raise NotImplementedError


class Lab:
    """A coordinator and contributors in this process."""

    def __init__(
        self,
        folder: Path,
        recordings: Path,
        stack: ExitStack,
        models: Mapping[str, str] = {},
        *,
        evaluates: bool = True,
    ) -> None:
        self.folder = folder
        self.recordings = recordings
        self._stack = stack
        self._models = dict(models)
        self.sockets: dict[str, Path] = {}
        self.contributors: dict[str, Contributor] = {}
        self.server = ServerSettings.parse(
            {
                "state": str(folder),
                "models": dict(models),
                "evaluation": [
                    {
                        "name": "held-out",
                        "dataset-uri": f"local:{recordings}",
                        "simulator": "soreach",
                        "sector": [0, 2],
                    }
                ][: int(evaluates)],
                "evaluator": {"socket": str(folder / "evaluator.sock"), "device": "cpu"},
                "poll-interval": 0.05,
            },
            where="test",
        )
        evaluator = CoordinatorEvaluator(self.server)
        evaluator.open()
        stack.enter_context(served(evaluator, self.server.evaluator.socket))
        # Without a gateway the application carries the bytes itself.
        page = stack.enter_context(closing(PresencePage(Presence(), 0, Transfers(self.server))))
        self.pages = f"http://127.0.0.1:{page.port}/zk0d/v1"

    def contribute(self, name: str, **settings: Any) -> ClientSettings:
        client = ClientSettings.parse(
            {
                "name": name,
                "dataset-uri": f"local:{self.recordings}",
                "learner": {"socket": str(self.folder / f"{name}.sock"), "device": "cpu"},
                "models": self._models,
                **settings,
            },
            where="test",
        )
        learner = self.contributors[name] = Contributor(client)
        learner.open()
        self.sockets[name] = self._stack.enter_context(served(learner, client.learner.socket))
        return client

    def run(
        self,
        monkeypatch: pytest.MonkeyPatch,
        settings: Mapping[str, Any] = {},
        *,
        fails: type[Exception] | None = None,
        message_kib: int = 0,
    ) -> list[dict[str, Any]]:
        config = self.folder / "server.toml"
        config.write_text(
            f'state = "{self.folder}"\npoll-interval = 0.05\n'
            f'[evaluator]\nsocket = "{self.server.evaluator.socket}"\n'
            # However small a policy is, nothing of it travels inside the messages.
            f"[transfer]\nmessage-kib = {message_kib}\n"
        )
        monkeypatch.setenv(CONFIG_VARIABLE, str(config))
        monkeypatch.setenv(COORDINATOR_VARIABLE, self.pages)
        # Nobody else can come, but it is no simulation.
        monkeypatch.setattr(server_app, "InMessages", lambda: self.by_files(config))
        flat = run_settings({**SETTINGS, **settings}).to_flat()
        alone = {server_app.CLOSED: True}  # nobody else can come
        context = Context(
            run_id=1, node_id=1, node_config=alone, state=RecordDict(), run_config=flat
        )
        try:
            with pytest.raises(fails) if fails else nullcontext():
                server_app.app(DirectGrid(self.sockets), context)
        finally:
            self.lines = list(read_lines(self.folder / "runs" / "1"))
        return self.lines

    def by_files(self, config: Path) -> BesideMessages:
        """The way of weights and updates where there is a coordinator."""
        return BesideMessages(
            ServerSettings.load(config).transfers, self.folder / "runs" / "1", "1"
        )

    def client(self, name: str) -> LearnerClient:
        return LearnerClient(self.sockets[name])


@pytest.fixture
def lab(tmp_path: Path, recordings_folder: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(tmp_path, recordings_folder, stack)


def test_a_federation_learns(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.contribute("left")
    lab.contribute("right")
    lines = lab.run(monkeypatch)
    committed = [line for line in lines if line["kind"] == "round.committed"]
    losses = [line["evaluation"]["loss"] for line in committed]
    assert losses[2] < losses[1] < losses[0]
    assert committed[2]["evaluation"]["datasets"][0]["rollouts"] == 2
    assert committed[2]["evaluation"]["datasets"][0]["frames"] == 40
    assert [node["node"] for node in committed[1]["nodes"]] == ["left", "right"]
    assert {node["samples"] for node in committed[1]["nodes"]} == {12 * 16}
    assert set(committed[1]["nodes"][0]["seconds"]) == {
        "load",
        "evaluate",
        "train",
        "encode",
        "transfer",
    }
    assert committed_rounds(lab.folder / "runs" / "1") == [0, 1, 2]
    left = [path for path in (lab.folder / "transfer").rglob("*") if path.is_file()]
    assert not left, "no byte of a round outlives it"
    assert not list((lab.folder / "runs").rglob("transfer.json"))


def test_a_run_repeats_bit_by_bit(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lab.contribute("left")
    lab.contribute("right")
    weights = []
    # Whichever way they travel.
    for message_kib in (0, 2**20):
        lab.run(monkeypatch, message_kib=message_kib)
        rounds = lab.folder / "runs" / "1" / "rounds"
        weights.append((rounds / "00002" / "global.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_learner_that_vanishes_gets_the_round_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose weights have gone with it: they come from the coordinator once more."""
    monkeypatch.setattr(tries, "LOOK_AGAIN", (0.01, 0.01))
    lab.contribute("left")
    lab.contribute("right")
    real = LearnerClient._events
    deaths: list[int] = []

    def dies(
        self: LearnerClient, kind: str, task: Any, payload: Payload | None, progress: Any
    ) -> Any:
        if kind == "train" and not deaths:
            assert payload is not None
            deaths.append(sum(len(piece) for piece in payload.stream()))
            raise httpx.ReadError("it was killed")
        return real(self, kind, task, payload, progress)

    monkeypatch.setattr(LearnerClient, "_events", dies)
    lines = lab.run(monkeypatch, {"num-server-rounds": 1})
    assert deaths > [0]
    assert not [line for line in lines if line["kind"] == "update.refused"]
    (committed,) = [line for line in lines if line["kind"] == "round.committed"][1:]
    assert [node["node"] for node in committed["nodes"]] == ["left", "right"]


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])
def test_every_codec_learns(lab: Lab, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    lab.contribute("left")
    lab.contribute("right")
    lines = lab.run(
        monkeypatch, {"uplink-codec": codec, "variate-codec": codec, "eval-rollouts": 0}
    )
    committed = [line for line in lines if line["kind"] == "round.committed"]
    losses = [line["evaluation"]["loss"] for line in committed]
    assert losses[2] < losses[1] < losses[0]
    parameters = committed[1]["bytes_down"] / 2 / 2  # two nodes, two bytes a value
    share = committed[1]["bytes_up"] / 2 / 2 / (4 * parameters)  # an update and a variate
    limit = {"fp32": 1.0, "bf16": 0.5, "int8": 0.26, "int4": 0.14}[codec]
    assert 0.9 * limit < share <= limit
    assert [[node["variate"] for node in line["nodes"]] for line in committed[1:]] == [
        ["new", "new"],
        ["kept", "kept"],
    ]


def test_an_interrupted_run_ends_bit_by_bit_as_one_that_was_not(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learners live on and keep moments and residuals for the round that is repeated."""
    lab.contribute("left")
    lab.contribute("right")
    settings: dict[str, Any] = {
        "num-server-rounds": 3,
        "local-steps": 6,
        "eval-rollouts": 0,
        "keep-rounds": 9,
        "downlink-codec": "int8-delta",
    }
    runs = lab.folder / "runs"

    def weights() -> list[bytes]:
        """And momentum, variates, and what the nodes hold."""
        return [path.read_bytes() for path in sorted(runs.glob("1/rounds/*/*[ts]"))]

    lab.run(monkeypatch, settings)
    whole = weights()
    shutil.rmtree(runs)

    class Killed(BaseException):
        pass

    real = aggregate

    def deadly(*args: Any) -> Combined:
        deadly.calls += 1  # type: ignore[attr-defined]
        if deadly.calls == 2:  # type: ignore[attr-defined]
            raise Killed  # round 2: both nodes have trained
        return real(*args)

    deadly.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "aggregate", deadly)
    # As it would be in another run: the learners have seen this one.
    lab.run(monkeypatch, {**settings, "num-server-rounds": 1, "local-steps": 1, "seed": 7})
    shutil.rmtree(runs)
    deadly.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(Killed):
        lab.run(monkeypatch, settings)
    assert committed_rounds(runs / "1") == [0, 1]
    lab.run(monkeypatch, {"resume": "1"})
    assert [line["round"] for line in lab.lines if line["kind"] == "run.resumed"] == [1]
    assert weights() == whole
    assert how_weights_came(lab.lines) == [{"whole"}, {"held"}, {"difference"}]


def how_weights_came(lines: list[dict[str, Any]]) -> list[set[str]]:
    """By round, from all nodes."""
    committed = [line for line in lines if line["kind"] == "round.committed"]
    return [{node["weights"] for node in line["nodes"]} for line in committed[1:]]


def test_a_learner_that_lost_its_weights_gets_all_of_them_in_the_same_round(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it is known before the transfer or after it."""
    lab.contribute("left")
    lab.contribute("right")
    settings = {
        "num-server-rounds": 4,
        "local-steps": 1,
        "eval-frequency": 0,
        "drift-correction": "none",
        "downlink-codec": "int8-delta",
    }
    real_write, real_held = Journal.write, LearnerClient.held
    asked: list[str] = []

    def restarts(name: str) -> None:
        """Forget what a new process does not have."""
        lab.contributors[name]._prepared = None

    def write(journal: Journal, event: Any) -> Any:
        if event.kind == "round.committed" and event.round == 2:
            restarts("right")
        return real_write(journal, event)

    def held(client: LearnerClient) -> str:
        found = real_held(client)
        asked.append(found)
        if len(asked) == 7:  # left's, of round 4
            restarts("left")
        return found

    monkeypatch.setattr(Journal, "write", write)
    monkeypatch.setattr(LearnerClient, "held", held)
    lines = lab.run(monkeypatch, settings)
    assert not [line for line in lines if line["kind"] in ("update.refused", "round.failed")]
    committed = [line for line in lines if line["kind"] == "round.committed"][1:]
    came = [{n["node"]: n["weights"] for n in line["nodes"]} for line in committed]
    assert came == [
        {"left": "whole", "right": "whole"},
        {"left": "difference", "right": "difference"},
        {"left": "difference", "right": "whole"},
        {"left": "whole", "right": "difference"},
    ]
    whole, difference = (line["bytes_down"] / 2 for line in committed[:2])
    assert 0.5 * whole < difference < 0.51 * whole
    assert committed[2]["bytes_down"] == whole + difference
    said = [record.getMessage() for record in caplog.records]
    assert sum("The whole weights are fetched." in text for text in said) == 1


def test_nodes_evaluate_on_their_own_held_out_episodes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"socket": str(lab.folder / "left.sock"), "device": "cpu", "holdout-episodes": 1}
    lab.contribute("left", learner=held)
    lab.contribute("right")
    lines = lab.run(monkeypatch, {"eval-rollouts": 0})
    joined = {line["node"]: line["frames"] for line in lines if line["kind"] == "node.joined"}
    assert joined["left"] < joined["right"], "held-out frames are not trained on"
    first, second = [line for line in lines if line["kind"] == "round.committed"][1:]
    figures = {node["node"]: node for node in first["nodes"]}
    assert figures["left"]["holdout_frames"] == joined["right"] - joined["left"]
    assert figures["right"]["holdout_loss"] is None
    assert first["holdout_loss"] == figures["left"]["holdout_loss"], "the only one that has any"
    assert second["holdout_loss"] < first["holdout_loss"], "of the weights the round began with"
    measured = [line for line in lines if line["kind"] == "node.measured"]
    assert [(line["round"], line["node"]) for line in measured] == [(2, "left")]
    assert measured[0]["loss"] < second["holdout_loss"], "the last round's weights, too"
    assert measured[0]["mark"] == figures["left"]["holdout_mark"], "of the same frames and noise"
    shutil.rmtree(lab.folder / "runs")
    not_wanted = {"eval-rollouts": 0, "num-server-rounds": 1, "evaluate-on-nodes": False}
    lines = lab.run(monkeypatch, not_wanted)
    assert not [line for line in lines if line["kind"] == "node.measured"]
    assert [line for line in lines if line["kind"] == "round.committed"][1]["holdout_loss"] is None


@pytest.fixture
def without_data(tmp_path: Path, recordings_folder: Path) -> Iterator[Lab]:
    """A coordinator without recordings; its runs begin with a pretrained model."""
    summary = open_recordings(f"local:{recordings_folder}").summary
    made = load_policy(spec_for("smolvla", "tiny", 0, summary, {}), device="cpu").policy
    made.save_pretrained(tmp_path / "model")
    with ExitStack() as stack:
        models = {"mine": str(tmp_path / "model")}
        lab = Lab(tmp_path, recordings_folder, stack, models, evaluates=False)
        for name in ("left", "right"):
            socket = str(lab.folder / f"{name}.sock")
            held = {"socket": socket, "device": "cpu", "holdout-episodes": 2}
            lab.contribute(name, learner=held)
        yield lab


WITHOUT_DATA = {"model-name": "mine", "num-server-rounds": 1}


def test_a_coordinator_without_recordings_knows_that_its_policy_got_better(
    without_data: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its ServerApp dies while nodes evaluate."""
    real = Measuring.take
    came: list[str] = []

    class Killed(BaseException):
        pass

    def deadly(self: Measuring, key: str, answer: Message | None) -> None:
        if came:
            raise Killed
        came.append(key)
        real(self, key, answer)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Measuring, "take", deadly)
        without_data.run(monkeypatch, WITHOUT_DATA)
    lines = without_data.run(monkeypatch, {"resume": "1"})
    assert lines[-1]["kind"] == "run.finished"
    measured = [line for line in lines if line["kind"] == "node.measured"]
    assert sorted(line["node"] for line in measured) == ["left", "right"], "each has one line"
    assert len(measured[0]["losses"]) == 2
    assert all(line["evaluation"] is None for line in lines if line["kind"] == "round.committed")
    (written,) = [line for line in lines if line["kind"] == "checkpoint.written"]
    assert written["passed"], written["reasons"]
    assert "on 2 nodes, 4 held-out episodes" in written["reasons"][0]
    folder = without_data.folder / "releases" / "1" / "checkpoint_round_1"
    release = describe(folder, [ReleaseFile(path="config.json", size=1, sha256="0" * 64)])
    assert release.judged_by == "nodes"
    assert release.robot_types == ("so101_follower",), "the nodes say"
    assert release.on_nodes is not None
    assert set(release.on_nodes.nodes) == {"left", "right"}
    assert release.on_nodes.change < 0
    card = (folder / "README.md").read_text()
    assert "## On the Contributors' Own Episodes" in card
    assert "| left | 2 |" in card
    assert "The coordinator has no recordings of its own." in card


def test_a_coordinator_without_recordings_knows_that_its_policy_got_worse(
    without_data: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of its nodes is away when the run ends."""
    real = DirectGrid.get_nodes

    def nodes(grid: DirectGrid) -> list[Any]:
        found = real(grid)
        if (without_data.folder / "runs" / "1" / "rounds" / "00001").exists():
            found[1].status = "offline"
        return found

    monkeypatch.setattr(DirectGrid, "get_nodes", nodes)
    much = {"initial-lr": 0.3, "warmup-steps": 0, "max-update-ratio": 0.0, "local-steps": 3}
    lines = without_data.run(monkeypatch, {**WITHOUT_DATA, **much})
    assert lines[-1]["kind"] == "run.finished"
    (away,) = [line for line in lines if line["kind"] == "node.not_measured"]
    assert (away["node"], away["reason"]) == ("right", "offline")
    (written,) = [line for line in lines if line["kind"] == "checkpoint.written"]
    assert not written["passed"]
    assert "it is no better than the baseline (round 0)" in written["reasons"][0]
    assert "on one node alone, left" in written["reasons"][0]


def test_a_coordinator_without_recordings_says_what_it_cannot_begin(
    without_data: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Zk0dError, match="takes its shape from the coordinator's evaluation"):
        without_data.run(monkeypatch, {"model-name": "tiny"})


def test_an_owner_who_holds_out_nothing_tells_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node is not asked, and would refuse."""
    lab.contribute("left")
    spec, weights, statistics = started(lab)
    task = measure_task(train_task(spec, weights, statistics))
    with lab.client("left") as client, pytest.raises(LearnerError, match="holds out no") as error:
        client.measure(task, weights)
    assert error.value.reason == "nothing_held_out"
    lab.contribute("right")
    asked = []
    monkeypatch.setattr(LearnerClient, "measure", lambda *args: asked.append(args))
    run = {"num-server-rounds": 1, "local-steps": 1, "eval-rollouts": 0}
    lines = lab.run(monkeypatch, run)
    assert {line["held_out"] for line in lines if line["kind"] == "node.joined"} == {0}
    (_, committed) = [line for line in lines if line["kind"] == "round.committed"]
    assert [node["holdout_loss"] for node in committed["nodes"]] == [None, None]
    assert not asked


def test_weights_that_are_evaluated_leave_a_run_as_it_was(lab: Lab) -> None:
    """The next round's update is the same, and what the node finds can be compared with it."""
    held = {"socket": str(lab.folder / "left.sock"), "device": "cpu", "holdout-episodes": 1}
    lab.contribute("left", learner=held)
    spec, weights, statistics = started(lab)
    other = Payload.of({n: 1.1 * a for n, a in weights.arrays().items()}, "weights")
    task = functools.partial(train_task, spec, weights, statistics)
    with lab.client("left") as client:
        first, _ = client.train(task(), weights)
        found = client.measure(measure_task(task()), weights)
        client.measure(measure_task(train_task(spec, other, statistics)), other)
        _, after = client.train(task(round=2, first_step=2), weights)
        lab.contributors["left"]._prepared = None  # as in a new process
        again = client.measure(measure_task(task()), weights)
        with pytest.raises(LearnerError, match="not those that the task names"):
            client.measure(measure_task(task()), other)
    assert found.held_out == first.figures.held_out
    assert found.held_out.frames
    assert len(found.held_out.losses) == 1
    assert again.held_out.mark != found.held_out.mark
    assert again.held_out.loss == pytest.approx(found.held_out.loss)
    with ExitStack() as stack:
        fresh = Lab(lab.folder / "fresh", lab.recordings, stack)
        held = {"socket": str(fresh.folder / "left.sock"), "device": "cpu", "holdout-episodes": 1}
        fresh.contribute("left", learner=held)
        started(fresh)
        with fresh.client("left") as client:
            client.train(task(), weights)
            _, undisturbed = client.train(task(round=2, first_step=2), weights)
    assert after.manifest == undisturbed.manifest


def measure_task(task: Train) -> Measure:
    """The same weights, to be evaluated alone."""
    shared = {name: getattr(task, name) for name in WithWeights.model_fields}
    return Measure.model_validate({**shared, "of": task.round - 1})


def test_an_evaluation_that_fails_costs_no_round(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise Zk0dError("the evaluation loss is not a number.", reason="evaluation_failed")

    held = {"socket": str(lab.folder / "left.sock"), "device": "cpu", "holdout-episodes": 1}
    lab.contribute("left", learner=held)
    spec, weights, statistics = started(lab)
    monkeypatch.setattr(contributor, "evaluated", fails)
    with lab.client("left") as client:
        reply, _ = client.train(train_task(spec, weights, statistics), weights)
    assert reply.figures.holdout_loss is None
    assert reply.figures.steps == 2


def test_a_nodes_owner_has_its_rounds_as_the_journal_has_them(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"socket": str(lab.folder / "left.sock"), "device": "cpu", "holdout-episodes": 1}
    lab.contribute("left", learner=held)
    monkeypatch.setenv(LINE_FOLDER_VARIABLE, str(lab.folder / "apps"))
    wanted = {"evaluate-on-nodes": True, "eval-rollouts": 0, "min-fit-clients": 1}
    lines = lab.run(monkeypatch, wanted)
    committed = [line for line in lines if line["kind"] == "round.committed"][1:]
    nodes = [line["nodes"][0] for line in committed]
    rounds = RoundBook(lab.folder / "apps").read().of_newest_run
    assert [each.round for each in rounds] == [1, 2]
    for each, node in zip(rounds, nodes, strict=True):
        assert (each.run, each.steps) == ("1", node["steps"])
        assert (each.train_loss, each.holdout_loss) == (node["policy_loss"], node["holdout_loss"])
        assert each.seconds == node["seconds"]["evaluate"] + node["seconds"]["train"]
        assert each.joules is None, "there is no GPU"


def test_more_episodes_are_held_out_than_there_are(lab: Lab, tmp_path: Path) -> None:
    held = {"socket": str(lab.folder / "left.sock"), "device": "cpu", "holdout-episodes": 999}
    lab.contribute("left", learner=held)
    with pytest.raises(LearnerError, match=r"learner\.holdout-episodes is 999") as error:
        started(lab)
    assert error.value.reason == "data_error"


def test_a_node_learns_why_its_update_was_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lab.contribute("left")
    lab.contribute("right")
    lines = lab.run(
        monkeypatch,
        {
            "max-update-ratio": 1e-9,
            "max-strikes": 1,
            "num-server-rounds": 1,
            "node-wait": 2.0,
            "local-steps": 1,
        },
        fails=RunFailedError,
    )
    assert {line["reason"] for line in lines if line["kind"] == "update.refused"} == {"norm_cap"}
    said = [record.message for record in caplog.records if "refused this node's" in record.message]
    assert len(said) == 2
    assert "update of round 1 (norm_cap, strike 1)" in said[0]
    assert "sits out until round 11" in said[0]


def test_act_trains_too(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.contribute("left")
    lines = lab.run(
        monkeypatch,
        {
            "policy": "act",
            "num-server-rounds": 1,
            "local-steps": 2,
            "batch-size": 2,
            "min-fit-clients": 1,
            "eval-frames": 4,
            "eval-rollouts": 1,
        },
    )
    assert lines[-1]["kind"] == "run.finished"
    committed = [line for line in lines if line["kind"] == "round.committed"]
    assert committed[-1]["bytes_up"] > 4 * 2**20, "a payload of several chunks"


def test_a_camera_that_the_policy_does_not_know(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.contribute("good", cameras={"top": "top"})
    lab.contribute("bad", cameras={"top": "wrist"})
    lines = lab.run(monkeypatch, {"min-fit-clients": 1, "num-server-rounds": 1})
    refused = next(line for line in lines if line["kind"] == "node.refused")
    assert refused["node"] == "bad"
    assert refused["reason"] == "data_error"
    assert "does not know camera 'wrist' (it knows top)" in refused["message"]
    assert any(line["kind"] == "node.left_out" for line in lines)


def test_a_node_with_another_robot_is_told_so(
    lab: Lab,
    copied_recordings: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its log says what the journal says; who keeps its robot to itself joins."""

    def into_radians(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            for name in ("observation.state", "action"):
                row[name] = [value * 0.0174533 for value in row[name]]

    change_rows(data_table(copied_recordings), into_radians)
    lab.contribute("good")
    lab.contribute("radians", **{"dataset-uri": f"local:{copied_recordings}"})
    lab.contribute("shy", **{"share-robot": False})
    caplog.set_level("ERROR", logger="flwr")
    lines = lab.run(monkeypatch, {"num-server-rounds": 1, "eval-rollouts": 0})
    (refused,) = [line for line in lines if line["kind"] == "node.refused"]
    assert (refused["node"], refused["reason"]) == ("radians", "units_mismatch")
    said = [r.getMessage() for r in caplog.records if "leaves this node out" in r.getMessage()]
    assert len(said) == 1
    assert refused["message"] in said[0]
    joined = {line["node"]: line for line in lines if line["kind"] == "node.joined"}
    assert joined["good"]["robot"]["action"]["names"][0] == "shoulder_pan.pos"
    assert joined["shy"]["robot"] is None
    assert "does not say which robot" in joined["shy"]["notices"][0]
    assert lines[-1]["kind"] == "run.finished"


@pytest.mark.parametrize(
    ("settings", "names", "ranges"),
    [({}, 6, 6), ({"share-statistics": False}, 6, 0), ({"share-robot": False}, 0, 0)],
)
def test_what_an_owner_keeps_stays(
    lab: Lab, settings: dict[str, Any], names: int, ranges: int
) -> None:
    lab.contribute("left", **settings)
    with LearnerClient(lab.server.evaluator.socket) as evaluator:
        started, _ = evaluator.start(Start(policy="smolvla", model_name="tiny", seed=1))
    assert started.robot is not None
    with lab.client("left") as client:
        reply = client.query(Query(run="1", spec=started.spec))
    told = reply.robot.action if reply.robot else Components()
    assert (len(told.names), len(told.low)) == (names, ranges)
    assert reply.recordings.robot_type == ("so101_follower" if names else "unknown")


def test_a_policy_by_quantiles_has_those_of_all_who_tell(
    tmp_path: Path, recordings_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = open_recordings(f"local:{recordings_folder}")
    made = load_policy(spec_for("act", "tiny", 0, recordings.summary, {}), device="cpu").policy
    for kind in ("STATE", "ACTION"):
        made.config.normalization_mapping[kind] = NormalizationMode.QUANTILES
    made.save_pretrained(tmp_path / "model")
    models = {"mine": str(tmp_path / "model")}
    with ExitStack() as stack:
        lab = Lab(tmp_path, recordings_folder, stack, models)
        for name, shares in (("left", True), ("right", True), ("shy", False)):
            lab.contribute(name, models=models, **{"share-histograms": shares})
        run = {"policy": "act", "model-name": "mine", "num-server-rounds": 1, "local-steps": 2}
        lines = lab.run(monkeypatch, {**run, "batch-size": 4, "eval-rollouts": 0})
        assert lines[-1]["kind"] == "run.finished"
        (folder,) = tmp_path.glob("**/checkpoint_round_1")
        saved = safetensors.numpy.load_file(next(folder.glob("policy_preprocessor_step*")))
        told = recordings.statistics(histograms=True).features["action"].quantiles()
        for name in ("q01", "q99"):
            spread = np.ptp(recordings.columns["action"].numpy(), axis=0)
            assert (np.abs(saved[f"action.{name}"] - told[name]) <= 0.02 * spread + 0.02).all()


def test_the_run_may_not_name_a_dataset(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.contribute("left")
    with pytest.raises(RunFailedError):
        lab.run(monkeypatch, {"dataset-uri": "local:/etc", "min-fit-clients": 1, "node-wait": 0.5})
    refused = next(line for line in lab.lines if line["kind"] == "node.refused")
    assert refused["reason"] == "run_dataset_refused"


def test_a_demo_node_takes_the_runs_dataset(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.contribute(
        "left",
        **{
            "dataset-uri": None,
            "learner": {
                "socket": str(lab.folder / "left.sock"),
                "device": "cpu",
                "accept-run-dataset": True,
            },
        },
    )
    lines = lab.run(
        monkeypatch,
        {
            "dataset-uri": f"local:{lab.recordings}",
            "min-fit-clients": 1,
            "num-server-rounds": 1,
            "local-steps": 1,
        },
    )
    assert lines[-1]["kind"] == "run.finished"


def test_a_node_without_dataset_does_not_start() -> None:
    learner = Contributor(ClientSettings(name="left"))
    with pytest.raises(ConfigError, match="dataset-uri is missing"):
        learner.open()


def test_a_model_that_is_nowhere(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.contribute("left")
    with pytest.raises(Zk0dError, match="could not be fetched from the hub"):
        lab.run(monkeypatch, {"model-name": "lerobot/smolvla_base"})
    assert lab.lines[-1]["reason"] == "hub_unreachable"


def test_unknown_run_settings_end_the_app(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    config = lab.folder / "server.toml"
    config.write_text(f'state = "{lab.folder}"\n')
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"lokal-steps": 1}
    )
    with pytest.raises(ConfigError, match="did you mean 'local-steps'"):
        server_app.app(DirectGrid({}), context)


def started(lab: Lab) -> tuple[Any, Payload, Statistics]:
    with LearnerClient(lab.server.evaluator.socket) as evaluator:
        reply, weights = evaluator.start(Start(policy="smolvla", model_name="tiny", seed=1))
    with lab.client("left") as client:
        answer = client.query(Query(run="1", spec=reply.spec))
    assert answer.statistics is not None
    return reply.spec, weights, answer.statistics


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"statistics_sha256": "0"}, "statistics_mismatch"),
        ({"base": "0"}, "manifest_mismatch"),
        ({"deadline_seconds": 1e-6}, "deadline"),
        ({"run": {"local-steps": 10_001}}, "limit_exceeded"),
        ({"run": {"batch-size": 1025}}, "limit_exceeded"),
        ({"run": {"local-steps": 80_001, "round-minutes": 0.5}}, "limit_exceeded"),
    ],
)
def test_a_learner_checks_its_task(lab: Lab, changes: dict[str, Any], reason: str) -> None:
    lab.contribute("left")
    spec, weights, statistics = started(lab)
    with lab.client("left") as client, pytest.raises(LearnerError) as error:
        client.train(train_task(spec, weights, statistics, **changes), weights)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays: arrays.pop(next(iter(arrays))), r"missing at the coordinator and \["),
        (lambda arrays: arrays.update(extra=next(iter(arrays.values()))), "and missing here"),
    ],
)
def test_a_learner_names_the_tensor_that_differs(
    lab: Lab, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    lab.contribute("left")
    spec, weights, statistics = started(lab)
    arrays = weights.arrays()
    change(arrays)
    changed = Payload.of(arrays, "weights")
    with lab.client("left") as client, pytest.raises(LearnerError, match=said) as error:
        client.train(train_task(spec, changed, statistics), changed)
    assert error.value.reason == "manifest_mismatch"


def test_the_update_is_the_difference(lab: Lab) -> None:
    lab.contribute("left")
    spec, weights, statistics = started(lab)
    with lab.client("left") as client:
        events: list[dict[str, Any]] = []
        reply, update = client.train(train_task(spec, weights, statistics), weights, events.append)
        again, repeated = client.train(train_task(spec, weights, statistics), weights)
    weights.manifest.check_same_tensors(update.manifest)
    assert reply.figures.grad_norm > 0
    assert reply.base == weights.manifest.sha256
    assert update.manifest.kind == "delta"
    assert update.manifest == repeated.manifest, "a repeated round gives the same update"
    assert again.figures.policy_loss == reply.figures.policy_loss
    assert any(event["event"] == "progress" for event in events)


@pytest.mark.parametrize(
    ("minutes", "steps"),
    [
        pytest.param(10 / 60, 10, id="as many as there is time for"),
        pytest.param(1e-9, 1, id="the fewest"),
        pytest.param(59.0, 16, id="the most"),
    ],
)
def test_training_ends_when_its_time_is_up(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, minutes: float, steps: int
) -> None:
    """By a clock by which each step takes a second."""
    seconds = itertools.count()
    timed = functools.partial(TimedPace, clock=lambda: float(next(seconds)))
    monkeypatch.setattr(pace, "TimedPace", timed)
    lab.contribute("left")
    spec, weights, statistics = started(lab)
    run = {"local-steps": 8, "round-minutes": minutes}
    with lab.client("left") as client:
        events: list[dict[str, Any]] = []
        # A rate by which one can tell the schedule's clock: 1e-6 at its begin, 9e-6 after 8 steps.
        slope = ConstantSchedule(value=1e-4, warmup_steps=100)
        task = train_task(spec, weights, statistics, run, schedule=slope)
        figures = client.train(task, weights, events.append)[0].figures
    assert (figures.steps, figures.samples) == (steps, 4 * steps)
    (last,) = [event for event in events if event.get("step") == steps]
    assert last["steps"] == steps, "whoever looks sees how many there are"
    last_step = 1e-6 if steps == 1 else pytest.approx(8.5e-6, abs=0.5e-6)
    assert figures.learning_rate == last_step, "the round's end is the schedule's"


def test_a_site_lends_as_many_steps_as_its_owner_says(lab: Lab) -> None:
    lab.contribute("left", limits={"max-steps": 3})
    spec, weights, statistics = started(lab)
    with lab.client("left") as client:
        task = train_task(spec, weights, statistics, {"local-steps": 8, "round-minutes": 59.0})
        assert client.train(task, weights)[0].figures.steps == 3


def test_a_round_is_corrected_once_the_node_has_a_variate(lab: Lab) -> None:
    """By the mean variate less its own: not at all where the two are the same."""
    lab.contribute("left")
    spec, weights, statistics = started(lab)
    task = functools.partial(train_task, spec, weights, statistics, {"variate-codec": "fp32"})
    with lab.client("left") as client:
        first, update = client.train(task(), weights)
        own = variate_of(update)
        alike, same = client.train(task(round=2, variate_round=1), weights.with_beside(own))
        turned = Payload.of({n: -a for n, a in own.arrays().items()}, "variates")
        twice = [
            client.train(task(round=2, variate_round=1), weights.with_beside(turned))
            for _ in range(2)
        ]
        none = train_task(spec, weights, statistics, {"drift-correction": "none"}, round=2)
        without, plain = client.train(none, weights)
    assert [each.figures.variate for each in (first, alike, without)] == ["new", "kept", ""]
    assert same.manifest == plain.manifest, "nothing to correct"
    assert plain.beside == ()
    (reply, corrected), (_, repeated) = twice
    assert reply.figures.variate == "kept"
    assert corrected.manifest != plain.manifest
    assert corrected.manifest == repeated.manifest, "a repeated round gives the same"
    assert variate_of(corrected).manifest == variate_of(repeated).manifest
    weights.manifest.check_same_tensors(own.manifest)
    length = sum(float((a**2).sum()) for a in own.arrays().values()) ** 0.5
    assert 0 < length <= 10.0, "gradients are clipped"


def test_a_variate_of_a_short_round_changes_it_by_a_share(lab: Lab) -> None:
    """Two steps are fewer than a quarter of 40."""
    lab.contribute("left")
    spec, weights, statistics = started(lab)
    task = functools.partial(train_task, spec, weights, statistics, {"variate-codec": "fp32"})
    with lab.client("left") as client:
        before = variate_of(client.train(task(), weights)[1])
        sent = weights.with_beside(before)
        after = variate_of(client.train(task(round=2, variate_round=1), sent)[1])
        # The same moments and frames, and no offset either: the same gradients.
        fresh = variate_of(client.train(task(round=2), sent)[1]).arrays()
    for name, value in after.arrays().items():
        old = before.arrays()[name]
        assert value == pytest.approx(old + 0.25 * (fresh[name] - old), abs=1e-6), name


def test_a_learner_says_that_it_lost_its_variate_and_begins_with_none(lab: Lab) -> None:
    lab.contribute("left")
    spec, weights, statistics = started(lab)
    task = functools.partial(train_task, spec, weights, statistics)
    with lab.client("left") as client:
        mean = variate_of(client.train(task(), weights)[1])
        sent = weights.with_beside(mean)
        lost = [
            client.train(task(round=3, variate_round=2), sent),
            # It has one of round 3, but of another run.
            client.train(in_another_run(task(round=4, variate_round=3)), sent),
        ]
        again = in_another_run(task(round=5, variate_round=4))
        kept, _ = client.train(again, sent)
        # A repeated round: that of round 4 counts, not the newest.
        repeated, _ = client.train(again, sent)
    assert [reply.figures.variate for reply, _ in lost] == ["lost", "lost"]
    assert all(variate_of(update).manifest.tensors for _, update in lost)
    assert [kept.figures.variate, repeated.figures.variate] == ["kept", "kept"]


def test_a_learner_names_the_tensor_of_the_mean_variate_that_differs(lab: Lab) -> None:
    lab.contribute("left")
    spec, weights, statistics = started(lab)
    with lab.client("left") as client:
        arrays = variate_of(
            client.train(train_task(spec, weights, statistics), weights)[1]
        ).arrays()
        arrays.pop(next(iter(arrays)))
        sent = weights.with_beside(Payload.of(arrays, "variates"))
        with pytest.raises(LearnerError, match="missing at the coordinator") as error:
            client.train(train_task(spec, weights, statistics, round=2, variate_round=1), sent)
    assert error.value.reason == "manifest_mismatch"


@pytest.mark.parametrize("before", [False, True])
def test_a_gradient_that_is_not_finite_changes_no_variate(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    lab.contribute("left")
    spec, weights, statistics = started(lab)
    task = functools.partial(train_task, spec, weights, statistics)
    expected: dict[str, Any] = {n: 0 * a for n, a in weights.arrays().items()}
    sent, asked = weights, task()
    with lab.client("left") as client:
        if before:
            own = variate_of(client.train(task(), weights)[1])
            expected, sent = own.arrays(), weights.with_beside(own)
            asked = task(round=2, variate_round=1)
        real = Correction.mean

        def broken(correction: Correction, steps: int) -> Any:
            mean = real(correction, steps)
            next(iter(mean.values())).fill_(float("nan"))
            return mean

        monkeypatch.setattr(Correction, "mean", broken)
        _, update = client.train(asked, sent)
    for name, value in variate_of(update).arrays().items():
        assert (value == expected[name]).all(), name


def in_another_run(task: Train) -> Train:
    return task.model_copy(update={"run": "2"})


def variate_of(update: Payload) -> Payload:
    found = update.companion("variates")
    assert found is not None
    return found


def test_each_node_samples_its_own_frames() -> None:
    seeds = {round_seed(0, r, name) for r in (1, 2) for name in ("left", "right")}
    assert len(seeds) == 4
    assert round_seed(0, 1, "left") == round_seed(0, 1, "left")


def test_a_dataset_that_cannot_be_evaluated_is_missing(lab: Lab) -> None:
    lab.contribute("left")
    spec, weights, statistics = started(lab)
    arrays = {name: array.copy() for name, array in weights.arrays().items()}
    next(iter(arrays.values())).fill(float("nan"))
    broken = raw_payload(arrays, "weights")
    task = Evaluate(
        run="1",
        round=1,
        spec=spec,
        base=broken.manifest.sha256,
        statistics=merge_groups("cohort", {"": [statistics]}),
        evaluation=EvaluationSettings(eval_frames=0),
        seed=0,
    )
    with LearnerClient(lab.server.evaluator.socket) as evaluator:
        reply = evaluator.evaluate(task, broken)
        assert reply.loss is None
        assert reply.success is None
        assert reply.datasets[0].error == "the evaluation loss is not a number."
        with pytest.raises(LearnerError) as error:
            evaluator.evaluate(task.model_copy(update={"base": "0"}), weights)
        assert error.value.reason == "manifest_mismatch"


def test_evaluation_can_be_limited_to_frames(lab: Lab) -> None:
    lab.contribute("left")
    spec, weights, statistics = started(lab)

    def frames(**how: Any) -> int:
        task = Evaluate.model_validate(
            {
                "run": "1",
                "round": 1,
                "spec": spec,
                "base": weights.manifest.sha256,
                "statistics": merge_groups("cohort", {"": [statistics]}),
                "evaluation": {"eval-frames": 0, **how},
                "seed": 0,
            }
        )
        with LearnerClient(lab.server.evaluator.socket) as evaluator:
            return evaluator.evaluate(task, weights).datasets[0].frames

    assert frames() > 30
    assert frames(**{"eval-frames": 30}) == 30


def test_status_names_the_loaded_policy(lab: Lab) -> None:
    lab.contribute("left")
    with lab.client("left") as client:
        assert client.status()["policy"] is None
        started(lab)
        assert client.status()["policy"] == "tiny"
        assert client.status()["name"] == "left"
