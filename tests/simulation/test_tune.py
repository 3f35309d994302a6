"""A release's finish at home."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from tests.simulation.policies import HALF, halves, of_both, trained
from zk0d.config.machine import ReadingSettings
from zk0d.errors import ConfigError, DataError
from zk0d.learning.recordings import Recordings
from zk0d.learning.trained import TrainedPolicy
from zk0d.release import hub
from zk0d.release.personal import PERSONAL, PersonalSummary
from zk0d.simulation.owned import OwnRecordings
from zk0d.simulation.tune import Tuned, TuneOptions, camera_names, tune
from zk0d.simulation.versus import Interval, Options, compare

MEASURED = Options(hold_out=HALF, frames=96, rollouts=0, device="cpu")


@pytest.fixture
def release(shared_folder: Path) -> TrainedPolicy:
    """Trained on the right half alone, so that the left half's owner has something to gain."""
    right, _ = halves(shared_folder)
    folder = trained(shared_folder / "late", right, 80, of_both(shared_folder))
    return TrainedPolicy.read(folder, "late")


@pytest.fixture
def mine(shared_folder: Path) -> OwnRecordings:
    """The left half."""
    _, left = halves(shared_folder)
    return OwnRecordings.typed([str(left)], {}, ReadingSettings())


def tuned(release: TrainedPolicy, mine: OwnRecordings, folder: Path, pull: float) -> Tuned:
    options = TuneOptions(steps=60, pull=pull, measured=MEASURED, learning_rate=1e-3, batch_size=32)
    return tune(release, mine, options, folder)


@pytest.mark.slow
def test_tuning_helps_on_ones_own_half_and_leaves_the_release_as_it_was(
    release: TrainedPolicy, mine: OwnRecordings, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in release.folder.rglob("*") if path.is_file()}
    done = tuned(release, mine, tmp_path / "own", pull=0.0)
    assert done.after < done.before
    assert not done.change.holds_zero
    assert "is better than late on your recordings" in done.sentence()
    assert done.folder == tmp_path / "own"
    assert before == {p: p.read_bytes() for p in release.folder.rglob("*") if p.is_file()}

    # What was written is what was measured: same loss, same statistics, LeRobot loads it.
    own = TrainedPolicy.read(done.folder, "own")
    found = compare(release, own, mine, MEASURED)
    assert found.by_loss
    assert found.better == "own"
    assert found.gap.mean == pytest.approx(done.after - done.before, rel=1e-4)
    policy = get_policy_class(own.family).from_pretrained(done.folder)
    make_pre_post_processors(policy.config, pretrained_path=str(done.folder))

    summary = PersonalSummary.model_validate(json.loads((done.folder / PERSONAL).read_text()))
    assert (summary.steps, summary.pull, summary.episodes) == (60, 0.0, 6)
    card = (done.folder / "README.md").read_text()
    assert "personal policy" in card
    assert done.sentence() in card
    every = "".join(p.read_text() for p in done.folder.rglob("*.json")) + card
    assert str(tmp_path) not in every, "no place of this machine"
    assert mine.datasets[0].uri not in every
    with pytest.raises(ConfigError, match="is a personal policy"):
        hub.check(done.folder)


@pytest.mark.slow
def test_a_strong_pull_keeps_the_weights_near_the_shared_ones(
    release: TrainedPolicy, mine: OwnRecordings, tmp_path: Path
) -> None:
    free = tuned(release, mine, tmp_path / "free", pull=0.0)
    pulled = tuned(release, mine, tmp_path / "pulled", pull=30.0)
    assert pulled.moved < 0.5 * free.moved
    assert pulled.passed


@pytest.mark.slow
def test_a_worse_policy_is_not_kept(
    release: TrainedPolicy, mine: OwnRecordings, tmp_path: Path
) -> None:
    options = TuneOptions(steps=6, pull=0.0, measured=MEASURED, learning_rate=0.5, batch_size=8)
    done = tune(release, mine, options, tmp_path / "worse")
    assert not done.passed
    assert done.folder is None
    assert "Nothing was kept" in done.sentence()
    assert list(tmp_path.iterdir()) == []


def test_too_few_episodes_to_hold_out_are_refused(
    release: TrainedPolicy, mine: OwnRecordings, tmp_path: Path
) -> None:
    options = TuneOptions(steps=1, pull=0.0, measured=Options(device="cpu"))
    with pytest.raises(DataError, match="held-out episode is too few"):
        tune(release, mine, options, tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


def test_a_policy_within_the_spread_is_kept_and_one_beyond_is_not() -> None:
    def gate(low: float, high: float) -> Tuned:
        change = Interval((low + high) / 2, low, high)
        return Tuned("r", 0.2, 0.2 + change.mean, change, 6, 0.01, None)

    assert gate(-0.3, -0.1).passed
    assert gate(-0.1, 0.3).passed
    assert "neither better nor worse" in gate(-0.1, 0.3).sentence()
    assert not gate(0.1, 0.3).passed


def test_a_camera_keeps_the_policys_name_if_datasets_call_it_differently() -> None:
    @dataclass
    class FakeDataset:
        cameras: dict[str, str]

    @dataclass
    class FakeRecordings:
        datasets: list[FakeDataset]

        @property
        def episodes(self) -> list[int]:
            return list(range(len(self.datasets)))

        def source(self, episode: int) -> tuple[FakeDataset, int]:
            return self.datasets[episode], 0

    one = FakeDataset({"observation.images.front": "camera1", "observation.images.hand": "camera2"})
    two = FakeDataset({"observation.images.above": "camera1", "observation.images.hand": "camera2"})
    alike = camera_names(cast("Recordings", FakeRecordings([one, one])))
    assert alike == {"camera1": "observation.images.front", "camera2": "observation.images.hand"}
    unlike = camera_names(cast("Recordings", FakeRecordings([one, two])))
    assert unlike == {"camera1": "observation.images.camera1", "camera2": "observation.images.hand"}
