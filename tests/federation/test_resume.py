"""A ServerApp that is killed at any moment, and the run that goes on with the same weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from tests.federation.fakes import FakeEvaluator, FakeGrid, FakeNode, RunOnFakes
from zk0d.config.machine import ServerSettings
from zk0d.config.run import run_settings
from zk0d.errors import ConfigError
from zk0d.federation import admission, model, variates
from zk0d.federation.messages import Train
from zk0d.federation.rounds import Rounds, RunFailedError
from zk0d.federation.run import Run
from zk0d.federation.transport import InMessages
from zk0d.federation.update import Payload
from zk0d.record.events import Event
from zk0d.record.journal import CHECKSUMS, JOURNAL, Journal, committed_rounds, settings_of
from zk0d.record.state import RunState

SETTINGS = {
    "num-server-rounds": 5,
    "local-steps": 4,
    "server-momentum": 0.5,
    "min-fit-clients": 3,
    "max-update-ratio": 0.0,
    "max-strikes": 2,
    "scheduler-type": "reduce-on-plateau",
    "dynamic-training-decay": True,
    "keep-rounds": 9,
    # What nodes hold is kept, too.
    "downlink-codec": "int8-delta",
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program handles it."""


def train(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict, float]:
    """An update that depends on everything that a resumed run must have kept."""
    rate = task.schedule.rate(task.first_step)
    seed = [task.round, len(node.name), int(rate * 1e9), task.variate_round]
    random = np.random.default_rng(seed)
    mean = payload.companion("variates")
    pull = mean.arrays() if mean else {n: 0 * a for n, a in payload.arrays().items()}
    node.gradient = float(random.standard_normal())

    def change(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        weights = payload.arrays()
        return {
            n: (0.1 * random.standard_normal(a.shape) - 0.3 * weights[n] - 0.1 * pull[n]).astype(
                np.float32
            )
            for n, a in arrays.items()
        }

    return node.update(task, payload, change), 1.0 + len(node.name) % 3


class World(RunOnFakes):
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.settings = run_settings({**SETTINGS, **settings})
        self.nodes = [FakeNode(name, train=train) for name in ("a", "bb", "ccc")]
        self.evaluator = FakeEvaluator()

    def run(self, *, resumed_by: str = "") -> None:
        self.grid = FakeGrid(self.nodes)
        self.run_on_grid(resumed_by)

    def files(self) -> dict[str, bytes]:
        """The weights, momentum and variates of every committed round, and their checksums."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.glob("rounds/*/*"))
        }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("uninterrupted") / "run")
    world.run()
    return world


def kill(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Die in ``owner.name`` the first time that ``when`` says so."""
    real = getattr(owner, name)
    done: list[bool] = []

    def deadly(*args: Any, **more: Any) -> Any:
        if not done and when(*args, **more):
            done.append(True)
            raise Killed
        return real(*args, **more)

    monkeypatch.setattr(owner, name, deadly)


def after(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool]
) -> None:
    """Die just after ``owner.name`` did its part."""
    real = getattr(owner, name)
    done: list[bool] = []

    def deadly(*args: Any, **more: Any) -> Any:
        result = real(*args, **more)
        if not done and when(*args, **more):
            done.append(True)
            raise Killed
        return result

    monkeypatch.setattr(owner, name, deadly)


def is_train_of_3(grid: FakeGrid, messages: list[Any]) -> bool:
    return [n.trained[-1].round for n in grid.nodes.values() if n.trained] == [2] * 3 and (
        messages[0].metadata.message_type == "train"
    )


def updates_of(number: int, count: int) -> Callable[..., bool]:
    seen: list[int] = []

    def when(journal: Journal, event: Event) -> bool:
        if event.kind == "update.accepted" and event.round == number:
            seen.append(number)
        return len(seen) == count

    return when


def middle_of_aggregation(weights: Any, updates: Any, rule: Any, step: Any) -> bool:
    """In round 3, with half of the weights already moved."""
    if updates[0].update.path.parent.name != "spool" or not step.velocity:
        return False
    middle_of_aggregation.calls += 1  # type: ignore[attr-defined]
    if middle_of_aggregation.calls < 2:  # type: ignore[attr-defined]
        return False
    weights["a"] += 1.0
    return True


middle_of_aggregation.calls = 0  # type: ignore[attr-defined]


