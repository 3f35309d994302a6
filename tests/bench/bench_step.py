"""A training step of ours against the update of ``lerobot-train``, on one policy and dataset.

Peer: LeRobot 0.6.1's DataLoader (its default workers would be slower on two cores), preprocessor
and ``update_policy``, as its training script calls them. All variants take turns within one
process, a block of steps each; ratios are within a turn.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.bench.table import show, spread
from zk0d.config.run import TrainingSettings
from zk0d.daemon.workers import worker_pool

BATCH = 8
STEPS = 15
TURNS = 9
EPISODES = 12
CAMERAS = ("top", "side")


def main() -> None:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        # A worker, because video encoders write to the terminal themselves.
        with worker_pool(1, Path(folder) / "log") as pool:
            pool.submit(_record, Path(folder) / "recordings").result()
        variants = _variants(Path(folder) / "recordings")
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(TURNS + 1):
            for name, steps in variants.items():
                began = time.perf_counter()
                steps(STEPS)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
    peer = seconds["lerobot-train"]
    plain = seconds["frame cache"]
    rows = []
    for name, times in seconds.items():
        against = plain if "FedProx" in name else peer
        ratios = [theirs / ours for theirs, ours in zip(against, times, strict=True)]
        speed = (
            f"{spread([1 / r for r in ratios])} x time of plain"
            if "FedProx" in name
            else f"{spread(ratios)} x"
        )
        rows.append((name, spread([1e3 * t / STEPS for t in times], "{:.1f}"), speed))
    show(
        f"one optimizer step, tiny SmolVLA, batch {BATCH}, {len(CAMERAS)} cameras;"
        f" {TURNS} turns of {STEPS} steps",
        ("variant", "ms per step", "against lerobot-train"),
        rows,
    )


def _record(folder: Path) -> None:
    from zk0d.demo.recordings import make_recordings
    from zk0d.simulators.task import Sector
    from zk0d.simulators.tasks import TASKS

    # Two cameras, as most SO-101 set-ups have.
    TASKS["soreach"] = replace(TASKS["soreach"], cameras=CAMERAS)
    make_recordings(folder, Sector(), EPISODES, first_seed=0)


def _variants(folder: Path) -> dict[str, Callable[[int], None]]:
    from zk0d.config.machine import CacheSettings

    pixels, features = CacheSettings(vision_features=False), CacheSettings()
    return {
        "lerobot-train": _lerobot(folder),
        "frame cache": _ours(folder, pixels),
        "frame cache, FedProx": _ours(folder, pixels, mu=0.01),
        "feature cache": _ours(folder, features),
    }


def _ours(folder: Path, cache: Any, mu: float = 0.0) -> Callable[[int], None]:
    from zk0d.learning.policy import load_policy, spec_for
    from zk0d.learning.prepared import PreparedRecordings
    from zk0d.learning.recordings import open_recordings
    from zk0d.learning.schedule import CosineSchedule
    from zk0d.learning.train import Moments, StepPlan, train

    recordings = open_recordings(f"local:{folder}")
    policy = load_policy(spec_for("smolvla", "tiny", 0, recordings.summary, {}), device="cpu")
    prepared = PreparedRecordings(recordings, policy, cache)
    batches = prepared.batches(prepared.statistics())
    optimizer = Moments(policy).begin("bench", 1, 1e-10)
    schedule = CosineSchedule(peak=1e-4, end=1e-5, warmup_steps=0, total_steps=10_000)

    def steps(count: int) -> None:
        plan = StepPlan(
            TrainingSettings(local_steps=count, batch_size=BATCH), 0, schedule, 0, proximal_mu=mu
        )
        train(policy, batches, prepared.usable, optimizer, plan)

    return steps


def _lerobot(folder: Path) -> Callable[[int], None]:
    from accelerate import Accelerator
    from lerobot.configs.default import DatasetConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.datasets import (
        EpisodeAwareSampler,
        LeRobotDataset,
        LeRobotDatasetMetadata,
        resolve_delta_timestamps,
    )
    from lerobot.optim.factory import make_optimizer_and_scheduler
    from lerobot.policies import make_policy, make_pre_post_processors
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    from zk0d.config.families import TINY
    from zk0d.learning.policies import smolvla

    config = smolvla.Loaded.tiny_config(TINY["tiny"])
    metadata = LeRobotDatasetMetadata("local/x", root=folder)
    dataset = LeRobotDataset(
        "local/x",
        root=folder,
        delta_timestamps=resolve_delta_timestamps(config, metadata),
        video_backend="pyav",
        return_uint8=True,
    )
    policy = make_policy(config, ds_meta=metadata)
    preprocess, _ = make_pre_post_processors(config, dataset_stats=metadata.stats)
    settings = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="local/x", root=str(folder), video_backend="pyav"),
        policy=config,
        steps=10_000,
        batch_size=BATCH,
    )
    settings.optimizer = config.get_optimizer_preset()
    settings.scheduler = config.get_scheduler_preset()
    optimizer, scheduler = make_optimizer_and_scheduler(settings, policy)
    sampler = EpisodeAwareSampler(
        metadata.episodes["dataset_from_index"],
        metadata.episodes["dataset_to_index"],
        shuffle=True,
        seed=0,
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, sampler=sampler, num_workers=0)
    accelerator = Accelerator(step_scheduler_with_optimizer=False, cpu=True)
    policy, optimizer, loader, scheduler = accelerator.prepare(policy, optimizer, loader, scheduler)
    meters = {
        name: AverageMeter(name, ":.3f")
        for name in ("loss", "grad_norm", "lr", "update_s", "dataloading_s")
    }
    tracker = MetricsTracker(
        BATCH, dataset.num_frames, dataset.num_episodes, meters, accelerator=accelerator
    )
    policy.train()

    def endless() -> Iterator[dict[str, Any]]:
        while True:
            yield from loader

    batches = endless()

    def steps(count: int) -> None:
        for _ in range(count):
            batch = next(batches)
            for camera in metadata.camera_keys:
                batch[camera] = batch[camera].to(dtype=torch.float32) / 255.0
            update_policy(
                tracker,
                policy,
                preprocess(batch),
                optimizer,
                settings.optimizer.grad_clip_norm,
                accelerator=accelerator,
                lr_scheduler=scheduler,
            )

    return steps
