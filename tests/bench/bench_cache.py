"""Batches out of the frame cache, by where the frames are, against LeRobot's own loader; and what a
second start costs.

Frames of 640 x 480 with two cameras, as an SO-101 records them, in videos as LeRobot encodes them.
All variants take turns within one process, with the same rows; ratios are within a turn.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bench.table import show, spread
from zk0d.daemon.workers import worker_pool

BATCH = 8
BATCHES = 4
TURNS = 7
STARTS = 3
EPISODES, LENGTH = 2, 90
CAMERAS = ("top", "side")
HEIGHT, WIDTH = 480, 640


def main() -> None:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        # A worker, because video encoders write to the terminal themselves.
        with worker_pool(1, Path(folder) / "log") as pool:
            pool.submit(_record, Path(folder) / "recordings").result()
        variants = _variants(Path(folder) / "recordings")
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        dice = np.random.default_rng(0)
        for turn in range(TURNS + 1):
            drawn = [dice.integers(EPISODES * LENGTH, size=BATCH) for _ in range(BATCHES)]
            for name, batch in variants.items():
                began = time.perf_counter()
                for rows in drawn:
                    batch(torch.from_numpy(rows))
                if turn:  # the first warms up
                    seconds[name].append((time.perf_counter() - began) / BATCHES)
        _show_starts(Path(folder) / "recordings")
    peer = seconds["LeRobot's loader"]
    show(
        f"one batch of {BATCH} frames, {len(CAMERAS)} cameras at {WIDTH} x {HEIGHT};"
        f" {TURNS} turns of {BATCHES} batches",
        ("frames are", "ms per batch", "of LeRobot's"),
        [
            (
                name,
                spread([1e3 * each for each in times], "{:.1f}"),
                spread([ours / theirs for ours, theirs in zip(times, peer, strict=True)], "{:.3f}"),
            )
            for name, times in seconds.items()
        ],
    )


def _show_starts(folder: Path) -> None:
    """The first start on some recordings decodes, the second reads what the first has kept."""
    from zk0d.learning.frames import BadFrames, FrameBudget, PixelCache
    from zk0d.learning.recordings import open_recordings

    recordings = open_recordings(f"local:{folder}")
    seconds: dict[str, list[float]] = {"first": [], "second": []}
    for number in range(STARTS):
        for name in seconds:
            budget = FrameBudget(2**31, folder.parent / f"kept-{number}", 2**31)
            began = time.perf_counter()
            PixelCache(recordings, BadFrames(recordings, 0), budget)
            seconds[name].append(time.perf_counter() - began)
    show(
        f"a start on {EPISODES * LENGTH * len(CAMERAS)} frames of {WIDTH} x {HEIGHT};"
        f" {STARTS} times",
        ("start", "seconds", "of the first"),
        [
            (
                name,
                spread(times, "{:.2f}"),
                spread([a / b for a, b in zip(times, seconds["first"], strict=True)], "{:.2f}"),
            )
            for name, times in seconds.items()
        ],
    )


def _record(folder: Path) -> None:
    from lerobot.datasets import LeRobotDataset

    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": (6,), "names": [f"j{i}" for i in range(6)]}
        for name in ("observation.state", "action")
    }
    for camera in CAMERAS:
        features[f"observation.images.{camera}"] = {
            "dtype": "video",
            "shape": (HEIGHT, WIDTH, 3),
            "names": ["height", "width", "channels"],
        }
    dataset = LeRobotDataset.create(
        "local/bench", fps=30, root=folder, use_videos=True, features=features, video_backend="pyav"
    )
    dice = np.random.default_rng(0)
    scene = dice.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    scene = scene.repeat(8, axis=0).repeat(8, axis=1)
    for _ in range(EPISODES):
        for frame in range(LENGTH):
            moved = np.roll(scene, 3 * frame, axis=1)
            dataset.add_frame(
                {
                    "observation.state": dice.random(6, dtype=np.float32),
                    "action": dice.random(6, dtype=np.float32),
                    **{f"observation.images.{camera}": moved for camera in CAMERAS},
                    "task": "bench",
                }
            )
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


def _variants(folder: Path) -> dict[str, Callable[[torch.Tensor], Any]]:
    from lerobot.datasets import LeRobotDataset

    from zk0d.learning.frames import BadFrames, FrameBudget, PixelCache
    from zk0d.learning.recordings import open_recordings

    recordings = open_recordings(f"local:{folder}")
    theirs = LeRobotDataset("local/bench", root=folder, video_backend="pyav", return_uint8=True)

    def cache(memory: int, disk: int) -> Callable[[torch.Tensor], Any]:
        budget = FrameBudget(memory, folder.parent / "cache", disk)
        return PixelCache(recordings, BadFrames(recordings, 0), budget).batch

    whole = 2 * EPISODES * LENGTH * len(CAMERAS) * 3 * HEIGHT * WIDTH
    return {
        "LeRobot's loader": lambda rows: torch.utils.data.default_collate(
            [theirs[row] for row in rows.tolist()]
        ),
        "in memory": cache(whole, 0),
        "in files": cache(0, whole),
        "decoded again": cache(0, 0),
    }
