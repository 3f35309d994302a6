"""What does not fit an arm is refused with a sentence, and what nobody can tell is said."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.arm.policies import HIGH, JOINTS, LOW, statistics, write_policy
from tests.mocks.mock_robot import SO101
from zk0d.arm.fit import Fit, check, group_for
from zk0d.arm.robot import Arm, RobotFile, Unit
from zk0d.errors import ConfigError, UnavailableError, UsageError, Zk0dError
from zk0d.learning.statistics import Statistics
from zk0d.learning.trained import TrainedPolicy
from zk0d.release.checkpoint import joints_of, rate_of, robot_types_of


def arm_of(folder: Path, **content: Any) -> Arm:
    """A mock robot's, by a file."""
    folder.mkdir(exist_ok=True)
    file = folder / "robot.json"
    told = {"type": "mock_robot", "id": "mine", "calibration_dir": str(folder)} | content
    file.write_text(json.dumps(told))
    read = RobotFile.read(file)
    return Arm.of(read, read.driver())


def read(folder: Path) -> TrainedPolicy:
    return TrainedPolicy.read(folder, "latest", robot_types_of(folder), joints_of(folder))


class Case:
    """A policy and an arm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.arm: dict[str, Any] = {}
        self.policy: dict[str, Any] = {}
        self.asked: dict[str, Any] = {}

    def fit(self) -> Fit:
        place = write_policy(self.folder / "policy", **self.policy)
        policy = read(place)
        asked = {"rate": rate_of(place)} | self.asked
        return check(policy, policy.statistics(), arm_of(self.folder / "arm", **self.arm), **asked)

    def refused(self) -> Zk0dError:
        with pytest.raises(Zk0dError) as refused:
            self.fit()
        shutil.rmtree(self.folder / "policy")
        assert refused.value.message.endswith(".")
        assert refused.value.message.count(". ") <= 1
        return refused.value


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_a_policy_of_this_arm_fits(case: Case) -> None:
    fits = case.fit()
    assert fits == Fit({"front": "front"}, 30.0, ())
    assert fits.renamed == {}


def test_joints_in_another_order_are_refused(case: Case) -> None:
    case.arm = {"joints": [*SO101[1::-1], *SO101[2:]]}
    error = case.refused()
    assert error.reason == "robot_mismatch"
    assert "in another order than those of latest's recordings" in error.message


def test_other_joints_are_refused(case: Case) -> None:
    case.arm = {"joints": [*SO101[:5], "claw"]}
    assert "are others than those of latest's recordings" in case.refused().message


def test_another_number_of_joints_is_refused(case: Case) -> None:
    case.arm = {"joints": [*SO101, "neck"]}
    assert "the state has 7 values" in case.refused().message
    case.policy = {"names": ()}
    assert "the state has 7 values" in case.refused().message


def test_joints_whose_names_the_policy_does_not_say_are_told(case: Case) -> None:
    case.policy = {"names": ()}
    assert any("compare their order" in notice for notice in case.fit().notices)


def test_another_robot_is_refused_unless_it_is_allowed(case: Case) -> None:
    case.policy = {"robot_types": ("koch_follower",)}
    error = case.refused()
    assert "the robot is a mock_robot, that of latest's recordings a koch_follower" in error.message
    case.asked = {"mixed_units": True}
    assert any("--allow-mixed-units lets it pass" in notice for notice in case.fit().notices)


def test_of_several_robots_one_has_to_be_the_arms(case: Case) -> None:
    case.policy = {"robot_types": ("koch_follower", "mock_robot")}
    assert case.fit().notices == ()


def test_a_robot_that_is_not_told_is_a_notice(case: Case) -> None:
    case.policy = {"robot_types": ("unknown",)}
    assert any("does not say of which robot" in notice for notice in case.fit().notices)


def ranges(**changed: tuple[float, float]) -> Statistics:
    """The usual ranges, but for some joints'."""
    pairs = dict(zip(SO101, zip(LOW, HIGH, strict=True), strict=True)) | changed
    low, high = zip(*pairs.values(), strict=True)
    return statistics(low, high)


@pytest.mark.parametrize(
    ("told", "degrees", "said"),
    [
        (ranges(wrist_roll=(-150.0, 30.0)), False, "as degrees, the robot's from -100 to 100"),
        (
            statistics((-1.1, -1.5, -0.4, -0.8, -2.0, 0.0), (1.1, 0.2, 1.5, 0.8, 0.9, 100.0)),
            True,
            "as radians, the robot's are degrees",
        ),
        (
            ranges(wrist_roll=(-60.0, 30.0), shoulder_lift=(-100.0, 12.0)),
            True,
            "shoulder_lift.pos ends at 100 and no joint goes further",
        ),
        (ranges(elbow_flex=(1500.0, 2500.0)), True, "as servo ticks"),
        (ranges(gripper=(0.0, 1.0)), True, "as a share of 1"),
        (ranges(gripper=(-40.0, 90.0)), True, "the robot's from 0 to 100"),
        (ranges(shoulder_pan=(95.0, 140.0)), True, "its zero lies elsewhere"),
    ],
)
def test_other_units_are_refused(case: Case, told: Statistics, degrees: bool, said: str) -> None:
    case.policy, case.arm = {"told": told}, {"degrees": degrees}
    error = case.refused()
    assert error.reason == "units_mismatch"
    assert said in error.message
    case.asked = {"mixed_units": True}
    assert any(said in notice for notice in case.fit().notices)


