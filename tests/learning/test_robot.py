"""Recordings of different robots are told apart by names, order, type and ranges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from tests.learning.damage import change_info, change_rows, data_table
from zk0d.cli.main import app
from zk0d.config.machine import ServerSettings
from zk0d.errors import DataError, ExitCode
from zk0d.learner.evaluator import CoordinatorEvaluator
from zk0d.learning.recordings import open_recordings
from zk0d.learning.robot import check_robot, merge_robots
from zk0d.learning.spec import LONGEST_NAME, MOST_VALUES, Components, RobotDescription
from zk0d.simulation.sources import nodes_of, of_nodes

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
#: Ranges of an SO-101's joints in degrees, as a task uses them; the gripper in percent.
DEGREES = np.array([[-60, 70], [-100, 40], [-20, 95], [-30, 90], [-55, 60], [2, 80]], float)
RADIANS = np.deg2rad(DEGREES)
TICKS = 2048 + DEGREES * 4096 / 360
NORMALIZED = DEGREES / 100


def components(ranges: np.ndarray = DEGREES, names: tuple[str, ...] = ()) -> Components:
    return Components(
        names=names or tuple(f"{joint}.pos" for joint in JOINTS),
        low=tuple(ranges[:, 0]),
        high=tuple(ranges[:, 1]),
    )


def robot(
    ranges: np.ndarray = DEGREES, names: tuple[str, ...] = (), robot_type: str = "so101_follower"
) -> RobotDescription:
    both = components(ranges, names)
    return RobotDescription(robot_type=robot_type, state=both, action=both)


def refusal(own: RobotDescription, like: RobotDescription) -> DataError:
    with pytest.raises(DataError) as error:
        check_robot(own, like, where="left", whose="right")
    assert "\n" not in error.value.message
    assert error.value.message.startswith("left: ")
    return error.value


@pytest.mark.parametrize(
    ("ranges", "units"),
    [(RADIANS, "radians"), (TICKS, "servo ticks"), (NORMALIZED, "a range of 1")],
    ids=["radians", "ticks", "normalized"],
)
def test_another_scale_is_refused_both_ways(ranges: np.ndarray, units: str) -> None:
    for own, like, said in (
        (robot(ranges), robot(), f"as {units} beside degrees"),
        (robot(), robot(ranges), f"as degrees beside {units}"),
    ):
        error = refusal(own, like)
        assert error.reason == "units_mismatch"
        assert said in error.message
        assert "allow-mixed-units" in error.message
        notices = check_robot(own, like, where="left", whose="right", mixed_units=True)
        assert any("another scale" in notice for notice in notices)


@pytest.mark.parametrize("scale", [1.0, np.pi / 180, 0.01], ids=["degrees", "radians", "shares"])
@pytest.mark.parametrize("seed", range(10))
def test_another_calibration_is_not_another_scale(seed: int, scale: float) -> None:
    """Joints that read two standard deviations more or less; a range is about four of them."""
    dice = np.random.default_rng(seed)
    middle = DEGREES.mean(1, keepdims=True) * dice.uniform(-1, 1, (6, 1))
    ranges = scale * (DEGREES - DEGREES.mean(1, keepdims=True) + middle)
    away = np.ptp(ranges, axis=1) / 2 * dice.choice([-1, 1], 6)
    own, like = robot(ranges + away[:, None]), robot(ranges)
    for one, other in ((own, like), (like, own)):
        assert check_robot(one, other, where="left", whose="right") == []


@pytest.mark.parametrize("seed", range(20))
def test_other_tasks_of_one_robot_pass(seed: int) -> None:
    """Joints move less, elsewhere, and one of them stands still."""
    dice = np.random.default_rng(seed)
    share = np.sort(dice.random((6, 2)), axis=1)
    part = DEGREES[:, :1] + share * np.ptp(DEGREES, axis=1)[:, None]
    part[dice.integers(5)] = [-0.2, 0.3]
    own = robot(part)
    for notices in (
        check_robot(own, robot(), where="left", whose="right"),
        check_robot(robot(), own, where="left", whose="right"),
    ):
        assert all("may have another scale" in notice for notice in notices)


@pytest.mark.parametrize("joint", range(6))
def test_one_component_in_ticks_is_refused(joint: int) -> None:
    ranges = DEGREES.copy()
    ranges[joint] = TICKS[joint]
    error = refusal(robot(ranges), robot())
    assert error.reason == "units_mismatch"
    assert f"{JOINTS[joint]}.pos has another scale" in error.message


@pytest.mark.parametrize("joints", [(0, 1, 2), (1, 3, 4)])
def test_three_joints_in_radians_are_refused(joints: tuple[int, ...]) -> None:
    ranges = DEGREES.copy()
    ranges[list(joints)] = RADIANS[list(joints)]
    error = refusal(robot(ranges), robot())
    assert error.reason == "units_mismatch"
    assert "and 2 more have another scale" in error.message
    assert refusal(robot(), robot(ranges)).reason == "units_mismatch"


def test_a_gripper_on_another_scale_is_refused_and_a_still_one_passes() -> None:
    ranges = DEGREES.copy()
    ranges[5] /= 100
    assert (
        "gripper.pos has another scale: 0.02 to 0.8 here" in refusal(robot(ranges), robot()).message
    )
    ranges[5] = [0.0, 0.01]
    assert check_robot(robot(ranges), robot(), where="left", whose="right") == []


def test_a_cohort_goes_as_far_as_all_of_it() -> None:
    cohort = merge_robots(
        [robot((DEGREES + DEGREES.mean(1, keepdims=True)) / 2), robot(), RobotDescription()]
    )
    assert cohort == robot()
    assert refusal(robot(RADIANS), cohort).reason == "units_mismatch"
    assert merge_robots([]) is None


@pytest.mark.parametrize(
    "names", [JOINTS[::-1], (JOINTS[1], JOINTS[0], *JOINTS[2:])], ids=["reversed", "two swapped"]
)
def test_another_order_is_refused_with_both_lists(names: tuple[str, ...]) -> None:
    error = refusal(robot(names=names), robot())
    assert error.reason == "robot_mismatch"
    assert "in another order than those of right" in error.message
    assert ", ".join(names) in error.message
    assert ", ".join(components().names) in error.message
    with pytest.raises(DataError, match="another order"):
        check_robot(robot(names=names), robot(), where="x", whose="y", mixed_units=True)


def test_other_names_and_widths_are_refused_with_both_lists() -> None:
    others = ("waist", *JOINTS[1:])
    error = refusal(robot(names=others), robot())
    assert error.reason == "robot_mismatch"
    assert "others than those of right" in error.message
    assert "waist, shoulder_lift" in error.message
    narrow = robot(DEGREES[:5], names=JOINTS[:5])
    assert "has 5 values (shoulder_pan, " in refusal(narrow, robot()).message


def test_names_that_lerobots_versions_write_differently_are_one() -> None:
    for kind in ("so100_follower", "so101", "so_follower", "SO-101", "unknown", ""):
        assert check_robot(robot(names=JOINTS, robot_type=kind), robot(), where="", whose="") == []


def test_another_type_of_robot_with_equal_joints_is_refused_unless_allowed() -> None:
    koch = robot(robot_type="koch_follower")
    error = refusal(koch, robot())
    assert error.reason == "robot_mismatch"
    assert "a koch_follower, that of right a so101_follower" in error.message
    (notice,) = check_robot(koch, robot(), where="left", whose="right", mixed_units=True)
    assert "koch_follower" in notice


def test_what_is_unknown_is_a_notice() -> None:
    unnamed = RobotDescription(state=Components(low=(0.0,) * 6, high=(30.0,) * 6))
    for own, like in ((unnamed, robot()), (robot(), unnamed), (None, robot())):
        notices = check_robot(own, like, where="left", whose="right")
        assert notices
        assert all(notice.startswith("left: ") for notice in notices)
    assert check_robot(robot(), None, where="left", whose="right") == []


@pytest.mark.parametrize(
    "hostile",
    [
        {"names": ["a\nb"]},
        {"names": ["\x1b[2J"]},
        {"names": [""]},
        {"names": ["x" * (LONGEST_NAME + 1)]},
        {"names": ["x"] * (MOST_VALUES + 1)},
        {"names": ["a", "b"], "low": [0.0], "high": [1.0]},
        {"low": [0.0], "high": []},
        {"low": [0.0] * (MOST_VALUES + 1), "high": [1.0] * (MOST_VALUES + 1)},
        {"low": [2.0], "high": [1.0]},
        {"low": ["nan"], "high": ["nan"]},
        {"low": [0.0], "high": ["inf"]},
        {"path": "/home"},
    ],
)
def test_a_hostile_description_is_refused(hostile: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RobotDescription.model_validate_json(json.dumps({"state": hostile}))
    with pytest.raises(ValidationError):
        RobotDescription.model_validate_json(json.dumps({"robot-type": "a\x07"}))


def test_the_longest_description_makes_a_short_sentence() -> None:
    names = tuple(f"{n:064d}" for n in range(MOST_VALUES))
    long = RobotDescription(state=Components(names=names))
    assert len(refusal(long, RobotDescription(state=Components(names=names[::-1]))).message) < 8000


# --- where datasets are compared ------------------------------------------------------------------


def rescaled(folder: Path, factor: float) -> Path:
    """The dataset in other units, all of its values."""

    def change(rows: list[dict[str, list[float]]]) -> None:
        for row in rows:
            for name in ("observation.state", "action"):
                row[name] = [value * factor for value in row[name]]

    change_rows(data_table(folder), change)
    return folder


def reordered(folder: Path) -> Path:
    def change(info: dict[str, dict[str, dict[str, list[str]]]]) -> None:
        for name in ("observation.state", "action"):
            info["features"][name]["names"].reverse()

    change_info(folder, change)
    return folder


def unnamed(folder: Path) -> Path:
    def change(info: dict[str, dict[str, dict[str, None]]]) -> None:
        for name in ("observation.state", "action"):
            info["features"][name]["names"] = None

    change_info(folder, change)
    return folder


def check(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "check", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_a_description_comes_from_metadata_and_statistics(recordings_folder: Path) -> None:
    recordings = open_recordings(f"local:{recordings_folder}")
    found = recordings.robot(recordings.finite_statistics())
    assert found.robot_type == "so101_follower"
    assert found.action.names[0] == "shoulder_pan.pos"
    assert found.action.high == tuple(recordings.columns["action"].double().max(0).values.tolist())
    assert recordings.robot().action.low == (), "without statistics ranges are unknown"


def test_data_check_compares_robots(recordings_folder: Path, copied_recordings: Path) -> None:
    a, b = str(recordings_folder), str(rescaled(copied_recordings, np.pi / 180))
    code, said = check(a, b)
    assert code == ExitCode.UNAVAILABLE
    assert "together wrong" in said
    assert "another scale" in said
    code, said = check(a, b, "--allow-mixed-units")
    assert code == 0, said
    assert "together notice" in said
    reordered(copied_recordings)
    code, said = check(a, b, "--allow-mixed-units")
    assert code == ExitCode.UNAVAILABLE
    assert "in another order than" in said
    unnamed(copied_recordings)
    code, said = check(a, b, "--allow-mixed-units")
    assert code == 0, said
    assert "are unknown; compare their order" in said


def test_a_simulation_refuses_other_robots(
    recordings_folder: Path, copied_recordings: Path, tmp_path: Path
) -> None:
    uris = [f"local:{recordings_folder}", f"local:{rescaled(copied_recordings, 11.4)}"]
    with pytest.raises(DataError, match="another scale") as error:
        of_nodes(nodes_of(uris), 0.2)
    assert error.value.reason == "units_mismatch"
    source = of_nodes(nodes_of(uris), 0.2, mixed_units=True)
    assert any("another scale" in note for note in source.notes)
    for verb in (
        ["simulate", *uris],
        ["compare", *uris],
        ["train", uris[0], "--held-out", uris[1]],
    ):
        done = CliRunner().invoke(app, [*verb, "--folder", str(tmp_path / verb[0])])
        assert isinstance(done.exception, DataError), done.output
        assert done.exception.reason == "units_mismatch"
    reordered(copied_recordings)
    with pytest.raises(DataError, match="in another order"):
        of_nodes(nodes_of(uris), 0.2, mixed_units=True)


def test_an_evaluator_refuses_held_out_recordings_of_two_robots(
    recordings_folder: Path, copied_recordings: Path, tmp_path: Path
) -> None:
    rescaled(copied_recordings, np.pi / 180)
    tables = [
        {"name": name, "dataset-uri": f"local:{folder}"}
        for name, folder in (("a", recordings_folder), ("b", copied_recordings))
    ]
    own = {"state": str(tmp_path), "evaluation": tables, "evaluator": {"device": "cpu"}}
    with pytest.raises(DataError, match=r"evaluation\.b: .* another scale"):
        CoordinatorEvaluator(ServerSettings.parse(own, where="t")).open()
    own["run"] = {"allow-mixed-units": True}
    CoordinatorEvaluator(ServerSettings.parse(own, where="t")).open()
