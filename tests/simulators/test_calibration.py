from __future__ import annotations

import numpy as np
import pytest

from zk0d.simulators.calibration import calibrated, calibrations, recalibrate
from zk0d.simulators.soreach import SOREACH_TASK, SoReach, demonstrate
from zk0d.simulators.task import Sector

OFFSETS = (30.0, -20.0, 25.0, 15.0, -10.0, 40.0)


def test_the_same_pose_reads_as_other_numbers() -> None:
    arm, plain = calibrated(SoReach(cameras=()), OFFSETS), SoReach(cameras=())
    seen, expected = arm.reset(3), plain.reset(3)
    difference = seen["observation.state"] - expected["observation.state"]
    assert np.allclose(difference, [*OFFSETS, 0.0, 0.0, 0.0], atol=1e-4), "the goal is no joint's"
    assert arm.task == plain.task
    assert arm.frame == 0


def test_it_takes_commands_in_its_own_numbers() -> None:
    """The expert's commands, recorded in the arm's numbers, succeed on it and nowhere else."""
    frames, succeeded = demonstrate(SoReach(cameras=()), 5, wobble=0.0)
    assert succeeded
    recorded = [recalibrate(frame, OFFSETS) for frame in frames]
    for offsets, expected in ((OFFSETS, True), ((), False)):
        arm = calibrated(SoReach(cameras=()), offsets)
        arm.reset(5)
        outcome = False
        for frame in recorded:
            success, over = arm.step(frame["action"])
            outcome |= success
            if over:
                break
        assert outcome == expected
    assert arm.frame == len(recorded)


def test_pictures_show_the_same() -> None:
    seen = calibrated(SoReach(), OFFSETS).reset(1)
    expected = SoReach().reset(1)
    assert (seen["observation.images.top"] == expected["observation.images.top"]).all()


def test_a_frame_without_offsets_stays() -> None:
    (frame, *_), _ = demonstrate(SoReach(cameras=()), 5)
    again = recalibrate(frame, ())
    assert again.keys() == frame.keys()
    assert (again["action"] == frame["action"]).all()
    arm = SoReach(cameras=())
    assert calibrated(arm, ()) is arm


@pytest.mark.parametrize("seed", range(3))
def test_calibrations_are_about_so_many_deviations_away(seed: int) -> None:
    four = np.array(calibrations(SOREACH_TASK, 4, 2.0, seed))
    frames = [
        frame["observation.state"][:6]
        for number in range(40)
        for frame in demonstrate(SoReach(Sector(), ()), 999 + number)[0]
    ]
    away = np.abs(four) / np.std(frames, axis=0)
    assert away.min() > 1.2
    assert away.max() < 3.0
    assert len({tuple(each) for each in four.tolist()}) == 4
    assert calibrations(SOREACH_TASK, 4, 2.0, seed) == [tuple(each) for each in four.tolist()]
