"""A training step of SmolVLA at its real size on a GPU, against LeRobot's own loop.

``python -m tests.bench.gpu.step [--device cpu --batches 2 --steps 4]``. Variants take turns at each
batch size; each one's first steps are not counted. "kernels" is the part of the time in which the
GPU ran one: their time in a profile, by the time of a step measured without a profiler.

"replay_ms" is a recorded step played again and again with nothing between: what a step takes more
is between two replays, and what that takes more than "kernels_ms" is between a replay's kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import logging
import math
import statistics
import tempfile
import time
from collections import Counter, defaultdict
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
from zk0d.learning.policy import load_policy, replica, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import open_recordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.spec import Adapter
from zk0d.learning.step import Correction
from zk0d.learning.train import Moments, StepPlan, train

PEER = "lerobot-train"
SKIPPED = 8
MU = 0.01
#: Replays with nothing between, and kernels of one launch that are a replay's.
ALONE, RECORDED = 20, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", default="8,16,32,64")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--workers", type=int, default=4, help="LeRobot's default")
    parser.add_argument("--episodes", type=int, default=8, help="of 120 frames")
    parser.add_argument("--only", nargs="*", help="these variants, by name")
    parser.add_argument("--repeats", type=int, default=1, help="how often each takes its turn")
    parser.add_argument("--profile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--adapter-rank", type=int, default=0, help="train an adapter, not the policy"
    )
    parser.add_argument("--longest", type=int, default=0, help="kernels to name, by their time")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    batches = [int(text) for text in chosen.batches.split(",")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = real.save_policy(Path(folder) / "model")
        recordings = real.record(Path(folder) / "recordings", chosen.episodes, 120)
        # A process that has had a profiler starts kernels more slowly: profiles come last.
        profiled = (False, True) if chosen.profile and chosen.device == "cuda" else (False,)
        for profile, source in product(profiled, (_lerobot, _ours)):
            if source is _lerobot and chosen.only and not any(map(_is_peer, chosen.only)):
                continue
            variants = [
                (name, make)
                for name, make in source(model, recordings, chosen)
                if not chosen.only or name in chosen.only
            ]
            turns = 1 if profile else chosen.repeats
            for batch, _, (name, make) in product(batches, range(turns), variants):
                row: dict[str, Any] = {"variant": name, "batch": batch}
                if profile:
                    taken = [each for each in rows if row.items() <= each.items()]
                    row |= _profiled(make, batch, taken, chosen.longest)
                else:
                    row |= _measure(make, batch, chosen)
                    rows.append(row)
                print(json.dumps(row), flush=True)
            del variants
            _free_memory(chosen.device)
    if chosen.output:
        chosen.output.write_text(json.dumps(rows, indent=1))


def _is_peer(name: str) -> bool:
    return name.startswith(PEER)


class Clock:
    """Times a run's steps after the first ones.

    A replayed step ends before it is read, by as many steps as are under way. So the clock lets the
    GPU finish what was begun, at both ends, and counts what was begun in between.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._begun = self._left_out = 0
        self._first = self._since = 0.0

    def begin(self) -> None:
        """A step is about to begin."""
        self._begun += 1

    def end(self, step: int) -> None:
        """Step number ``step`` (from 1) has ended."""
        if step == 1:
            self._first = time.perf_counter()
        if step == SKIPPED:
            self._left_out, self._since = self._begun, self._settled()

    def row(self) -> dict[str, float]:
        """Milliseconds of a step, and of the first ones together."""
        passed, steps = self._settled() - self._since, self._begun - self._left_out
        return {
            "ms": 1e3 * passed / steps if steps else math.nan,
            "first_ms": 1e3 * (self._since - self._first),
        }

    def _settled(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


Steps = Callable[[int], dict[str, float]]  # takes so many, gives what a Clock says
Make = Callable[[int], Steps]


def _measure(make: Make, batch: int, chosen: argparse.Namespace) -> dict[str, Any]:
    _free_memory(chosen.device)
    try:
        run = make(batch)
        row = run(SKIPPED + chosen.steps)
    except torch.cuda.OutOfMemoryError:
        return {"error": "out of memory"}
    if chosen.device == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        with _replays_alone() as alone:
            run(SKIPPED)
        if alone:
            row["replay_ms"] = alone[0]
            row["between_ms"] = row["ms"] - alone[0]
    return row


def _free_memory(device: str) -> None:
    """What no variant uses any more; a recorded step is found only by the collector."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _profiled(make: Make, batch: int, taken: list[dict[str, Any]], longest: int) -> dict[str, Any]:
    """The kernels of a step whose times without a profiler are in ``taken``."""
    times = [row["ms"] for row in taken if "ms" in row]
    if not times:
        return {}
    run = make(batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(SKIPPED)
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
    row = {"kernels_ms": _covered(kernels) / 1e3 / SKIPPED}
    # The kernels of a replay have the number of its launch.
    together = Counter(event.id for event in kernels)
    replays = {number for number, count in together.items() if count >= RECORDED}
    if replays:
        replayed = [event for event in kernels if event.id in replays]
        row["kernels_ms"] = _covered(replayed) / 1e3 / len(replays)
        row["replay_kernels"] = len(replayed) / len(replays)
        by_name: dict[str, list[float]] = defaultdict(list)
        for event in replayed:
            by_name[event.name[:90]].append(event.time_range.elapsed_us() / 1e3)
        said = sorted(by_name.items(), key=lambda each: -sum(each[1]))[:longest]
        for name, each in said:
            print(f"{sum(each) / len(replays):8.3f} ms {len(each) / len(replays):6.0f} x {name}")
    return row | {"kernels": row["kernels_ms"] / statistics.median(times)}


@contextlib.contextmanager
def _replays_alone() -> Iterator[list[float]]:
    """Within it, a run's last replay is played again and again; the list has its milliseconds."""
    plain, found = torch.cuda.CUDAGraph.replay, list[float]()
    count = 0

    def replay(graph: torch.cuda.CUDAGraph) -> None:
        nonlocal count
        plain(graph)
        count += 1
        if count < SKIPPED - steps_module.WARM_UP:
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(ALONE):
            plain(graph)
        end.record()
        end.synchronize()
        found[:] = [begin.elapsed_time(end) / ALONE]

    torch.cuda.CUDAGraph.replay = replay  # type: ignore[assignment,method-assign]
    try:
        yield found
    finally:
        torch.cuda.CUDAGraph.replay = plain  # type: ignore[method-assign]


def _covered(events: list[Any]) -> float:
    """Microseconds that at least one of the events covers."""
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    total, until = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _ours(model: Path, folder: Path, chosen: argparse.Namespace) -> Iterator[tuple[str, Make]]:
    recordings = open_recordings(f"local:{folder}")
    models = {"real": model}
    rank = chosen.adapter_rank
    adapter = Adapter(kind="lora", rank=rank) if rank else None
    spec = spec_for("smolvla", "real", 0, recordings.summary, models, adapter=adapter)
    policy = load_policy(spec, models=models, device=chosen.device)
    count = sum(p.numel() for p in policy.trainable().values())
    what = f"adapter of rank {rank}" if rank else "the policy"
    print(
        f"trainable of {what}: {count:,}; {policy.precision}; frozen vision {policy.frozen_vision}"
    )
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
        if torch.cuda.device_count() > 1:
            others = (replica(policy, torch.device("cuda:1")),)
            yield "feature cache, two GPUs", functools.partial(variant, 0.0, True, others=others)


def _variant(
    policy: LoadedPolicy,
    batches: PolicyBatches,
    usable: torch.Tensor,
    mu: float,
    replayed: bool,
    batch: int,
    corrected: bool = False,
    others: tuple[LoadedPolicy, ...] = (),
) -> Steps:
    schedule = CosineSchedule(peak=1e-4, end=1e-5, warmup_steps=0, total_steps=10_000)

    def run(count: int) -> dict[str, float]:
        clock = Clock(policy.device.type)
        plan = StepPlan(
            TrainingSettings(local_steps=count, batch_size=batch), 0, schedule, 0, proximal_mu=mu
        )
        optimizer = Moments(policy).begin("bench", 1, 1e-10)
        weights = policy.trainable()
        offset = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        policy.replicas = others
        with contextlib.ExitStack() as undone:
            undone.callback(setattr, policy, "replicas", ())
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
                on_step=lambda step, loss: clock.end(step),
                check=clock.begin,
            )
        assert result.bad_batches == 0
        return clock.row()

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

        def run(count: int) -> dict[str, float]:
            clock = Clock(chosen.device)
            meters = {
                name: AverageMeter(name, ":.3f")
                for name in ("loss", "grad_norm", "lr", "update_s", "dataloading_s", "gpu_mem_gb")
            }
            tracker = MetricsTracker(
                batch, dataset.num_frames, dataset.num_episodes, meters, accelerator=accelerator
            )
            for step in range(1, count + 1):
                clock.begin()
                raw = dict(kept if once else next(source))
                for camera in metadata.camera_keys:
                    raw[camera] = raw[camera].to(dtype=torch.float32) / 255.0
                update_policy(
                    tracker, policy, preprocess(raw), optimizer, 10.0, accelerator=accelerator
                )
                clock.end(step)
            return clock.row()

        return run

    yield PEER, make
    yield f"{PEER}'s update alone", lambda batch: make(batch, once=True)


if __name__ == "__main__":
    main()
