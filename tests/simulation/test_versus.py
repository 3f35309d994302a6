"""Two policies, compared on their owner's held-out episodes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lerobot.configs import NormalizationMode

from tests.simulation.policies import HALF, halves, of_both, trained
from zk0d.config.cameras import MappedAt
from zk0d.config.datasets import DatasetSettings
from zk0d.config.machine import ReadingSettings
from zk0d.config.run import run_settings
from zk0d.errors import ConfigError, DataError, UnavailableError, UsageError
from zk0d.learning.checkpoint import write_checkpoint
from zk0d.learning.layout import ACTION, STATE
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.recordings import open_recordings
from zk0d.learning.statistics import FeatureStatistics, Statistics
from zk0d.learning.trained import TrainedPolicy
from zk0d.release.checkpoint import PROVENANCE, check_lerobot
from zk0d.simulation.fitted import trained_alone
from zk0d.simulation.owned import OwnRecordings, named_as
from zk0d.simulation.versus import Options, compare, paired_interval

OPTIONS = Options(hold_out=HALF, frames=96, rollouts=0, device="cpu")
READING = ReadingSettings()


def own(*folders: Path) -> OwnRecordings:
    return OwnRecordings.typed([str(folder) for folder in folders], {}, READING)


def read(folder: Path) -> TrainedPolicy:
    return TrainedPolicy.read(folder, folder.name)


@pytest.fixture
def early(shared_folder: Path) -> TrainedPolicy:
    """Hardly trained on the right half."""
    right, _ = halves(shared_folder)
    return read(trained(shared_folder / "early", right, 4, of_both(shared_folder)))


@pytest.fixture
def late(shared_folder: Path) -> TrainedPolicy:
    """Trained on the right half."""
    right, _ = halves(shared_folder)
    return read(trained(shared_folder / "late", right, 80, of_both(shared_folder)))


@pytest.fixture
def alone(shared_folder: Path) -> TrainedPolicy:
    """Trained on the right half, and normalized with its statistics alone."""
    right, _ = halves(shared_folder)
    return read(trained(shared_folder / "alone", right, 80))


def test_an_interval_holds_the_mean_and_few_pairs_make_it_wide() -> None:
    random = np.random.default_rng(3)
    many = random.normal(1.0, 1.0, 200)
    found = paired_interval(many.tolist(), [0.0] * 200)
    assert found.low < found.mean < found.high
    assert not found.holds_zero
    # Of many pairs it is the normal one.
    assert found.high - found.low == pytest.approx(2 * 1.96 * many.std() / 200**0.5, rel=0.1)
    few = paired_interval(many[:5].tolist(), [0.0] * 5)
    width = float(np.std(many[:5], ddof=1)) / 5**0.5
    assert few.high - few.low > 2 * 1.96 * width, "five pairs say less than a normal interval does"


def test_differences_of_either_sign_are_within_the_spread() -> None:
    assert paired_interval([1.0, 2.0, 3.0, 1.0, 3.0], [2.0] * 5).holds_zero


def test_an_interval_is_right_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    missed = sum(
        not paired_interval(random.normal(0.0, 1.0, 6).tolist(), [0.0] * 6).holds_zero
        for _ in range(200)
    )
    assert missed <= 22, "5 % of 200 is 10"


def test_equal_policies_are_within_the_spread(late: TrainedPolicy, shared_folder: Path) -> None:
    right, _ = halves(shared_folder)
    found = compare(late, late, own(right), OPTIONS)
    assert found.by_loss
    assert found.better == ""
    assert (found.gap.low, found.gap.high) == (0.0, 0.0), "noise and times are the same for both"
    assert "within the spread" in found.sentences()[0]


@pytest.mark.slow
def test_the_better_policy_is_called_better_whichever_is_named_first(
    early: TrainedPolicy, late: TrainedPolicy, shared_folder: Path
) -> None:
    right, _ = halves(shared_folder)
    found = compare(early, late, own(right), OPTIONS)
    assert found.by_loss, "one family and one normalization"
    assert found.better == "late"
    assert found.gap.high < 0
    assert len(found.first.by_episode) == 6
    first = found.sentences()[0]
    assert first.startswith("For your recordings late is better than early by")
    assert "interval" in first
    other = compare(late, early, own(right), OPTIONS)
    assert other.better == "late"
    assert other.gap.mean == pytest.approx(-found.gap.mean)


@pytest.mark.slow
def test_policies_of_other_normalizations_are_compared_by_their_actions(
    early: TrainedPolicy, late: TrainedPolicy, alone: TrainedPolicy, shared_folder: Path
) -> None:
    right, _ = halves(shared_folder)
    found = compare(early, alone, own(right), OPTIONS)
    assert not found.by_loss
    assert found.better == "alone"
    assert "losses cannot be compared" in found.sentences()[1]
    # As good a policy in other numbers: what is measured does not depend on these.
    near = compare(late, alone, own(right), OPTIONS)
    assert abs(near.gap.mean) < 0.5 * abs(found.gap.mean)


@pytest.mark.slow
def test_a_policy_is_trained_alone_for_the_comparison(
    late: TrainedPolicy, shared_folder: Path, tmp_path: Path
) -> None:
    right, _ = halves(shared_folder)
    release = Path(shutil.copytree(late.folder, tmp_path / "release"))
    run = run_settings({"model-name": "tiny", "initial-lr": 2e-3, "batch-size": 16, "seed": 0})
    told = {"versions": {}, "settings": run.public()}
    (release / PROVENANCE).write_text(json.dumps(told))
    shared = TrainedPolicy.read(release, "release")
    alone = trained_alone(shared, own(right), 4, OPTIONS, tmp_path / "alone")
    found = compare(shared, alone, own(right), OPTIONS)
    assert found.by_loss, "it has the release's statistics"
    assert found.better == "release"
    assert found.second.title == "a policy trained alone for 4 steps"


@pytest.mark.slow
def test_success_is_told_where_a_simulator_fits(
    early: TrainedPolicy, late: TrainedPolicy, shared_folder: Path
) -> None:
    right, _ = halves(shared_folder)
    options = Options(hold_out=HALF, frames=24, rollouts=3, device="cpu")
    found = compare(early, late, own(right), options)
    assert found.first.rollouts is not None
    assert found.first.rollouts.episodes == 3
    assert found.success is not None
    assert found.sentences()[-1].startswith("In the simulator, on its whole table, early")
    assert found.to_json()["policies"][1]["rollouts"] == 3


def test_several_datasets_hold_out_the_newest_of_each(
    late: TrainedPolicy, shared_folder: Path
) -> None:
    both = own(*halves(shared_folder))
    recordings = both.open(late)
    held = both.held_out(recordings, 0.25)
    assert [recordings.source(episode)[1] for episode in held] == [9, 10, 11] * 2


def test_a_node_compares_on_what_it_lends(
    late: TrainedPolicy, shared_folder: Path, write: Callable[[str, str], Path]
) -> None:
    right, left = halves(shared_folder)
    text = f'name = "ann"\n[[dataset]]\nuri = "local:{right}"\n[[dataset]]\nuri = "local:{left}"\n'
    lent = OwnRecordings.lent(write("client.toml", text))
    assert lent.at is MappedAt.SETTINGS
    (notice,) = lent.notices([1])
    assert "learner.holdout-episodes is 0" in notice
    settings = write("client.toml", f"{text}[learner]\nholdout-episodes = 3\n")
    lent = OwnRecordings.lent(settings)
    recordings = lent.open(late)
    held = lent.held_out(recordings, None)
    assert held == recordings.newest(3)
    assert lent.notices(held) == []
    more = lent.held_out(recordings, HALF)
    assert "has seen the others" in lent.notices(more)[0]


def test_a_node_without_recordings_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="add --dataset"):
        OwnRecordings.lent(tmp_path / "client.toml")


def test_too_few_held_out_episodes_are_refused(late: TrainedPolicy, shared_folder: Path) -> None:
    right, _ = halves(shared_folder)
    with pytest.raises(DataError, match=r"1 held-out episode is too few .*--hold-out"):
        compare(late, late, own(right), Options(device="cpu"))
    with pytest.raises(DataError, match="only 3 held-out episodes have frames to measure on"):
        compare(late, late, own(right), replace(OPTIONS, frames=3))
    with pytest.raises(UsageError, match="--hold-out"):
        compare(late, late, own(right), Options(hold_out=1.5, device="cpu"))


def test_a_camera_is_mapped_for_the_policy_that_needs_it() -> None:
    mapping = {"front": "camera1", "wrist": ""}
    assert named_as(mapping, ["camera1", "camera2"]) == mapping
    assert named_as(mapping, ["front", "wrist"]) == {}, "it was trained on these recordings"


def test_recordings_with_other_cameras_are_refused(
    late: TrainedPolicy, shared_folder: Path
) -> None:
    right, _ = halves(shared_folder)
    mapped = OwnRecordings.typed([str(right)], {"top": "overhead"}, READING)
    assert mapped.open(late).summary.cameras.keys() == {"top", *late.cameras}
    other = OwnRecordings(
        (DatasetSettings(uri=f"local:{right}", cameras=dict.fromkeys(late.cameras[1:], "")),)
    )
    assert other.open(late).summary.cameras.keys() == set(late.cameras)


def test_a_dataset_in_other_units_is_refused(late: TrainedPolicy, shared_folder: Path) -> None:
    right, _ = halves(shared_folder)
    recordings = open_recordings(f"local:{right}")
    ticks = {
        name: FeatureStatistics(
            count=1,
            mean=tuple(60 * value for value in each.mean),
            std=tuple(60 * value for value in each.std),
            min=tuple(60 * value for value in each.min),
            max=tuple(60 * value for value in each.max),
        )
        for name, each in late.statistics().features.items()
    }
    with pytest.raises(DataError, match="another scale"):
        late.load(recordings, Statistics(features=ticks), device="cpu")


def test_another_robots_policy_is_refused(late: TrainedPolicy, shared_folder: Path) -> None:
    right, _ = halves(shared_folder)
    recordings = open_recordings(f"local:{right}")
    other = TrainedPolicy.read(late.folder, "late", ["unknown", "koch_follower"])
    with pytest.raises(DataError, match="that of what late was trained on a koch_follower"):
        other.load(recordings, late.statistics(), device="cpu")
    own = recordings.summary.robot_type
    several = TrainedPolicy.read(late.folder, "late", ["koch_follower", own])
    several.load(recordings, late.statistics(), device="cpu")


def test_the_statistics_come_back_as_they_were_written(
    alone: TrainedPolicy, shared_folder: Path
) -> None:
    right, _ = halves(shared_folder)
    written = open_recordings(f"local:{right}").statistics().for_training()
    found = alone.statistics().for_training()
    for feature, parts in written.items():
        for part, values in parts.items():
            assert np.array_equal(found[feature][part], values), (feature, part)


def test_quantiles_come_back_with_a_policy_that_normalizes_by_them(
    shared_folder: Path, tmp_path: Path
) -> None:
    right, _ = halves(shared_folder)
    recordings = open_recordings(f"local:{right}")
    loaded = load_policy(spec_for("act", "tiny", 0, recordings.summary, {}), device="cpu")
    for kind in ("STATE", "ACTION"):
        loaded.config.normalization_mapping[kind] = NormalizationMode.QUANTILES
    features = {
        name: FeatureStatistics.of(recordings.columns[name].numpy(), histogram=True)
        for name in (STATE, ACTION)
    }
    statistics = Statistics(features=features)
    write_checkpoint(loaded, statistics, tmp_path / "act")
    policy = read(tmp_path / "act")
    found = policy.statistics()
    assert np.array_equal(
        found.for_training()[ACTION]["q99"], statistics.for_training()[ACTION]["q99"]
    )
    policy.load(recordings, found, device="cpu").processors(found)


def test_a_folder_without_a_policy_is_refused(tmp_path: Path, late: TrainedPolicy) -> None:
    with pytest.raises(UnavailableError, match=r"holds no policy \(config.json is missing\)"):
        TrainedPolicy.read(tmp_path, "mine")
    base = Path(shutil.copytree(late.folder, tmp_path / "base"))
    for path in base.glob("policy_preprocessor*.safetensors"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"cannot be read .* copy the checkpoint again"):
        TrainedPolicy.read(base, "base").statistics()
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"type": "pi0"}))
    with pytest.raises(ConfigError, match="policy 'pi0'"):
        TrainedPolicy.read(base, "base")


def test_a_base_model_has_no_statistics(tmp_path: Path, late: TrainedPolicy) -> None:
    base = Path(shutil.copytree(late.folder, tmp_path / "base"))
    path = base / "policy_preprocessor.json"
    told = json.loads(path.read_text())
    told["steps"] = [s for s in told["steps"] if s["registry_name"] != "normalizer_processor"]
    path.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="a base model has none"):
        TrainedPolicy.read(base, "base").statistics()


@pytest.mark.parametrize(("theirs", "fits"), [("0.1.0", False), ("0.6.99", True)])
def test_another_lerobot_is_refused(tmp_path: Path, theirs: str, fits: bool) -> None:
    (tmp_path / PROVENANCE).write_text(json.dumps({"versions": {"lerobot": theirs}}))
    if fits:
        check_lerobot(tmp_path, "mine")
        return
    with pytest.raises(ConfigError, match=r"written with LeRobot 0\.1\.0, here is"):
        check_lerobot(tmp_path, "mine")


def test_a_folder_that_tells_no_version_passes(tmp_path: Path) -> None:
    check_lerobot(tmp_path, "mine")
