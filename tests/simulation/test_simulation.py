"""Virtual contributors: the real apps, learners and policies, in this process or on Ray."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from rich.console import Console

from tests.federation.test_in_process import SETTINGS, Lab, lab  # noqa: F401 - a fixture
from tests.record.lines import read_lines
from zk0d.config.families import FAMILIES
from zk0d.config.machine import CacheSettings, EvaluationDataset, ReadingSettings
from zk0d.config.run import run_settings
from zk0d.errors import ExitCode, UsageError, Zk0dError
from zk0d.federation import model
from zk0d.federation.aggregate import Combined, aggregate
from zk0d.federation.learner_client import LearnerError
from zk0d.federation.rounds import RunFailedError
from zk0d.flower.simulation import RayOptions, has_ray
from zk0d.learning.recordings import open_recordings
from zk0d.record.events import Event, UpdateRefused
from zk0d.record.journal import committed_rounds, read_journal
from zk0d.simulation.alone import TrainOptions, alone, export, train_alone
from zk0d.simulation.engine import Engine, Simulation, simulate
from zk0d.simulation.main import _missing, read_plan, write_plan
from zk0d.simulation.plan import Plan, VirtualNode, with_faults
from zk0d.simulation.worker import VirtualLearner

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {**SETTINGS, "local-steps": 4, "eval-rollouts": 0, "eval-frames": 20}


@pytest.fixture
def uri(recordings_folder: Path) -> str:
    return f"local:{recordings_folder}"


def make(
    folder: Path,
    uri: str,
    settings: Mapping[str, Any] = {},
    *,
    nodes: list[VirtualNode] | None = None,
    engine: Engine = "in-process",
    held_out: tuple[int, ...] = (5,),
    plan: dict[str, Any] | None = None,
) -> Simulation:
    nodes = nodes or [
        VirtualNode(name="left", dataset_uri=uri, episodes=[0, 1, 2]),
        VirtualNode(name="right", dataset_uri=uri, episodes=[3, 4]),
    ]
    run = run_settings({**SMALL, "min-fit-clients": len(nodes), **settings})
    evaluation = EvaluationDataset(
        name="held-out",
        dataset_uri=uri,
        episodes=list(held_out),
        simulator="soreach",
        sector=(0, 2),
    )
    virtual = Plan(
        nodes=nodes,
        state=folder / "contributors",
        model_name="tiny",
        device="cpu",
        cpu_threads=1,
        **(plan or {}),
    )
    return Simulation(folder, virtual, run, (evaluation,), engine, RayOptions(workers=1))


def weights(run: Path, number: int | None = None) -> bytes:
    last = committed_rounds(run)[-1] if number is None else number
    return (run / "rounds" / f"{last:05d}" / "global.safetensors").read_bytes()


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_lines(run) if line["kind"] == kind]


def test_a_simulation_equals_real_learners(
    lab: Lab,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    uri: str,
) -> None:
    """Learners behind sockets, with the same settings and threads, give the same bits."""
    torch.set_num_threads(1)  # as make() has it
    lab.contribute("left")
    lab.contribute("right")
    lab.run(monkeypatch, {**SMALL, "num-server-rounds": 3})
    nodes = [VirtualNode(name=name, dataset_uri=uri) for name in ("left", "right")]
    run = simulate(make(tmp_path / "s", uri, {"num-server-rounds": 3}, nodes=nodes, held_out=()))
    assert weights(run) == weights(lab.folder / "runs" / "1")
    losses = [line["evaluation"]["loss"] for line in lines_of(run, "round.committed")]
    real = lines_of(lab.folder / "runs" / "1", "round.committed")
    assert losses == [line["evaluation"]["loss"] for line in real]
    assert (run / "server").is_dir(), "zk0's output files are written as in any run"


def test_a_simulation_leaves_the_app_as_it_was(
    lab: Lab,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    uri: str,
) -> None:
    """Learners behind sockets are found again afterwards, in the same process."""
    simulate(make(tmp_path / "s", uri, {"num-server-rounds": 1}))
    lab.contribute("left")
    lines = lab.run(monkeypatch, {**SMALL, "num-server-rounds": 1, "min-fit-clients": 1})
    assert lines[-1]["kind"] == "run.finished"


def test_contributors_have_their_own_episodes_only(tmp_path: Path, uri: str) -> None:
    run = simulate(make(tmp_path / "s", uri, {"num-server-rounds": 1}))
    joined = {line["node"]: line for line in lines_of(run, "node.joined")}
    assert {name: line["episodes"] for name, line in joined.items()} == {"left": 3, "right": 2}
    statistics = json.loads((run / "statistics.json").read_text())
    frames = sum(line["frames"] for line in joined.values())
    assert statistics["features"]["action"]["count"] == frames
    (one,) = {
        line["evaluation"]["datasets"][0]["frames"] for line in lines_of(run, "round.committed")
    }
    assert one == 20


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not has_ray(), reason="the extra 'simulation' is not installed")
def test_ray_does_the_same(tmp_path: Path, uri: str) -> None:
    made = [
        # Ray takes minutes to start its workers on a busy machine.
        weights(simulate(make(tmp_path / engine, uri, {"node-wait": 1000.0}, engine=engine)))
        for engine in ("in-process", "ray")
    ]
    assert made[0] == made[1]


def test_an_interrupted_simulation_ends_as_one_that_was_not(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"num-server-rounds": 3, "downlink-codec": "int8-delta"}
    whole = simulate(make(tmp_path / "whole", uri, settings))
    broken = make(tmp_path / "broken", uri, settings)
    write_plan(broken)
    real, calls = aggregate, []

    class Killed(BaseException):
        pass

    def deadly(*args: Any) -> Combined:
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return real(*args)

    monkeypatch.setattr(model, "aggregate", deadly)
    with pytest.raises(Killed):
        simulate(broken)
    assert committed_rounds(broken.run_folder) == [0, 1]
    run = simulate(read_plan(tmp_path / "broken"))
    assert weights(run) == weights(whole)
    again, last = lines_of(run, "round.committed")[-2:]
    assert {node["variate"] for node in last["nodes"]} == {"kept"}, "by a file, not by a process"
    assert {node["weights"] for node in again["nodes"]} == {"held"}, "its round was sent again"
    assert {node["weights"] for node in last["nodes"]} == {"difference"}


ENGINES = pytest.mark.parametrize(
    "engine",
    [
        "in-process",
        pytest.param(
            "ray",
            marks=[
                pytest.mark.slow,
                pytest.mark.long,
                pytest.mark.skipif(not has_ray(), reason="no Ray"),
            ],
        ),
    ],
)


def test_a_simulation_tells_the_place_of_frames_and_its_progress(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zk0d.simulation.engine.TELL_SECONDS", 0.0)
    told: list[str] = []
    reading = {"cache": {"memory-gib": 1e-4, "disk-gib": 0.0, "vision-features": False}}
    made = make(tmp_path / "s", uri, plan={"reading": reading})
    simulate(made, tell=told.append)
    uses = [text for text in told if "frames take" in text]
    # Contributors of one dataset share a cache; nobody decodes what is held out from it.
    assert {text.split(":")[0] for text in uses} <= {"left", "right", "evaluation"}
    assert len(uses) == 2
    assert all("that each batch decodes again" in text for text in uses)
    lengths = [len(each) for each in open_recordings(uri).layout.episodes]
    frames = {int(re.search(r"(\d+) frames", text)[1]) for text in uses}  # type: ignore[index]
    assert frames == {sum(lengths[:5]), lengths[5]}
    assert any("decoding: " in text for text in told)
    assert any("training step " in text for text in told)


@ENGINES
def test_an_unreadable_video_ends_a_simulation_at_once_with_the_cause(
    tmp_path: Path, recordings_folder: Path, engine: Engine
) -> None:
    nodes = []
    for name in ("left", "right"):
        folder = tmp_path / name
        shutil.copytree(recordings_folder, folder)
        for video in folder.rglob("*.mp4"):
            content = bytearray(video.read_bytes())
            middle = len(content) // 2
            content[middle : middle + 4000] = bytes(4000)
            video.write_bytes(content)
        nodes.append(VirtualNode(name=name, dataset_uri=f"local:{folder}"))
    uri = f"local:{recordings_folder}"
    made = make(tmp_path / "s", uri, {"node-wait": 1e6}, nodes=nodes, engine=engine)
    shown: list[Event] = []
    with pytest.raises(
        RunFailedError,
        match=r"0 of 2 nodes can train, and no other can come: "
        r"local:.*: .* frames cannot be used",
    ):
        simulate(made, shown.append)
    kinds = [event.kind for event in shown]
    assert kinds[-1] == "run.failed"
    assert "node.refused" not in kinds, "the error says it"
    refused = lines_of(made.run_folder, "node.refused")
    assert refused
    assert all(f"local:{tmp_path / line['node']}: " in line["message"] for line in refused)


@pytest.mark.parametrize(("quorum", "shown_then"), [(2, []), (1, ["left"])])
def test_a_refusal_in_a_round_is_shown_unless_it_ends_the_simulation(
    tmp_path: Path,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    quorum: int,
    shown_then: list[str],
) -> None:
    real = VirtualLearner.train

    def train(self: VirtualLearner, *args: Any) -> Any:
        if self._node.name == "left":
            raise LearnerError("The disk with the videos is gone.", reason="data_error")
        return real(self, *args)

    monkeypatch.setattr(VirtualLearner, "train", train)
    made = make(tmp_path, uri, {"num-server-rounds": 1, "min-fit-clients": quorum})
    shown: list[Event] = []
    with pytest.raises(RunFailedError, match="is gone") if quorum == 2 else nullcontext():
        simulate(made, shown.append)
    assert [event.node for event in shown if isinstance(event, UpdateRefused)] == shown_then
    written = list(read_journal(made.run_folder))
    left_out = [event for event in written if event not in shown]
    assert shown == [event for event in written if event in shown]
    assert [event.kind for event in left_out] == ["update.refused"] * (quorum == 2)


@pytest.mark.parametrize(
    ("number", "reason", "said"),
    [
        (
            errno.ENOSPC,
            "disk_full",
            r"\(No space left on device.*\); free space there, or set",
        ),
        (errno.EACCES, "forbidden", r"\(Permission denied.*\); give user \d+ the right to write"),
    ],
)
def test_training_alone_without_room_for_frames_says_so_and_may_be_tried_again(
    tmp_path: Path,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    reason: str,
    said: str,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("zk0d.learning.frame_files.posix_fallocate", full)
    # Another test's frames of the same recordings may lie in the usual folder.
    cache = CacheSettings(
        memory_gib=1e-4, disk_gib=1.0, vision_features=False, folder=tmp_path / "cache"
    )
    options = TrainOptions(
        dataset=uri,
        overrides=(("node-wait", 3.0), ("num-server-rounds", 1), ("local-steps", 1)),
        reading=ReadingSettings(cache=cache),
        device="cpu",
        folder=tmp_path / "t",
    )
    with pytest.raises(Zk0dError, match=said) as error:
        train_alone(options, Console(quiet=True))
    assert error.value.exit_code == ExitCode.TRY_AGAIN
    (run,) = (tmp_path / "t/runs").iterdir()
    told = [*lines_of(run, "node.refused"), *lines_of(run, "run.failed")]
    assert reason in {line["reason"] for line in told}


def test_a_dropped_node_is_away_and_comes_back(tmp_path: Path, uri: str) -> None:
    settings = {"num-server-rounds": 4, "local-steps": 1, "min-fit-clients": 1, "eval-frequency": 4}
    run = simulate(make(tmp_path / "s", uri, settings, plan={"drop": 0.4, "seed": 1}))
    refused = lines_of(run, "update.refused")
    assert refused
    assert {line["reason"] for line in refused} == {"dropped"}
    assert not any(line["strike"] for line in refused)
    trained = sum(len(line["nodes"]) for line in lines_of(run, "round.committed")[1:])
    quorum = [line["refused"] for line in lines_of(run, "round.failed")]
    assert all(len(refused_then) == 2 for refused_then in quorum)
    assert trained + len(refused) == 2 * len(lines_of(run, "round.started"))
    assert len(lines_of(run, "round.started")) == 4 + len(quorum)
    # The same absences, replayed from the run's journal.
    again = make(tmp_path / "again", uri, settings, plan={"missing": _missing(run)})
    assert _missing(simulate(again)) == _missing(run)
    assert weights(again.run_folder) == weights(run)


def test_a_poisoned_contributor(tmp_path: Path, uri: str) -> None:
    settings = {
        "num-server-rounds": 1,
        "uplink-codec": "fp32",
        "norm-outlier-factor": 0.0,
        "grad-clip-norm": 100.0,  # else its variate is refused as longer than any gradient
    }
    clean = simulate(make(tmp_path / "clean", uri, settings))
    nodes = with_faults(make(tmp_path, uri).plan.nodes, [], 1)
    assert [node.poisoned for node in nodes] == [False, True]
    run = simulate(make(tmp_path / "s", uri, settings, nodes=nodes))
    norms = [
        {line["node"]: line["norm"] for line in lines_of(each, "update.accepted")}
        for each in (clean, run)
    ]
    assert norms[1]["left"] == norms[0]["left"]
    assert norms[1]["right"] == pytest.approx(4 * norms[0]["right"], rel=1e-5)


def test_a_straggler_misses_the_deadline(tmp_path: Path, uri: str) -> None:
    nodes = with_faults(make(tmp_path, uri).plan.nodes, ["1@1000x"], 0)
    settings = {"num-server-rounds": 1, "min-fit-clients": 1, "round-deadline": 30.0}
    run = simulate(make(tmp_path / "s", uri, settings, nodes=nodes))
    (lost,) = lines_of(run, "node.lost")
    assert (lost["node"], lost["reason"]) == ("left", "late")
    assert [n["node"] for n in lines_of(run, "round.committed")[1]["nodes"]] == ["right"]


@pytest.mark.long
def test_a_slow_and_a_fast_contributor_take_what_they_have_time_for(
    tmp_path: Path, uri: str
) -> None:
    """By the plan and no clock, so that a simulation repeats bit by bit."""
    nodes = [
        VirtualNode(name="laptop", dataset_uri=uri, episodes=[0, 1, 2], slow=4.0),
        VirtualNode(name="workstation", dataset_uri=uri, episodes=[3, 4], slow=0.5),
    ]
    settings = {"num-server-rounds": 2, "round-minutes": 4.5 / 60}
    runs = [simulate(make(tmp_path / n, uri, settings, nodes=nodes)) for n in "ab"]
    for line in lines_of(runs[0], "round.committed")[1:]:
        assert [(n["node"], n["steps"]) for n in line["nodes"]] == [
            ("laptop", 1),
            ("workstation", 8),
        ]
        assert [n["samples"] for n in line["nodes"]] == [16 * n["steps"] for n in line["nodes"]]
        assert not line["refused"]
    assert weights(runs[0]) == weights(runs[1])


def test_experiments_with_statistics_change_only_the_normalization(
    tmp_path: Path, uri: str
) -> None:
    """The experiment's other ways to normalize change what is learned, and nothing else."""
    made = {}
    for name, plan in (("merged", {}), ("own", {"statistics": "own"})):
        made[name] = simulate(make(tmp_path / name, uri, {"num-server-rounds": 1}, plan=plan))
    a, b = (json.loads((made[n] / "statistics.json").read_text()) for n in made)
    assert a == b
    assert weights(made["merged"]) != weights(made["own"])
    forced = a | {
        "features": {n: f | {"mean": [0.0] * len(f["mean"])} for n, f in a["features"].items()}
    }
    run = simulate(
        make(tmp_path / "f", uri, {"num-server-rounds": 1}, plan={"forced_statistics": forced})
    )
    found = json.loads((run / "statistics.json").read_text())
    assert set(found["features"]["action"]["mean"]) == {0.0}