@pytest.mark.parametrize("degrees", [True, False])
def test_usual_ranges_pass_in_either_unit(case: Case, degrees: bool) -> None:
    case.arm = {"degrees": degrees}
    case.policy = {"told": ranges(wrist_roll=(-80.0, 45.0))}
    assert case.fit().notices == ()


def test_units_that_a_driver_does_not_tell_are_a_notice(case: Case) -> None:
    case.arm = {"degrees": None}
    assert any("in which units shoulder_pan.pos is" in notice for notice in case.fit().notices)


def test_an_arm_that_was_never_calibrated_is_refused(case: Case) -> None:
    case.arm = {"calibrated": False}
    error = case.refused()
    assert error.reason == "not_calibrated"
    assert "lerobot-calibrate --robot.type=mock_robot" in error.message


CAMERA = {"width": 96, "height": 96, "fps": 30}


def test_a_missing_camera_is_refused_and_a_name_suggested(case: Case) -> None:
    case.arm = {"cameras": {"overhead": CAMERA}}
    error = case.refused()
    assert error.reason == "camera_missing"
    assert "map it (--camera overhead=front)" in error.message
    case.arm = {"cameras": {}}
    assert "the robot has none" in case.refused().message


def test_a_camera_that_is_mapped_is_renamed_for_lerobot(case: Case) -> None:
    case.arm = {"cameras": {"overhead": CAMERA}}
    case.asked = {"cameras": {"overhead": "front"}}
    images = "observation.images"
    assert case.fit().renamed == {f"{images}.overhead": f"{images}.front"}


def test_a_mapping_that_means_nothing_is_refused(case: Case) -> None:
    case.arm = {"cameras": {"top": CAMERA, "front": CAMERA}}
    case.asked = {"cameras": {"tpo": "front"}}
    assert "has no camera 'tpo' (did you mean 'top'?)" in case.refused().message
    case.asked = {"cameras": {"top": "fornt"}}
    assert "knows no camera 'fornt' (did you mean 'front'?)" in case.refused().message
    case.asked = {"cameras": {"top": "front"}}
    assert "leave one out, such as --camera front=" in case.refused().message
    case.asked = {"cameras": {"top": "front", "front": ""}}
    assert set(case.fit().renamed.values()) == {
        "observation.images.front",
        "observation.images.front_left_out",
    }


def test_a_policy_that_spares_cameras_takes_fewer_but_no_unknown_one(case: Case) -> None:
    case.policy = {"family": "smolvla", "cameras": ("front", "wrist")}
    assert case.fit().cameras == {"front": "front"}
    case.arm = {"cameras": {"front": CAMERA, "gripper_cam": CAMERA}}
    assert "--camera gripper_cam=wrist" in case.refused().message


def test_pictures_of_another_size_are_a_notice(case: Case) -> None:
    case.arm = {"cameras": {"front": {"width": 640, "height": 480, "fps": 30}}}
    (notice,) = case.fit().notices
    assert "pictures of 640x480, latest was trained on 96x96" in notice


def test_a_slow_camera_is_refused(case: Case) -> None:
    case.arm = {"cameras": {"front": CAMERA | {"fps": 15}}}
    error = case.refused()
    assert error.reason == "rate_mismatch"
    assert "gives 15 pictures per second, latest acts 30 times" in error.message


def test_another_rate_than_the_policys_is_refused(case: Case) -> None:
    case.asked = {"asked_rate": 20.0}
    assert case.refused().reason == "rate_mismatch"


def test_a_rate_that_is_not_told_is_a_notice(case: Case) -> None:
    case.policy = {"fps": None}
    fits = case.fit()
    assert fits.fps == 30.0
    assert any("--fps" in notice for notice in fits.notices)
    case.asked = {"asked_rate": 20.0}
    assert case.fit() == Fit({"front": "front"}, 20.0, ())