def variate_of_3() -> Callable[..., bool]:
    """The second of round 3's three."""
    seen: list[Path] = []

    def when(draft: Path, path: Path) -> bool:
        seen.append(path)
        return len(seen) == 8

    return when


#: Where the ServerApp dies: how, and the last round that is committed then.
PHASES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], int]] = {
    "send": (lambda m: kill(m, FakeGrid, "push_messages", is_train_of_3), 2),
    "sent": (
        lambda m: after(
            m,
            FakeGrid,
            "push_messages",
            lambda grid, messages: (
                messages[0].metadata.message_type == "train"
                and grid.nodes[1].trained[-1].round == 3
            ),
        ),
        2,
    ),
    "collect": (lambda m: after(m, Journal, "write", updates_of(3, 2)), 2),
    "aggregate": (lambda m: kill(m, model, "aggregate", middle_of_aggregation), 2),
    "variates": (lambda m: after(m, variates, "rename", variate_of_3()), 2),
    "variates linked": (
        lambda m: after(m, variates, "link_file", lambda _, to: to.parent.name == ".00003.partial"),
        2,
    ),
    "evaluate": (
        lambda m: kill(m, FakeEvaluator, "evaluate", lambda _, task, weights: task.round == 3),
        2,
    ),
    "checkpoint": (
        lambda m: kill(
            m, os, "replace", lambda source, target: str(target).endswith("rounds/00003")
        ),
        2,
    ),
    "commit": (
        lambda m: kill(
            m,
            Journal,
            "write",
            lambda _, event: event.kind == "round.committed" and event.round == 3,
        ),
        2,
    ),
    "committed": (
        lambda m: after(
            m,
            Journal,
            "write",
            lambda _, event: event.kind == "round.committed" and event.round == 3,
        ),
        3,
    ),
    "before round 0": (
        lambda m: kill(m, Journal, "write", lambda _, event: event.kind == "statistics.merged"),
        -1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_any_phase_the_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: World, phase: str
) -> None:
    middle_of_aggregation.calls = 0  # type: ignore[attr-defined]
    world = World(tmp_path / "run")
    strike, last = PHASES[phase]
    with monkeypatch.context() as patched:
        strike(patched)
        with pytest.raises(Killed):
            world.run()
    assert max(RunState.read(world.folder).rounds, default=-1) == last
    assert not world.of("run.failed"), "a killed program says nothing"
    world.run(resumed_by="77")
    assert world.files() == uninterrupted.files()
    assert world.of("run.finished")
    for mine, other in zip(
        world.of("round.committed")[-2:], uninterrupted.of("round.committed")[-2:], strict=True
    ):
        for key in ("round", "learning_rate", "proximal_mu", "train_loss", "evaluation", "nodes"):
            if key == "nodes":
                assert [n["sha256"] for n in mine[key]] == [n["sha256"] for n in other[key]]
            else:
                assert mine[key] == other[key]


def test_killed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: World
) -> None:
    world = World(tmp_path / "run")
    for phase, resumed_by in (("collect", ""), ("committed", "2"), ("", "3")):
        with monkeypatch.context() as patched:
            if not phase:
                world.run(resumed_by=resumed_by)
                break
            PHASES[phase][0](patched)
            with pytest.raises(Killed):
                world.run(resumed_by=resumed_by)
    assert world.files() == uninterrupted.files()
    assert [line["flower_run"] for line in world.of("run.resumed")] == ["2", "3"]


@pytest.mark.parametrize("harm", ["torn", "flipped", "missing", "no checksums"])
def test_a_damaged_round_is_known_and_the_one_before_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: World, harm: str
) -> None:
    world = World(tmp_path / "run")
    with monkeypatch.context() as patched:
        PHASES["committed"][0](patched)
        with pytest.raises(Killed):
            world.run()
    newest = world.folder / "rounds" / "00003" / "global.safetensors"
    content = bytearray(newest.read_bytes())
    if harm == "torn":
        newest.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        content[-1] ^= 1
        newest.write_bytes(content)
    elif harm == "missing":
        shutil.rmtree(newest.parent)
    else:
        (newest.parent / CHECKSUMS).unlink()
    world.run(resumed_by="77")
    assert [line["round"] for line in world.of("run.resumed")] == [2]
    assert world.files() == uninterrupted.files(), "fakes keep no state, so to the bit"