@pytest.mark.parametrize(
    ("slow", "poison", "words"),
    [(["x"], 0, "cannot be read"), (["3@2x"], 0, "3 are named"), ([], 4, "4 are named")],
)
def test_faults_that_cannot_be(uri: str, slow: list[str], poison: int, words: str) -> None:
    nodes = [VirtualNode(name=f"n{i}", dataset_uri=uri) for i in range(2)]
    with pytest.raises(UsageError, match=words):
        with_faults(nodes, slow, poison)


def test_training_alone_is_the_trainer_and_no_more(tmp_path: Path, uri: str) -> None:
    """One contributor, uncoded, no momentum: the global weights are what the trainer made."""
    settings = alone({**SMALL, "min-fit-clients": 1, "num-server-rounds": 2})
    node = VirtualNode(name="alone", dataset_uri=uri)
    simulation = make(tmp_path / "s", uri, nodes=[node])
    run = simulate(Simulation(simulation.folder, simulation.plan, settings, simulation.evaluation))
    first, second = (
        safetensors.numpy.load_file(run / "rounds" / f"{n:05d}" / "global.safetensors")
        for n in (1, 2)
    )
    update = lines_of(run, "update.accepted")[1]["norm"]
    moved = np.sqrt(sum(float(((second[n] - first[n]) ** 2).sum()) for n in first))
    assert moved == pytest.approx(update, rel=1e-4)


