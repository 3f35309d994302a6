"""A learner that died resumes from what it kept, and its update is that of one that did not die."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.recordings.shapes import write
from zk0d.config.machine import ClientSettings
from zk0d.config.run import EvaluationSettings, TrainingSettings
from zk0d.federation.messages import Query, QueryReply, Train, TrainReply
from zk0d.federation.update import Payload
from zk0d.learner import parked
from zk0d.learner.contributor import Contributor
from zk0d.learner.pace import StepTime
from zk0d.learner.parked import NAME, ParkedState
from zk0d.learner.tasks import TaskControl
from zk0d.learning.pace import Pace, SetPace, TimedPace
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.recordings import open_recordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.statistics import Statistics
from zk0d.learning.step import PlainStep

pytestmark = pytest.mark.slow

STEPS = 11
EVERY = 2  #: A step that is kept, after so many.


class Died(BaseException):
    """What a process does at a SIGKILL, as far as one process can tell."""


@dataclass
class World:
    """A run's coordinator, as one node sees it, and that node's machine."""

    folder: Path
    uri: str
    policy: LoadedPolicy
    statistics: Statistics
    settings: dict[str, Any]
    steps_until_death: Iterator[int] = field(default_factory=lambda: itertools.repeat(-1))
    taken: int = 0  #: steps of all processes
    now: float = 0.0  #: of the clocks of pace and file; a step takes a second

    def task(self, number: int, **how: Any) -> tuple[Train, Payload]:
        """What a round asks for; its weights are the first, moved by its number."""
        moved = {name: w + 0.001 * number for name, w in self.policy.weights().items()}
        weights = Payload.of(moved, "weights")
        given = {"local_steps": STEPS, "batch_size": 4, **self.settings}
        training = TrainingSettings(**given)
        if number > 1 and training.drift_correction != "none":
            mean = {name: 0.01 * w for name, w in self.policy.weights().items()}
            weights = weights.with_beside(Payload.of(mean, "variates", training.variate_codec))
        asked = {
            "run": "1",
            "round": number,
            "spec": self.policy.spec,
            "base": weights.manifest.sha256,
            "hold": True,
            "statistics": self.statistics,
            "statistics_sha256": self.statistics.sha256,
            "training": training,
            "first_step": (number - 1) * STEPS,
            "schedule": CosineSchedule(peak=2e-3, end=1e-4, warmup_steps=4, total_steps=80),
            "variate_round": number - 1,
            "seed": 3,
            "proximal_mu": 0.1,
            "evaluation": EvaluationSettings(eval_frames=8, evaluate_on_nodes=True),
            "deadline_seconds": 3600.0,
        }
        return Train.model_validate(asked | how), weights

    def learner(self, folder: str) -> Contributor:
        """A process that has just begun."""
        settings = ClientSettings.parse(
            {
                "name": "left",
                "dataset-uri": self.uri,
                "learner": {"device": "cpu", "holdout-episodes": 1},
            },
            where="test",
        )
        state = ParkedState(self.folder / folder, every=EVERY, clock=lambda: self.now)
        return _Timed(settings, state, self)

    def train(
        self, learner: Contributor, number: int, deaths: tuple[int, ...] = (), **how: Any
    ) -> tuple[TrainReply, Payload]:
        self.steps_until_death = iter(deaths)
        self._next_death()
        task, weights = self.task(number, **how)
        reply, update = learner.run(task, weights, TaskControl())
        assert isinstance(reply, TrainReply)
        assert update is not None
        return reply, update

    def until_it_is_done(
        self, folder: str, number: int, deaths: tuple[int, ...]
    ) -> tuple[TrainReply, Payload, Contributor]:
        """A round in as many processes as it needs."""
        for steps in deaths:
            with pytest.raises(Died):
                self.train(self.learner(folder), number, (steps,))
        learner = self.learner(folder)
        return *self.train(learner, number), learner

    def step(self) -> None:
        """A step begins."""
        if self.left == 0:
            raise Died
        self.left -= 1
        self.taken += 1
        self.now += 1.0

    def _next_death(self) -> None:
        self.left = next(self.steps_until_death, -1)


class _Timed(Contributor):
    """One whose clock goes on by a second with each step."""

    def __init__(self, settings: ClientSettings, state: ParkedState, world: World) -> None:
        super().__init__(settings, state)
        self._world = world

    def _pace(self, task: Train, step_time: StepTime) -> Pace:
        pace = super()._pace(task, step_time)
        if isinstance(pace, TimedPace):
            pace._clock = lambda: self._world.now
        return pace


Make = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def make(policy: str, **settings: Any) -> World:
        uri = f"local:{tmp_path}/arm"
        write(tmp_path / "arm", lengths=(12, 9))
        spec = spec_for(policy, "tiny", 0, open_recordings(uri).summary, {})
        node = Contributor(
            ClientSettings.parse(
                {"name": "left", "dataset-uri": uri, "learner": {"device": "cpu"}}, where="test"
            )
        )
        reply, _ = node.run(Query(run="1", spec=spec, dataset_uri=""), None, TaskControl())
        assert isinstance(reply, QueryReply)
        assert reply.statistics is not None
        loaded = load_policy(spec, device="cpu")
        made = World(tmp_path, uri, loaded, reply.statistics, settings)
        real = PlainStep.__call__

        def counted(self: PlainStep, batch: dict[str, Any], rate: float) -> Any:
            made.step()
            return real(self, batch, rate)

        monkeypatch.setattr(PlainStep, "__call__", counted)
        return made

    return make


def figures(reply: TrainReply) -> dict[str, Any]:
    """All but times and the mark, which is of each process."""
    return reply.figures.model_dump(exclude={"seconds", "holdout_mark"})


def content(update: Payload) -> list[str]:
    return [each.manifest.sha256 for each in (update, *update.beside)]


SETTINGS: dict[str, dict[str, Any]] = {
    "variates": {"drift_correction": "control-variates", "uplink_codec": "int4"},
    "plain": {"drift_correction": "none", "uplink_codec": "fp32"},
    "pace": {"drift_correction": "control-variates", "round_minutes": 0.25},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("policy", ["smolvla", pytest.param("act", marks=pytest.mark.long)])
def test_a_round_of_several_processes_is_that_of_one(
    world: Make, policy: str, settings: str
) -> None:
    made = world(policy, **SETTINGS[settings])
    alone = made.learner("alone")
    whole = [made.train(alone, number) for number in (1, 2)]
    steps = whole[0][0].figures.steps
    assert steps == (15 if settings == "pace" else STEPS)
    made.taken = 0
    first, update, learner = made.until_it_is_done("often", 1, (3, 4))
    assert (figures(first), content(update)) == (figures(whole[0][0]), content(whole[0][1]))
    assert made.taken == steps + 1, "the third step was lost, and nothing after the fourth"
    learner.settle()
    second, update, _ = made.until_it_is_done("often", 2, (2, 5))
    assert (figures(second), content(update)) == (figures(whole[1][0]), content(whole[1][1]))
    # What stayed between the rounds matters to the result.
    _, other = made.train(made.learner("lost"), 2)
    assert content(other) != content(update)


@pytest.fixture
def small(world: Make) -> World:
    return world("smolvla", **SETTINGS["variates"])


def test_the_answer_is_sent_again_without_a_step(small: World) -> None:
    """As after a machine that went off while it sent its update."""
    learner = small.learner("x")
    reply, update = small.train(learner, 1)
    learner.settle()
    small.taken = 0
    for again in (learner, small.learner("x")):
        other, same = small.train(again, 1, deadline_seconds=5.0)
        assert other == reply
        assert content(same) == content(update)
        assert [b"".join(each.chunks) for each in (same, *same.beside)] == [
            b"".join(each.chunks) for each in (update, *update.beside)
        ]
    assert small.taken == 0


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"round": 2}, {"boost": 2.0}, {"fresh": True}, {"proximal_mu": 0.2}],
    ids=lambda other: next(iter(other)),
)
def test_a_step_of_another_task_is_not_used(small: World, other: dict[str, Any]) -> None:
    with pytest.raises(Died):
        small.train(small.learner("x"), 1, (4,))
    small.taken = 0
    reply, _ = small.train(small.learner("x"), 1, **other)
    assert reply.figures.steps == STEPS
    assert small.taken == STEPS, "all of them anew"


def test_a_step_on_other_recordings_is_not_used(small: World) -> None:
    with pytest.raises(Died):
        small.train(small.learner("x"), 1, (4,))
    info = small.folder / "arm/meta/info.json"
    info.write_text(info.read_text() + "\n")
    small.taken = 0
    small.train(small.learner("x"), 1)
    assert small.taken == STEPS


def test_a_new_process_keeps_the_same_episodes_out_when_recordings_grew(small: World) -> None:
    learner = small.learner("x")
    small.train(learner, 1)
    learner.settle()
    shutil.rmtree(small.folder / "arm")
    write(small.folder / "arm", lengths=(12, 9, 8))
    for folder, held_out in (("x", [1]), ("other", [2])):
        learner = small.learner(folder)
        small.train(learner, 2)
        assert learner._prepared is not None
        assert learner._prepared.data.held_out_episodes == held_out


def test_another_run_drops_what_there_is(small: World) -> None:
    with pytest.raises(Died):
        small.train(small.learner("x"), 1, (4,))
    path = small.folder / "x" / NAME
    assert path.exists()
    with pytest.raises(Died):
        small.train(small.learner("x"), 1, (0,), run="2")
    assert not path.exists()


def test_a_new_process_says_which_weights_it_holds(small: World) -> None:
    learner = small.learner("x")
    small.train(learner, 1)
    learner.settle()
    held = learner.facts()["holds"]
    assert held == small.task(1)[0].base
    after = small.learner("x")
    assert after.facts()["holds"] == held, "before it has loaded a policy"


def test_the_file_is_the_learners_alone_and_the_only_one(small: World) -> None:
    learner = small.learner("x")
    small.train(learner, 1)
    path = small.folder / "x" / NAME
    inside = path.stat()
    learner.settle()
    assert os.listdir(path.parent) == [NAME]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_ino != inside.st_ino, "a new file took the old one's place"


@pytest.mark.parametrize("damage", ["cut", "garbage", "other format"])
def test_a_damaged_file_is_not_used(
    small: World, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Died):
        small.train(small.learner("x"), 1, (4,))
    path = small.folder / "x" / NAME
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "garbage":
        path.write_bytes(bytes(len(data)))
    else:
        path.write_bytes(data.replace(rb"\"format\":1", rb"\"format\":9"))
    assert path.read_bytes() != data
    small.taken = 0
    with caplog.at_level("WARNING", "zk0d"):
        small.train(small.learner("x"), 1)
    assert small.taken == STEPS
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("why", ["no room", "full", "forbidden", "slow"])
def test_a_disk_that_takes_nothing_costs_a_line_in_the_log(
    small: World, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, update = small.train(small.learner("other"), 1)

    def fail(*_: Any, **__: Any) -> Any:
        number = errno.ENOSPC if why == "full" else errno.EACCES
        raise OSError(number, os.strerror(number), str(small.folder / "x"))

    if why == "no room":
        monkeypatch.setattr(parked, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
    elif why == "slow":
        monkeypatch.setattr(parked, "MOST_SECONDS", -1.0)
    else:
        monkeypatch.setattr(parked, "whole_file", fail)
    with caplog.at_level("WARNING", "zk0d"):
        learner = small.learner("x")
        reply, same = small.train(learner, 1)
        learner.settle()
    assert (figures(reply), content(same)) == (figures(expected), content(update))
    assert caplog.text.count("cannot be written") == 1, "it was tried at each step"
    assert not (small.folder / "x" / NAME).exists()
    assert not list((small.folder / "x").glob(".*")) if (small.folder / "x").exists() else True


def test_writing_takes_its_share_of_a_rounds_time(tmp_path: Path) -> None:
    now = [100.0]
    state = ParkedState(tmp_path, every=60.0, share=0.01, clock=lambda: now[0])
    assert state.pause == 60.0
    state._took = 3.0
    assert state.pause == pytest.approx(300.0)
    assert ParkedState(None).pause == float("inf")


def test_a_learner_that_is_given_no_folder_keeps_nothing(small: World) -> None:
    settings = ClientSettings.parse(
        {"name": "left", "dataset-uri": small.uri, "learner": {"device": "cpu"}}, where="test"
    )
    learner = Contributor(settings)
    small.train(learner, 1)
    learner.settle()
    assert not list(small.folder.rglob(NAME))


def test_a_set_pace_has_nothing_to_keep() -> None:
    pace = SetPace(4, 4)
    assert pace.kept() is None
