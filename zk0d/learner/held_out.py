"""What a contributor finds of a policy on the episodes that its owner keeps out of training."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING

import torch

from zk0d.federation.messages import WithWeights
from zk0d.learning.evaluate import losses_by_episode, seeded_loss, stratified_rows
from zk0d.record.events import MOST_EPISODES, HeldOut

if TYPE_CHECKING:
    from zk0d.learner.contributor import Prepared

log = logging.getLogger("zk0d")


def evaluated(prepared: Prepared, task: WithWeights) -> HeldOut:
    """The loss of the policy as it is, with the noise and the frames of every such evaluation.

    Raises
    ------
    Zk0dError
        With reason ``evaluation_failed`` if it is not a number.
    """
    policy, data = prepared.policy, prepared.data
    batches = data.batches(task.statistics)
    episodes = data.recordings.columns["episode_index"]
    rows = stratified_rows(data.held_out, episodes, task.evaluation.eval_frames)
    means: dict[str, tuple[float, int]] = {}
    by_episode: dict[int, float] = {}
    for uri, its in data.recordings.by_dataset(rows).items():
        loss = seeded_loss(policy, batches, its, task.seed)
        means[uri] = (loss.mean, len(its))
        if loss.by_row is None:
            by_episode |= losses_by_episode(policy, batches, its, task.seed)
        else:
            numbers = episodes[its]
            for number in torch.unique(numbers).tolist():
                by_episode[number] = loss.by_row[numbers == number].mean().item()
    if len(means) > 1:
        told = ", ".join(f"{uri} {loss:.4f}" for uri, (loss, _) in means.items())
        # For the owner alone.
        log.info("round %d, loss on held-out episodes: %s", task.round, told)
    losses = [by_episode[number] for number in sorted(by_episode)]
    step = -(-len(losses) // MOST_EPISODES)
    return HeldOut(
        loss=sum(loss * count for loss, count in means.values()) / len(rows),
        frames=len(rows),
        losses=tuple(losses[::step]),
        mark=_mark(prepared, task, rows),
    )


def _mark(prepared: Prepared, task: WithWeights, rows: torch.Tensor) -> str:
    """What two evaluations must share to be compared, as a hash that tells nothing of it."""
    policy = prepared.policy
    what = [
        prepared.mark,
        rows.tolist(),
        task.seed,
        task.statistics_sha256,
        policy.device.type,
        str(policy.precision),
    ]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