@pytest.mark.parametrize("setting", [{"server-momentum": 0.5}, {"uplink-codec": "int8"}])
def test_training_alone_refuses_a_federations_settings(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is a federation's"):
        alone(setting)


@pytest.mark.parametrize("policy", FAMILIES)
def test_a_checkpoint_loads_in_plain_lerobot(tmp_path: Path, uri: str, policy: str) -> None:
    import torch
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    node = VirtualNode(name="alone", dataset_uri=uri)
    settings = {"num-server-rounds": 1, "local-steps": 1, "policy": policy, "batch-size": 2}
    simulation = make(tmp_path / "s", uri, settings, nodes=[node])
    run = simulate(simulation)
    folder = export(run, simulation.plan, tmp_path / "checkpoint")
    loaded = get_policy_class(policy).from_pretrained(folder)
    trained = safetensors.numpy.load_file(run / "rounds" / "00001" / "global.safetensors")
    state = loaded.state_dict()
    assert trained
    assert all(np.array_equal(state[name].numpy(), array) for name, array in trained.items())
    preprocess, postprocess = make_pre_post_processors(loaded.config, pretrained_path=folder)
    observation = {
        "observation.state": torch.zeros(1, 9),
        "observation.images.top": torch.zeros(1, 3, 96, 96),
        "task": ["touch the red block"],
    }
    action = postprocess(loaded.select_action(preprocess(observation)))
    assert action.shape == (1, 6)
    # Not normalized: an action is in degrees.
    means = json.loads((run / "statistics.json").read_text())["features"]["action"]["mean"]
    assert float((action[0] - torch.tensor(means)).abs().max()) > 1.0
    assert not loaded.config.push_to_hub


def test_a_slow_contributor_is_late_by_the_simulations_own_clock(tmp_path: Path, uri: str) -> None:
    """Steps take seconds of no machine, so the same contributor is late on each, and as late."""
    episodes = {"left": [0, 1, 2], "right": [3, 4], "slow": [0, 3]}
    nodes = [
        VirtualNode(name=name, dataset_uri=uri, episodes=own, slow=2.5 if name == "slow" else 1.0)
        for name, own in episodes.items()
    ]
    how = {"quorum": 0.6, "min-fit-clients": 2, "num-server-rounds": 4, "eval-frequency": 4}
    first, again, waits, drops = (
        simulate(make(tmp_path / name, uri, {**how, **more}, nodes=nodes))
        for name, more in (
            ("first", {}),
            ("again", {}),
            ("waits", {"quorum": 1.0}),
            ("drops", {"max-staleness": 0}),
        )
    )
    assert weights(first) == weights(again)

    def staleness(run: Path) -> list[int | None]:
        rounds = lines_of(run, "round.committed")[1:]
        each = [{n["node"]: n["staleness"] for n in line["nodes"]} for line in rounds]
        return [by_name.get("slow") for by_name in each]

    assert staleness(first) == [None, None, 2, None]
    assert staleness(waits) == [0] * 4
    assert staleness(drops) == [None] * 4
    assert [line["seconds"]["collect"] for line in lines_of(waits, "round.committed")[1:]] == [
        10
    ] * 4
    assert weights(first) != weights(drops)
