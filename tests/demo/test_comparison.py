"""What the demo compares a federation with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zk0d.config.machine import CacheSettings
from zk0d.config.run import RunSettings
from zk0d.demo.comparison import Job, _train
from zk0d.learner.contributor import round_seed
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import open_recordings
from zk0d.simulators.task import Sector


@pytest.mark.slow
def test_plain_averaging_is_the_mean_of_what_each_made(recordings_folder: Path) -> None:
    recordings = open_recordings(f"local:{recordings_folder}")
    settings = RunSettings.parse(
        {
            "model-name": "tiny",
            "num-server-rounds": 1,
            "local-steps": 2,
            "batch-size": 2,
            "seed": 3,
        },
        where="test",
    )
    spec = spec_for(settings.policy, settings.model_name, 3, recordings.summary, models={})
    policy = load_policy(spec, device="cpu")
    first = policy.weights()
    data = PreparedRecordings(recordings, policy, CacheSettings())

    def trained(parts: int, seed: int) -> dict[str, np.ndarray]:
        policy.load_weights(first)
        job = Job(
            title="",
            settings=settings.model_copy(update={"seed": seed}),
            recordings=(recordings_folder,) * parts,
            sectors=(Sector(),),
            episodes=0,
            steps=2,
        )
        _train(job, policy, [data] * parts, data.statistics())
        return policy.weights()

    averaged = trained(2, 3)
    one, other = (trained(1, round_seed(3, 1, node)) for node in "01")
    for name, weights in averaged.items():
        assert weights == pytest.approx((one[name] + other[name]) / 2, abs=1e-7)
    assert any(np.any(one[name] != other[name]) for name in first)
