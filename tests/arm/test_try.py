"""``zk0bot policy try`` with LeRobot's mock robot: LeRobot's own factory, rollout and loop."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.arm.policies import HIGH, JOINTS, statistics, write_policy
from tests.arm.test_fit import change_tensor
from tests.mocks.mock_robot import MockRobot
from zk0d.arm.tries import Tries, weights_sha256
from zk0d.cli.main import app
from zk0d.errors import (
    ConfigError,
    DataError,
    UnavailableError,
    UsageError,
    Zk0dError,
)
from zk0d.learning.statistics import FeatureStatistics, Statistics

runner = CliRunner()


class FakeKeys:
    """A person who presses these keys, one at each question."""

    pressed = ""
    asked: list[str]
    #: Of the episode that runs, or ran last.
    stop: threading.Event

    def __init__(self) -> None:
        FakeKeys.asked = []

    def ask(self, question: str, answers: str) -> str:
        FakeKeys.asked.append(question)
        key, FakeKeys.pressed = FakeKeys.pressed[0], FakeKeys.pressed[1:]
        if key == "^":
            raise KeyboardInterrupt
        assert key in answers, f"{key!r} is no answer to {question!r}"
        return key

    @contextlib.contextmanager
    def watched(self, stop: threading.Event) -> Iterator[None]:
        FakeKeys.stop = stop
        yield


def press_a_key() -> None:
    FakeKeys.stop.set()


class Desk:
    """A person's policy, robot and home."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.policy = folder / "policy"
        self.robot = folder / "robot.json"
        self.patch = patch
        patch.setattr("zk0d.cli.keys.Keys", FakeKeys)
        patch.setattr(MockRobot, "when_sent", lambda robot: None)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        # LeRobot takes three seconds for the way back; where it ends is the same.
        patch.setattr("lerobot.rollout.strategies.core.precise_sleep", lambda seconds: None)
        MockRobot.connected_ones.clear()
        self.write_robot()

    def write_robot(self, **content: Any) -> None:
        told = {"type": "mock_robot", "id": "mine", "calibration_dir": str(self.folder)}
        self.robot.write_text(json.dumps(told | content))

    @contextlib.contextmanager
    def at_a_terminal(self) -> Iterator[None]:
        """Ctrl-C means what it does there: a test that runs in the background ignores it."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def run(self, *more: str, keys: str = "", seconds: float = 0.3) -> Result:
        FakeKeys.pressed = keys
        words = ["policy", "try", str(self.policy), "--robot-config", str(self.robot)]
        usual = ["--device", "cpu", "--seconds", str(seconds), "--folder", str(self.folder)]
        with self.at_a_terminal():
            return runner.invoke(app, [*words, *usual, *more])

    def refused(self, *more: str) -> Zk0dError:
        """What it says; nothing was connected by then."""
        done = self.run(*more)
        assert isinstance(done.exception, Zk0dError), done.output
        assert MockRobot.connected_ones == []
        return done.exception

    def after(self, commands: int, do: Callable[[], None]) -> None:
        """Do something when the arm has got so many commands."""

        def look(robot: MockRobot) -> None:
            if len(robot.sent) == commands:
                do()

        self.patch.setattr(MockRobot, "when_sent", look)

    @property
    def arm(self) -> MockRobot:
        return MockRobot.connected_ones[-1]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


def asks_for_a_jump() -> Statistics:
    """Of a policy whose actions lie far beyond what its recordings asked for."""
    usual = statistics()
    action = usual.features["action"]
    far = action.model_copy(update={"mean": tuple(high + 1000.0 for high in HIGH)})
    return Statistics(features={**usual.features, "action": far})


def test_a_policy_that_asks_for_a_jump_is_held(desk: Desk) -> None:
    write_policy(desk.policy, asks_for_a_jump())
    desk.after(25, press_a_key)
    done = desk.run("--episodes", "1", "--yes", keys="\ny", seconds=600)
    assert done.exit_code == 0, done.output
    places = np.array([[0.0] * 6, *([sent[name] for name in JOINTS] for sent in desk.arm.sent)])
    # The ranges at twice a second and 30 ticks, and a margin of a twentieth.
    ranges = np.subtract(HIGH, statistics().features["action"].min)
    assert (np.abs(np.diff(places, axis=0)) <= ranges / 15 + 1e-6).all()
    assert (places <= np.minimum(np.add(HIGH, ranges / 20), [90.1] * 5 + [100]) + 1e-6).all()
    assert places.max(0) == pytest.approx(
        np.minimum(np.add(HIGH, ranges / 20), [90.1] * 5 + [100]), abs=0.1
    ), "it got as far as it may"
    assert "commands" in done.output
    # It went back to where it stood, and was let go.
    assert places[-1] == pytest.approx([0.0] * 6, abs=1e-6)
    assert not desk.arm.is_connected


def test_episodes_are_counted_and_the_rate_has_an_interval(desk: Desk) -> None:
    write_policy(desk.policy)
    done = desk.run("--episodes", "3", keys="y\ny\na\nn\ny")
    assert done.exit_code == 0, done.output
    assert "Move the arm within these limits?" in FakeKeys.asked[0]
    assert FakeKeys.asked[3].startswith("episode 2 of 3")
    assert FakeKeys.asked[5].startswith("episode 2 of 3"), "once more"
    assert "2 of 3 succeeded now" in done.output
    assert "tried 3, 2 succeeded: 67%, 95 % interval 21% to 94%" in done.output
    assert "shoulder_pan.pos" in done.output, "limits are shown"
    (tally,) = Tries.of_user().all()
    assert (tally.tried, tally.succeeded, tally.robot_type) == (3, 2, "mock_robot")
    assert tally.policy_sha256 == weights_sha256(desk.policy)
    done = desk.run("--episodes", "1", "--yes", keys="\nn")
    assert "0 of 1 succeeded now" in done.output
    assert "tried 4, 2 succeeded" in done.output


def test_who_says_no_moves_nothing(desk: Desk) -> None:
    write_policy(desk.policy)
    done = desk.run(keys="n")
    assert done.exit_code == 0
    assert "nothing was moved" in done.output
    assert MockRobot.connected_ones == []
    assert not Tries.of_user().file.exists()


def test_quitting_keeps_what_was_counted(desk: Desk) -> None:
    write_policy(desk.policy)
    done = desk.run("--yes", keys="\ny\nq")
    assert done.exit_code == 0
    assert "1 of 1 succeeded now" in done.output
    done = desk.run("--yes", keys="q")
    assert "0 of 0 succeeded now" in done.output
    assert desk.arm.sent[-1] == dict.fromkeys(JOINTS, 0.0), "it stays where it stood"
    assert [tally.tried for tally in Tries.of_user().all()] == [1]


def test_a_key_ends_an_episode_and_not_the_try(desk: Desk) -> None:
    write_policy(desk.policy)
    desk.after(5, press_a_key)
    done = desk.run("--episodes", "1", "--yes", keys="\ny", seconds=600)
    assert done.exit_code == 0, done.output
    assert "1 of 1 succeeded now" in done.output


def test_ctrl_c_ends_the_try_and_the_arm_goes_back(desk: Desk) -> None:
    write_policy(desk.policy)
    desk.after(5, lambda: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    done = desk.run("--yes", keys="\n", seconds=600)
    assert done.exit_code == 130, done.output
    assert "0 of 0 succeeded now" in done.output
    assert not desk.arm.is_connected
    assert list(desk.arm.places.values()) == pytest.approx([0.0] * 6, abs=1e-6)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_ctrl_c_lets_the_arm_go_at_once(desk: Desk) -> None:
    write_policy(desk.policy)

    def look(robot: MockRobot) -> None:
        if len(robot.sent) in (5, 8):  # while it moves, and on its way back
            signal.raise_signal(signal.SIGINT)

    desk.patch.setattr(MockRobot, "when_sent", look)
    done = desk.run("--yes", keys="\n", seconds=600)
    assert done.exit_code == 130, done.output
    assert len(desk.arm.sent) == 8
    assert not desk.arm.is_connected


def test_ctrl_c_twice_in_one_movement_does_not_move_it_again(desk: Desk) -> None:
    write_policy(desk.policy)

    def look(robot: MockRobot) -> None:
        if len(robot.sent) == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    desk.patch.setattr(MockRobot, "when_sent", look)
    done = desk.run("--yes", keys="\n", seconds=600)
    assert done.exit_code == 130, done.output
    assert len(desk.arm.sent) == 5
    assert not desk.arm.is_connected


def test_ctrl_c_at_a_question_lets_the_arm_go(desk: Desk) -> None:
    write_policy(desk.policy)
    done = desk.run("--yes", keys="\n^")
    assert done.exit_code == 130
    assert not desk.arm.is_connected


def test_a_cable_that_is_pulled_ends_the_try_with_a_sentence(desk: Desk) -> None:
    write_policy(desk.policy)
    desk.write_robot(fails_after=4)
    done = desk.run("--yes", keys="\n", seconds=600)
    assert isinstance(done.exception, UnavailableError)
    assert "the episode was cut (ConnectionError: no status packet" in done.exception.message
    assert not desk.arm.is_connected
    assert Tries.of_user().all() == ()


def test_a_policy_whose_actions_are_not_numbers_is_stopped(desk: Desk) -> None:
    write_policy(desk.policy)
    change_tensor("model.safetensors", "model.action_head.bias", np.nan)(desk.policy)
    done = desk.run("--yes", keys="\n")
    assert isinstance(done.exception, Zk0dError)
    assert "which is not a number" in done.exception.message


def test_a_group_has_its_own_statistics_on_the_arm(desk: Desk) -> None:
    write_policy(desk.policy, statistics(), groups={"mock": asks_for_a_jump()})
    desk.after(25, press_a_key)
    done = desk.run("--episodes", "1", "--yes", keys="\ny", seconds=600)
    assert done.exit_code == 0, done.output
    assert "statistics of 'mock'" in done.output
    highest = np.max([list(sent.values()) for sent in desk.arm.sent], axis=0)
    assert (highest >= HIGH).all(), "the group's processors ask for the jump"


def test_a_camera_under_another_name_is_seen(desk: Desk) -> None:
    write_policy(desk.policy)
    desk.write_robot(cameras={"top": {"width": 96, "height": 96, "fps": 30}})
    assert isinstance(desk.refused(), DataError)
    done = desk.run("--episodes", "1", "--yes", "--camera", "top=front", keys="\ny")
    assert done.exit_code == 0, done.output
    assert "cameras: top as front" in done.output


def test_the_nodes_settings_map_cameras(desk: Desk) -> None:
    write_policy(desk.policy)
    desk.write_robot(cameras={"top": {"width": 96, "height": 96, "fps": 30}})
    settings = 'name = "ann"\n[cameras]\ntop = "front"\nold = "wrist"\n'
    (desk.folder / "client.toml").write_text(settings)
    assert "cameras: top as front" in desk.run(keys="n").output


@pytest.mark.slow
def test_a_slow_policy_plans_while_the_arm_moves(desk: Desk) -> None:
    write_policy(desk.policy, family="smolvla")
    moves: list[int] = []

    def look(robot: MockRobot) -> None:
        if not FakeKeys.stop.is_set():  # it is on its way back while it is
            moves.append(len(robot.sent))
            if len(moves) % 3 == 0:
                press_a_key()

    desk.patch.setattr(MockRobot, "when_sent", look)
    words = ("--episodes", "2", "--yes", "--rtc", "--task", "pick it up")
    done = desk.run(*words, keys="\ny\nn", seconds=600)
    assert done.exit_code == 0, done.output
    assert "1 of 2 succeeded now" in done.output
    assert len(moves) == 6, "it plans again in the second episode"


def test_only_the_command_is_printed(desk: Desk) -> None:
    write_policy(desk.policy, groups={"mock": statistics()})
    done = desk.run("--print", "--task", "pick it up")
    assert done.exit_code == 0, done.output
    assert MockRobot.connected_ones == []
    first, second, *rest = done.stdout.splitlines()
    assert first.startswith(f"cp -rL --no-preserve=mode {desk.policy} my-policy")
    assert second == "cp statistics/mock/* ."
    words = shlex.split(" ".join(line.rstrip("\\") for line in rest))
    assert words[0] == "lerobot-rollout"
    assert "--robot.type=mock_robot" in words
    assert "--task=pick it up" in words
    assert {"--fps=30", "--duration=0.3", "--device=cpu"} <= set(words)
    assert "holds none of the limits" in done.stderr


def test_refusals_before_a_motor_moves(desk: Desk) -> None:
    write_policy(desk.policy, lerobot="0.1.0")
    assert "LeRobot 0.1.0" in desk.refused().message

    def anew(**content: Any) -> None:
        shutil.rmtree(desk.policy)
        write_policy(desk.policy, **content)

    anew()
    (desk.policy / "own.py").write_text("print('here')")
    error = desk.refused()
    assert error.reason == "model_unsafe"
    anew()
    (desk.policy / "release.json").write_text("{}")
    assert isinstance(desk.refused(), ConfigError)
    anew()
    with (desk.policy / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    origin = desk.policy / "provenance.json"
    content = json.loads(origin.read_text()) | {"tensors": {"model.safetensors": {"a": "F32 [1]"}}}
    origin.write_text(json.dumps(content))
    assert desk.refused().reason == "torn_weights"
    anew(family="smolvla")
    assert "--task: " in desk.refused().message
    anew(robot_types=("koch_follower",))
    assert desk.refused().reason == "robot_mismatch"
    anew()
    error = desk.refused("--fps", "10")
    assert error.reason == "rate_mismatch"
    done = runner.invoke(app, ["policy", "try", str(desk.policy), "--folder", str(desk.folder)])
    assert isinstance(done.exception, UsageError)
    assert "--robot-config" in str(done.exception)


def test_without_a_terminal_nothing_begins(desk: Desk) -> None:
    desk.patch.undo()
    done = desk.run("--yes")
    assert isinstance(done.exception, UsageError)
    assert "there is no terminal" in str(done.exception)


def test_far_numbers_of_statistics_do_not_hide_the_ranges() -> None:
    """The jump of these tests is one of the mean alone."""
    told = asks_for_a_jump().features["action"]
    assert isinstance(told, FeatureStatistics)
    assert told.max == HIGH