def test_a_torn_journal_line_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: World
) -> None:
    world = World(tmp_path / "run")
    with monkeypatch.context() as patched:
        PHASES["collect"][0](patched)
        with pytest.raises(Killed):
            world.run()
    with (world.folder / JOURNAL).open("a") as file:
        file.write('{"v": 1, "kind": "round.comm')
    world.run(resumed_by="77")
    for line in (world.folder / JOURNAL).read_text().splitlines():
        json.loads(line)
    assert world.files() == uninterrupted.files()


def test_strikes_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with a strike before the kill and one after it sits out, as without the kill."""

    def bad(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict, float]:
        return node.update(task, payload, samples=10**9), 1.0

    monkeypatch.setattr(admission, "COOLDOWN_ROUNDS", 2)
    world = World(tmp_path / "run")
    world.nodes.append(FakeNode("bad", train=bad))
    with monkeypatch.context() as patched:
        PHASES["committed"][0](patched)
        with pytest.raises(Killed):
            world.run()
    # Strikes in rounds 1 and 2, so it sits out 3 and 4.
    assert [task.round for task in world.nodes[3].trained] == [1, 2]
    assert [line["until"] for line in world.of("node.sits_out")] == [4]
    world.run(resumed_by="77")
    assert [task.round for task in world.nodes[3].trained] == [1, 2, 5]
    notices = world.nodes[3].notices
    assert [(n.reason, n.strikes, n.sits_out_until) for n in notices] == [
        ("implausible_samples", 1, 0),
        ("implausible_samples", 2, 4),
        ("implausible_samples", 1, 0),
    ]


def test_a_missing_run_cannot_be_resumed(tmp_path: Path) -> None:
    world = World(tmp_path / "run")
    with pytest.raises(ConfigError, match="there is no such run to resume"):
        settings_of(tmp_path / "nowhere")
    world.run()
    with pytest.raises(RunFailedError, match="run 1 is finished"):
        world.run(resumed_by="77")
    for folder in (world.folder / "rounds").iterdir():
        shutil.rmtree(folder)
    journal = world.folder / JOURNAL
    lines = [x for x in journal.read_text().splitlines() if '"run.finished"' not in x]
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match="no committed round is whole"):
        world.run(resumed_by="78")


def test_the_best_round_is_kept_for_going_back_to(tmp_path: Path) -> None:
    """A loss that doubles twice sends the run back to the best round's weights."""
    world = World(
        tmp_path / "run",
        **{
            "keep-rounds": 1,
            "rollback-factor": 2.0,
            "num-server-rounds": 6,
            "server-momentum": 0.0,
        },
    )
    losses = iter([1.0, 0.5, 0.4, 1.0, 1.1, 0.39, 0.38])
    world.evaluator.loss = lambda weights: next(losses)
    world.run()
    back = {line["round"]: line.get("rolled_back_to") for line in world.of("round.committed")}
    assert back == {0: None, 1: None, 2: None, 3: None, 4: 2, 5: None, 6: None}
    assert [task.fresh for task in world.nodes[0].trained] == [False] * 4 + [True, False]
    assert committed_rounds(world.folder) == [6]
    assert world.of("run.finished")[0]["best_round"] == 6


class Noting(InMessages):
    """Says what became of what the nodes sent."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def close(self, late: Mapping[str, int] = {}) -> None:
        self.said.append("close")

    def clear(self, late: Mapping[str, int] = {}) -> None:
        self.said.append("clear")


class RunNotRunningException(Exception):
    """By Flower's name for it: the run is over by its word."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(0), ["close"]),  # systemd stops the service, or the machine reboots
        (RunNotRunningException(), ["close"]),
        (ValueError("a bug"), ["close", "clear"]),
        (RunFailedError("too few"), ["close", "clear"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_came_stays_for_a_round_that_may_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, said: list[str]
) -> None:
    """Nodes need not send it again; what a run that ended has got goes at once."""

    def push(*_: object) -> None:
        raise error

    world, transport = World(tmp_path / "run"), Noting()
    grid = FakeGrid(world.nodes)
    monkeypatch.setattr(Rounds, "train", push)
    run = Run(
        grid,
        world.settings,
        ServerSettings(state=world.folder),
        Journal(world.folder, "1"),
        world.evaluator,
        transport=transport,
        clock=grid.clock,
        sleep=grid.sleep,
    )
    with pytest.raises(type(error)):
        run.run()
    assert transport.said == said
