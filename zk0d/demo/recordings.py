"""Makes recordings of a simulated task: LeRobot v3.0 datasets such as ``lerobot-record`` writes."""

from __future__ import annotations

import shutil
from pathlib import Path

from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets import LeRobotDataset

from zk0d.config.names import check_apart
from zk0d.errors import not_written
from zk0d.files import rename
from zk0d.simulators.calibration import recalibrate
from zk0d.simulators.task import Sector
from zk0d.simulators.tasks import TASKS


def make_recordings(
    folder: Path,
    sector: Sector,
    episodes: int,
    first_seed: int,
    size: int = 96,
    goal_in_state: bool = True,
    task: str = "soreach",
    calibration: tuple[float, ...] = (),
) -> int:
    """Record the scripted expert until ``episodes`` succeeded; returns the number of frames.

    A dataset appears whole or not at all: it is written beside ``folder`` and renamed. Joints are
    recorded ``calibration`` above their standard numbers.

    Raises
    ------
    TryAgainError
        If the disk is full.
    UnavailableError
        If the task's simulator is not installed.
    UsageError
        If the folder lies in other recordings.
    """
    check_apart(folder, "FOLDER")
    simulated = TASKS[task]
    arm = simulated.make(sector, simulated.cameras, size, goal_in_state)
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        dataset = LeRobotDataset.create(
            repo_id=f"local/{folder.name}",
            root=draft,
            fps=simulated.fps,
            features=simulated.features(simulated.cameras, size, goal_in_state),
            robot_type="so101_follower",
            use_videos=True,
            video_backend="pyav",
            streaming_encoding=True,
            encoder_queue_maxsize=0,  # LeRobot leaves frames out that a busy machine is late with
            rgb_encoder=RGBEncoderConfig(vcodec="h264", crf=18),
            encoder_threads=1,
        )
        frames = recorded = 0
        seed = first_seed
        while recorded < episodes:
            demonstration, succeeded = simulated.demonstrate(arm, seed)
            seed += 1
            if not succeeded:
                continue
            for frame in demonstration:
                dataset.add_frame(recalibrate(frame, calibration))
            dataset.save_episode(parallel_encoding=False)
            frames += len(demonstration)
            recorded += 1
        dataset.finalize()
        rename(draft, folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        what = f"{folder}: the recordings could not be written"
        raise not_written(what, error, " or choose another folder") from None
    return frames