def test_the_right_groups_statistics_are_taken_or_it_is_refused(tmp_path: Path) -> None:
    groups = {"koch": statistics(), "mock": statistics(), "ann": statistics()}
    policy = read(write_policy(tmp_path / "policy", groups=groups))
    arm = arm_of(tmp_path / "arm")
    assert group_for(policy, arm, "", "") == "mock"
    assert group_for(policy, arm, "koch", "") == "koch"
    assert group_for(policy, arm, "", "ann") == "ann"
    with pytest.raises(UsageError, match="has no statistics of 'bob'; it has ann, koch, mock"):
        group_for(policy, arm, "bob", "")
    shutil.rmtree(policy.folder / "statistics" / "mock")
    with pytest.raises(UsageError, match="none is a mock_robot's or called bob"):
        group_for(read(policy.folder), arm, "", "bob")
    plain = read(write_policy(tmp_path / "plain"))
    assert group_for(plain, arm, "", "ann") == ""
    with pytest.raises(UsageError, match="all arms share its statistics"):
        group_for(plain, arm, "ann", "")


def change_tensor(pattern: str, key: str, value: float | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (file,) = folder.glob(pattern)
        tensors = safetensors.numpy.load_file(file)
        if value is None:
            del tensors[key]
        else:
            tensors[key] = np.full_like(tensors[key], value)
        safetensors.numpy.save_file(tensors, file)

    return change


def without_step(folder: Path) -> None:
    file = folder / "policy_postprocessor.json"
    content = json.loads(file.read_text())
    content["steps"] = content["steps"][1:]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_tensor("*_normalizer*", "observation.state.mean", None), "no mean of 'observation"),
        (change_tensor("*_unnormalizer*", "action.std", None), "no std of 'action'"),
        (change_tensor("*_unnormalizer*", "action.std", 3.0), "the two of them differ"),
        (change_tensor("*_unnormalizer*", "action.mean", np.nan), "something else than numbers"),
        (without_step, "no mean of 'action'"),
        (
            change_tensor("*_normalizer*", "observation.images.front.mean", None),
            "no mean of camera 'front'",
        ),
        (lambda folder: (folder / "policy_postprocessor.json").unlink(), "cannot be read"),
    ],
)
def test_processors_that_are_not_whole_are_refused(
    tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    folder = write_policy(tmp_path / "policy")
    read(folder).check_processors()
    change(folder)
    with pytest.raises(ConfigError, match=said):
        read(folder).check_processors()


def test_processors_that_change_nothing_are_refused(tmp_path: Path) -> None:
    idle = statistics((-1.0,) * 6, (1.0,) * 6, std=1.0)
    folder = write_policy(tmp_path / "policy", idle)
    with pytest.raises(ConfigError, match="change nothing, as before any training"):
        read(folder).check_processors()


def test_a_groups_processors_are_looked_at(tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "policy", groups={"mock": statistics()})
    change_tensor("statistics/mock/*_unnormalizer*", "action.mean", None)(folder)
    read(folder).check_processors()
    with pytest.raises(ConfigError, match="statistics/mock are not whole"):
        read(folder).check_processors("mock")


def test_an_so101_is_read_as_lerobot_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    text = (
        "type: so101_follower\nport: /dev/ttyACM0\nid: my_arm\nmax_relative_target: 5\n"
        f"calibration_dir: {tmp_path}\n"
        "cameras: {front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}\n"
    )
    file.write_text(text)
    found = RobotFile.read(file)
    assert (found.kind, found.config.id) == ("so101_follower", "my_arm")
    assert found.config.max_relative_target == 5.0
    nested = tmp_path / "rollout.yaml"
    nested.write_text("robot:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    assert RobotFile.read(nested).content == found.content


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("type: so999_follower\n", "knows no robot 'so999_follower'"),
        ("type: so101_folower\n", "did you mean 'so101_follower'"),
        ("port: /dev/ttyACM0\n", "has no robot's 'type'"),
        ("type: so101_follower\n", "Missing required field.*port"),
        ("type: so101_follower\nport: a\nprot: b\n", "prot"),
        (
            "type: so101_follower\nport: a\ncameras: {f: {type: opencv, index_or_path: 0}}\n",
            "width",
        ),
        ("- 1\n", "has no robot's 'type'"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_a_robots_file_that_lerobot_does_not_take_is_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        RobotFile.read(file)
    with pytest.raises(ConfigError, match="No such file"):
        RobotFile.read(tmp_path / "none.yaml")


def test_a_driver_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scservo_sdk", None)
    file = tmp_path / "arm.yaml"
    file.write_text(f"type: so101_follower\nport: /dev/null\ncalibration_dir: {tmp_path}\n")
    with pytest.raises(UnavailableError, match=r"pip install 'lerobot\[feetech\]=="):
        RobotFile.read(file).driver()


def test_an_arm_tells_units_and_how_far_joints_go(tmp_path: Path) -> None:
    arm = arm_of(tmp_path)
    assert arm.state == arm.action == JOINTS
    assert arm.units["gripper.pos"] is Unit.PERCENT
    assert list(arm.reach["shoulder_pan.pos"]) == pytest.approx([-90, 90], abs=0.1)
