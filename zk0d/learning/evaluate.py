"""Evaluation that can be repeated exactly.

A flow-matching loss depends on random noise and time. Here the noise is a function of seed and
frame, and time is stratified, so two policies are compared under the same noise. Two evaluations of
the same weights are equal to the bit on one machine with as many threads; another batch size,
processor or number of threads rounds differently.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from zk0d.config.cameras import camera_feature
from zk0d.errors import Zk0dError
from zk0d.learning.batches import PolicyBatches
from zk0d.learning.layout import ACTION, STATE
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.statistics import Statistics
from zk0d.simulators.task import Arm

EVAL_BATCH = 64


def stratified_rows(usable: torch.Tensor, episodes: torch.Tensor, frames: int) -> torch.Tensor:
    """About ``frames`` usable rows, spread evenly over all episodes and over each of them; 0: all.

    Parameters
    ----------
    usable
        Rows to choose from, ascending, int64.
    episodes
        Episode of every row of the dataset.
    """
    if not frames or frames >= len(usable):
        return usable
    groups = [usable[episodes[usable] == episode] for episode in torch.unique(episodes[usable])]
    share, extra = divmod(frames, len(groups))
    chosen = []
    for number, group in enumerate(groups):
        take = min(len(group), share + (number < extra))
        if take:
            at = (torch.arange(take) + 0.5) * len(group) / take
            chosen.append(group[at.long()])
    return torch.cat(chosen)


@dataclass(frozen=True)
class Loss:
    """A mean over frames, its standard error, and each frame's own loss, on the CPU.

    The last two are ``None`` where a policy has no loss of each frame.
    """

    mean: float
    spread: float | None
    by_row: torch.Tensor | None = None


@torch.no_grad()
def seeded_loss(
    loaded: LoadedPolicy, batches: PolicyBatches, rows: torch.Tensor, seed: int
) -> Loss:
    """Loss per frame over ``rows``.

    Raises
    ------
    Zk0dError
        With reason ``evaluation_failed`` if it is not a finite number: a failure is a missing
        value, never a number that looks like one.
    """
    policy = loaded.policy
    images = loaded.embedded_images() if batches.features else contextlib.nullcontext()
    was_training = policy.training
    policy.eval()
    total = 0.0
    per_frame: list[torch.Tensor] = []
    try:
        with images, loaded.autocast():
            for start in range(0, len(rows), EVAL_BATCH):
                part = rows[start : start + EVAL_BATCH]
                losses = loaded.seeded_losses(batches.batch(part), part, seed)
                if losses.ndim:
                    total += losses.sum().item()
                    per_frame.append(losses)
                else:
                    total += losses.item() * len(part)
    finally:
        policy.train(was_training)
    loss = total / len(rows)
    if not np.isfinite(loss):
        raise Zk0dError("the evaluation loss is not a number.", reason="evaluation_failed")
    if not per_frame:
        return Loss(loss, None)
    by_row = torch.cat(per_frame).float().cpu()
    if len(rows) < 2:
        return Loss(loss, None, by_row)
    spread = torch.cat(per_frame).std().item() / len(rows) ** 0.5
    return Loss(loss, spread, by_row)


def losses_by_episode(
    loaded: LoadedPolicy, batches: PolicyBatches, rows: torch.Tensor, seed: int
) -> dict[int, float]:
    """Mean loss over the ``rows`` of each episode, by its number; errors as of `seeded_loss`."""
    numbers = batches.recorded.recordings.columns["episode_index"][rows]
    return {
        episode: seeded_loss(loaded, batches, rows[numbers == episode], seed).mean
        for episode in torch.unique(numbers).tolist()
    }


@torch.no_grad()
def action_errors(
    loaded: LoadedPolicy, batches: PolicyBatches, statistics: Statistics, rows: torch.Tensor
) -> torch.Tensor:
    """How far planned actions lie from the recorded ones, float64: ``(rows,)``.

    Unlike a loss, it compares policies of any family and normalization. The unit is the recordings'
    own standard deviation of each action. Only the actions count that the policy would execute
    before it plans again, and that the episode has. What is random in a plan is a function of the
    row's number.
    """
    recordings = batches.recorded.recordings
    own = recordings.statistics(~recordings.not_finite()).for_training()
    unit = torch.from_numpy(own[ACTION]["std"])
    _, postprocess = loaded.processors(statistics)
    images = loaded.embedded_images() if batches.features else contextlib.nullcontext()
    was_training = loaded.policy.training
    loaded.policy.eval()
    loaded.policy.reset()
    errors = []
    try:
        with images, loaded.autocast():
            for start in range(0, len(rows), EVAL_BATCH):
                part = rows[start : start + EVAL_BATCH]
                batch = batches.batch(part)
                del batch[ACTION]  # what is to be planned
                # A whole policy's come in the precision of its products.
                actions = postprocess(loaded.plan(batch, part, 0).float()).double().cpu()
                actions = actions[:, : loaded.config.n_action_steps]
                recorded = part[:, None] + torch.arange(actions.shape[1])
                last = recordings.last[part][:, None]
                wanted = recordings.columns[ACTION][recorded.minimum(last)]
                error = ((actions - wanted) / unit).abs().mean(2)
                there = recorded <= last
                errors.append((error * there).sum(1) / there.sum(1))
    finally:
        loaded.policy.train(was_training)
    found = torch.cat(errors)
    if not bool(torch.isfinite(found).all()):
        raise Zk0dError("a planned action is not a number.", reason="evaluation_failed")
    return found


@dataclass(frozen=True)
class Rollouts:
    """Closed-loop result: ``successes`` of ``episodes``."""

    successes: int
    episodes: int

    @property
    def success(self) -> float:
        return self.successes / self.episodes


@torch.no_grad()
def roll_out(
    loaded: LoadedPolicy,
    statistics: Statistics,
    make_arm: Callable[[], Arm],
    seeds: list[int],
    cameras: Mapping[str, str] | None = None,
) -> Rollouts:
    """Let the policy drive simulated arms, one episode for each of ``seeds``, side by side.

    Noise is a function of each episode's seed and frame, so the result does not depend on which
    other episodes run beside it. ``cameras`` maps the arms' cameras to the policy's.
    """
    policy = loaded.policy
    preprocess, postprocess = loaded.processors(statistics)
    was_training = policy.training
    policy.eval()
    policy.reset()
    execute = loaded.config.n_action_steps
    arms = [make_arm() for _ in seeds]
    running = list(range(len(arms)))
    past = len(loaded.config.observation_delta_indices or [0])
    # Before an episode's first frame, that frame is seen, as in LeRobot.
    seen = {i: deque([arms[i].reset(seed)] * past, past) for i, seed in enumerate(seeds)}

    def stacked(key: str) -> torch.Tensor:
        """Of the arms that run: ``(arms, ...)``, or ``(arms, frames, ...)`` of several frames."""
        values = np.stack([np.stack([frame[key] for frame in seen[i]]) for i in running])
        return torch.from_numpy(values if past > 1 else values[:, 0])

    successes = 0
    while running:
        batch = {
            STATE: stacked(STATE),
            "task": [arms[i].task for i in running],
        }
        for camera in arms[0].cameras:
            key = f"observation.images.{camera}"
            seen_as = camera_feature((cameras or {}).get(camera, camera))
            batch[seen_as] = stacked(key).movedim(-1, -3).float() / 255
        episodes = torch.tensor([seeds[i] for i in running])
        with loaded.autocast():
            planned = loaded.plan(preprocess(batch), episodes, arms[running[0]].frame)
        # A whole policy's actions come in the precision of its products.
        actions = postprocess(planned.float())
        still = []
        for row, i in enumerate(running):
            to_do = actions[row, :execute].cpu().numpy()
            for number, action in enumerate(to_do, 1):
                success, over = arms[i].step(action)
                successes += success
                if over:
                    break
                if number > len(to_do) - past:
                    seen[i].append(arms[i].observe())
            else:
                still.append(i)
        running = still
    policy.train(was_training)
    return Rollouts(successes, len(seeds))
