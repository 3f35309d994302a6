"""Arms that are calibrated otherwise: a federation of the real apps, its release, and LeRobot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import processes
from tests.federation.test_in_process import SETTINGS
from tests.learning.damage import change_info
from tests.record.lines import read_lines
from zk0d.config.run import NormalizeBy, run_settings
from zk0d.errors import ConfigError, DataError
from zk0d.learning.layout import STATE
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import open_recordings
from zk0d.learning.statistics import RunStatistics, Statistics
from zk0d.release.hub import check
from zk0d.simulation.engine import Simulation, simulate
from zk0d.simulation.plan import Plan
from zk0d.simulation.sources import Source, of_calibrations

#: What an arm's owner does, in a process that finds no zk0d: the card's own words.
LOAD = """
import sys
sys.modules["zk0d"] = None  # whoever imports it fails
import json
from pathlib import Path
import torch
import os
for folder, pose in json.loads(sys.argv[1]):
    os.chdir(folder)
    code = Path("README.md").read_text().split("```python\\n")[1].split("```")[0]
    exec(code)
    state = torch.tensor(pose)
    batch = {"observation.state": state, "task": ["touch the red block"]}
    batch |= {name: torch.zeros(1, *f.shape) for name, f in policy.config.image_features.items()}
    seen = preprocess(batch)["observation.state"][0, : state.shape[1]]
    width = policy.config.action_feature.shape[0]
    print("seen", json.dumps([seen.tolist(), postprocess(torch.zeros(1, width))[0].tolist()]))
"""


def at_once(work: Any, *arguments: Any, **more: Any) -> Future[Any]:
    done: Future[Any] = Future()
    done.set_result(work(*arguments, **more))
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two arms, each with three episodes and a held-out one."""
    folder = tmp_path_factory.mktemp("arms")
    return of_calibrations(folder, 2, 2.0, 6, 1, make=at_once)


def make(folder: Path, source: Source, **settings: Any) -> Simulation:
    quick = {"num-server-rounds": 1, "local-steps": 2, "eval-rollouts": 1, "eval-frames": 40}
    run = run_settings({**SETTINGS, **quick, "min-fit-clients": len(source.nodes), **settings})
    plan = Plan(
        nodes=source.nodes,
        state=folder / "contributors",
        model_name="tiny",
        device="cpu",
        cpu_threads=1,
    )
    return Simulation(folder, plan, run, tuple(source.evaluation))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Statistics]]:
    """What recordings are normalized with, by their folder's name."""
    told: dict[str, list[Statistics]] = {}
    real = PreparedRecordings.batches

    def batches(self: PreparedRecordings, statistics: Statistics) -> Any:
        told.setdefault(self.recordings.layout.root.name, []).append(statistics)
        return real(self, statistics)

    monkeypatch.setattr(PreparedRecordings, "batches", batches)
    return told


def _retype(folder: Path, robot_type: str | None) -> None:
    change_info(folder, lambda info: info.update(robot_type=robot_type))


def own(source: Source, index: int) -> Statistics:
    return open_recordings(source.nodes[index].dataset_uri).statistics()


def folder_of(source: Source, index: int) -> Path:
    return Path(source.nodes[index].dataset_uri.removeprefix("local:"))


