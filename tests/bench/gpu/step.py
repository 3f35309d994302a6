"""A training step of SmolVLA at its real size on a GPU, against LeRobot's own loop.

``python -m tests.bench.gpu.step [--device cpu --batches 2 --steps 4]``. Variants take turns at each
batch size; each one's first steps are not counted. "kernels" is the part of the time in which the
GPU ran one: their time in a profile, by the time of a step measured without a profiler.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from tests.bench.gpu import real
from zk0d.config.machine import CacheSettings
from zk0d.config.run import TrainingSettings
from zk0d.learning import step as steps_module
from zk0d.learning.batches import PolicyBatches
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import open_recordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.step import Correction
from zk0d.learning.train import Moments, StepPlan, train

PEER = "lerobot-train"
SKIPPED = 8
MU = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", default="8,16,32,64")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--workers", type=int, default=4, help="LeRobot's default")
    parser.add_argument("--episodes", type=int, default=8, help="of 120 frames")
    parser.add_argument("--only", nargs="*", help="these variants, by name")
    parser.add_argument("--repeats", type=int, default=1, help="how often each takes its turn")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    batches = [int(text) for text in chosen.batches.split(",")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = real.save_policy(Path(folder) / "model")
        recordings = real.record(Path(folder) / "recordings", chosen.episodes, 120)
        for source in (_lerobot, _ours):
            if source is _lerobot and chosen.only and not any(map(_is_peer, chosen.only)):
                continue
            variants = [
                (name, make)
                for name, make in source(model, recordings, chosen)
                if not chosen.only or name in chosen.only
            ]
            for batch, _, (name, make) in product(batches, range(chosen.repeats), variants):
                row = _measure(name, make, batch, chosen.steps, chosen.device)
                rows.append(row)
                print(json.dumps(row), flush=True)
            del variants
            gc.collect()
            if chosen.device == "cuda":
                torch.cuda.empty_cache()
    if chosen.output:
        chosen.output.write_text(json.dumps(rows, indent=1))


def _is_peer(name: str) -> bool:
    return name.startswith(PEER)


Steps = Callable[[int], list[float]]  # takes so many, gives when each ended
Make = Callable[[int], Steps]


def _measure(name: str, make: Make, batch: int, steps: int, device: str) -> dict[str, Any]:
    gpu = device == "cuda"
    row: dict[str, Any] = {"variant": name, "batch": batch}
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        run = make(batch)
        ends = run(SKIPPED + steps)
    except torch.cuda.OutOfMemoryError:
        return {**row, "error": "out of memory"}
    row["ms"] = 1e3 * (ends[-1] - ends[SKIPPED - 1]) / steps
    row["first_ms"] = 1e3 * (ends[SKIPPED - 1] - ends[0])
    if gpu:
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run(SKIPPED)
            torch.cuda.synchronize()
        kernels = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
        spans = sorted((e.time_range.start, e.time_range.end) for e in kernels)
        row["kernels_ms"] = _covered(spans) / 1e3 / SKIPPED
        row["kernels"] = row["kernels_ms"] / row["ms"]
    return row


def _covered(spans: list[tuple[float, float]]) -> float:
    """Time that at least one span covers."""
    total, until = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _ours(model: Path, folder: Path, chosen: argparse.Namespace) -> Iterator[tuple[str, Make]]:
    recordings = open_recordings(f"local:{folder}")
    models = {"real": model}
    spec = spec_for("smolvla", "real", 0, recordings.summary, models)
    policy = load_policy(spec, models=models, device=chosen.device)
    count = sum(p.numel() for p in policy.trainable().values())
    print(f"trainable: {count:,}; {policy.precision}; frozen vision {policy.frozen_vision}")
    for features in (False, True):
        began = time.perf_counter()
        prepared = PreparedRecordings(
            recordings, policy, CacheSettings(vision_features=features, memory_gib=32)
        )
        batches = prepared.batches(prepared.statistics())
        print(f"features {features}: prepared in {time.perf_counter() - began:.1f} s", flush=True)
        variant = functools.partial(_variant, policy, batches, prepared.usable)
        if not features:
            yield "frame cache", functools.partial(variant, 0.0, True)
            continue
        yield "feature cache, kernel by kernel", functools.partial(variant, 0.0, False)
        yield "feature cache", functools.partial(variant, 0.0, True)
        yield "feature cache, FedProx", functools.partial(variant, MU, True)
        yield "feature cache, variates", functools.partial(variant, 0.0, True, corrected=True)


def _variant(
    policy: LoadedPolicy,
    batches: PolicyBatches,
    usable: torch.Tensor,
    mu: float,
    replayed: bool,
    batch: int,
    corrected: bool = False,
) -> Steps:
    schedule = CosineSchedule(peak=1e-4, end=1e-5, warmup_steps=0, total_steps=10_000)

    def run(count: int) -> list[float]:
        ends: list[float] = []
        plan = StepPlan(
            TrainingSettings(local_steps=count, batch_size=batch), 0, schedule, 0, proximal_mu=mu
        )
        optimizer = Moments(policy).begin("bench", 1, 1e-10)
        weights = policy.trainable()
        offset = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        with contextlib.ExitStack() as undone:
            if not replayed:
                kept = steps_module.ReplayedStep
                undone.callback(setattr, steps_module, "ReplayedStep", kept)
                steps_module.ReplayedStep = lambda plain: plain  # type: ignore[assignment,misc,return-value]
            result = train(
                policy,
                batches,
                usable,
                optimizer,
                plan,
                correction=Correction(weights, offset) if corrected else None,
                on_step=lambda step, loss: ends.append(time.perf_counter()),
            )
        assert result.bad_batches == 0
        return ends

    return run


def _lerobot(model: Path, folder: Path, chosen: argparse.Namespace) -> Iterator[tuple[str, Make]]:
    from accelerate import Accelerator
    from lerobot.configs import PreTrainedConfig
    from lerobot.datasets import (
        LeRobotDataset,
        LeRobotDatasetMetadata,
        resolve_delta_timestamps,
    )
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    config = PreTrainedConfig.from_pretrained(model)
    config.device = chosen.device
    config.load_vlm_weights = False
    metadata = LeRobotDatasetMetadata("local/bench", root=folder)
    dataset = LeRobotDataset(
        "local/bench",
        root=folder,
        delta_timestamps=resolve_delta_timestamps(config, metadata),
        video_backend="pyav",
        return_uint8=True,
    )
    policy = get_policy_class("smolvla").from_pretrained(model, config=config)
    # As LeRobot trains the published weights: all of it in bfloat16, the expert too.
    for parameter in policy.model.vlm_with_expert.parameters():
        parameter.data = parameter.data.bfloat16()
    policy.to(chosen.device)
    preprocess, _ = make_pre_post_processors(config, dataset_stats=metadata.stats)
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    accelerator = Accelerator(step_scheduler_with_optimizer=False, cpu=chosen.device == "cpu")
    policy, optimizer = accelerator.prepare(policy, optimizer)

    def loader(batch: int) -> Iterator[dict[str, Any]]:
        made = torch.utils.data.DataLoader(
            dataset,
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            num_workers=chosen.workers,
            prefetch_factor=4 if chosen.workers else None,
            persistent_workers=bool(chosen.workers),
            pin_memory=chosen.device == "cuda",
        )
        while True:
            yield from made

    def make(batch: int, once: bool = False) -> Steps:
        source = loader(batch)
        kept = next(source)

        def run(count: int) -> list[float]:
            meters = {
                name: AverageMeter(name, ":.3f")
                for name in ("loss", "grad_norm", "lr", "update_s", "dataloading_s", "gpu_mem_gb")
            }
            tracker = MetricsTracker(
                batch, dataset.num_frames, dataset.num_episodes, meters, accelerator=accelerator
            )
            ends = []
            for _ in range(count):
                raw = dict(kept if once else next(source))
                for camera in metadata.camera_keys:
                    raw[camera] = raw[camera].to(dtype=torch.float32) / 255.0
                update_policy(
                    tracker, policy, preprocess(raw), optimizer, 10.0, accelerator=accelerator
                )
                ends.append(time.perf_counter())
            return ends

        return run

    yield PEER, make
    yield f"{PEER}'s update alone", lambda batch: make(batch, once=True)


if __name__ == "__main__":
    main()