@pytest.mark.slow
@pytest.mark.long
def test_each_arm_trains_and_is_evaluated_with_its_own(
    tmp_path: Path, source: Source, seen: dict[str, list[Statistics]]
) -> None:
    run = simulate(make(tmp_path / "s", source, **{"normalize-by": "node"}))
    names = [node.name for node in source.nodes]
    for index, name in enumerate(names):
        assert set(seen) == {*names, *(f"{each}-held-out" for each in names)}
        for place in (name, f"{name}-held-out"):
            assert {each.sha256 for each in seen[place]} == {own(source, index).sha256}
    apart = [np.array(own(source, n).features["action"].mean) for n in (0, 1)]
    assert np.abs(apart[0] - apart[1]).max() > 10.0, "degrees: two calibrations they are"
    committed = [line for line in read_lines(run) if line["kind"] == "round.committed"]
    for each in committed[-1]["evaluation"]["datasets"]:
        assert each["statistics"] == each["name"]
        assert each["rollouts"] == 1
    checkpoint = tmp_path / "s" / "releases" / "1" / "checkpoint_round_1"
    assert sorted(path.name for path in (checkpoint / "statistics").iterdir()) == names
    told = (checkpoint / "README.md").read_text()
    assert "cp statistics/contributor-0/* ." in told
    assert str(tmp_path) not in told
    pushed = {path.relative_to(checkpoint).parent.as_posix() for path in check(checkpoint)}
    assert pushed >= {".", *(f"statistics/{name}" for name in names)}
    # With an arm's processors over the others the folder is that arm's, for plain LeRobot.
    whole = RunStatistics.model_validate_json((run / "statistics.json").read_text())
    groups, poses = ("", *names), []
    for group in groups:
        folder = Path(shutil.copytree(checkpoint, tmp_path / f"of-{group}"))
        if group:
            copy = ["sh", "-c", f"cp statistics/{group}/* ."]
            subprocess.run(copy, cwd=folder, check=True)
        statistics = whole.of(group).for_training()
        pose = (statistics[STATE]["mean"] + statistics[STATE]["std"])[None].tolist()
        poses.append((str(folder), pose))
    command = [sys.executable, "-c", LOAD, json.dumps(poses)]
    done = processes.run(command, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    seen_there = [json.loads(words[1]) for words in lines if words[0] == "seen"]
    for group, (state, action) in zip(groups, seen_there, strict=True):
        assert np.allclose(state, 1.0, atol=1e-3)
        mean = whole.of(group).for_training()["action"]["mean"]
        assert np.allclose(action, mean, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["cohort", "robot-type"])
def test_by_robot_type(
    tmp_path: Path, source: Source, seen: dict[str, list[Statistics]], by: NormalizeBy
) -> None:
    """Two of three are of one type; a held-out set of no known type has those of all."""
    uris = []
    for index, robot_type in ((0, "koch"), (1, "so100"), (1, "so101_follower")):
        uris.append(Path(shutil.copytree(folder_of(source, index), tmp_path / robot_type)))
        _retype(uris[-1], robot_type)
    held = Path(shutil.copytree(f"{folder_of(source, 0)}-held-out", tmp_path / "held"))
    _retype(held, None)
    nodes = [
        source.nodes[0].model_copy(update={"name": path.name[:5], "dataset_uri": f"local:{path}"})
        for path in uris
    ]
    evaluation = source.evaluation[0].model_copy(update={"dataset_uri": f"local:{held}"})
    settings = {"normalize-by": by, "allow-mixed-units": True}
    run = simulate(make(tmp_path / "s", Source(nodes, [evaluation]), **settings))
    whole = RunStatistics.model_validate_json((run / "statistics.json").read_text())
    groups = {path.name: {each.sha256 for each in seen[path.name]} for path in (*uris, held)}
    if by == "cohort":
        assert set(map(frozenset, groups.values())) == {frozenset({whole.sha256})}
        return
    assert set(whole.groups) == {"koch", "so"}
    assert groups == {
        "koch": {own(source, 0).sha256},
        "so100": {whole.groups["so"].sha256},
        "so101_follower": {whole.groups["so"].sha256},
        "held": {whole.of("").sha256},
    }
    (committed, *_) = [line for line in read_lines(run) if line["kind"] == "round.committed"]
    assert [each["statistics"] for each in committed["evaluation"]["datasets"]] == [""]


@pytest.mark.slow
def test_calibrated_recordings_are_those_of_one_robot(source: Source) -> None:
    """Neither their scales nor their names are refused; what is recorded is shifted."""
    from zk0d.simulation.sources import join_robots

    robots: list[Any] = []
    uris = [node.dataset_uri for node in source.nodes]
    for uri in uris + [held.dataset_uri for held in source.evaluation]:
        try:
            assert join_robots(robots, open_recordings(uri), uri, mixed_units=False) == []
        except DataError as error:
            pytest.fail(error.message)
    held = [open_recordings(each.dataset_uri).columns[STATE] for each in source.evaluation]
    offsets = [torch.tensor(each.calibration) for each in source.evaluation]
    assert len(held[0]) == len(held[1]), "the same episodes"
    assert torch.allclose(held[0][:, :6] - offsets[0], held[1][:, :6] - offsets[1], atol=1e-3)
    assert torch.equal(held[0][:, 6:], held[1][:, 6:])


@pytest.mark.slow
def test_a_checkpoint_that_lost_a_groups_statistics_is_not_pushed(
    tmp_path: Path, source: Source
) -> None:
    simulate(make(tmp_path, source, **{"normalize-by": "node", "eval-rollouts": 0}))
    checkpoint = tmp_path / "releases" / "1" / "checkpoint_round_1"
    for path in (checkpoint / "statistics" / "contributor-1").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"statistics/contributor-1/.*is missing"):
        check(checkpoint)
