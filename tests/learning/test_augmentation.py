"""Training changes pictures as LeRobot's trainer does, and nothing else sees that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.transforms import ImageTransforms, ImageTransformsConfig

from tests.learner.test_growing import Rounds, opened
from zk0d.config.cameras import camera_feature
from zk0d.config.machine import CacheSettings
from zk0d.config.run import run_settings
from zk0d.federation.messages import Query
from zk0d.learner.tasks import TaskControl
from zk0d.learning.augmentation import augmentation
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.train import Moments, StepPlan, train

ROWS = torch.tensor([0, 17, 60])


def trained(policy: LoadedPolicy, data: PreparedRecordings, *, augments: bool) -> dict[str, Any]:
    values = {"local-steps": 2, "batch-size": 4, "image-augmentation": augments}
    plan = StepPlan(
        training=run_settings(values).training,
        first_step=0,
        schedule=CosineSchedule(peak=1e-3, end=1e-4, warmup_steps=0, total_steps=10),
        seed=3,
    )
    begun = policy.weights()
    optimizer = Moments(policy).begin("1", 1, 0.0, backbone_lr_factor=1.0, fresh=True)
    train(policy, data.batches(data.statistics()), data.usable, optimizer, plan)
    after = policy.weights()
    policy.load_weights(begun)
    return after


@pytest.mark.parametrize("kind", ["smolvla", "act"])
def test_a_batchs_pictures_are_changed_as_lerobot_changes_them(
    recordings: Recordings, kind: str, request: pytest.FixtureRequest
) -> None:
    policy: LoadedPolicy = request.getfixturevalue(kind)
    data = PreparedRecordings(recordings, policy, CacheSettings(), augments=True)
    assert data.features is None, "a picture that changes has no features that stay"
    batches = data.batches(data.statistics())
    plain = batches.batch(ROWS)
    torch.manual_seed(5)
    ours = batches.batch(ROWS, augmentation())
    names = [camera_feature(camera) for camera in recordings.cameras.values()]
    assert set(ours) == set(plain)
    for name, value in plain.items():
        if name not in names and isinstance(value, torch.Tensor):
            assert torch.equal(ours[name], value), name
    if kind == "smolvla":  # ACT's processor normalizes pictures after they were changed
        torch.manual_seed(5)
        change = ImageTransforms(ImageTransformsConfig(enable=True))
        for name in names:
            expected = torch.stack([change(picture) for picture in plain[name]])
            assert torch.equal(ours[name], expected)
    assert any(not torch.equal(ours[name], plain[name]) for name in names)


@pytest.mark.parametrize("kind", ["smolvla", "act"])
def test_training_changes_pictures_if_the_run_asks_for_it(
    recordings: Recordings, kind: str, request: pytest.FixtureRequest
) -> None:
    policy: LoadedPolicy = request.getfixturevalue(kind)
    data = PreparedRecordings(recordings, policy, CacheSettings(), augments=True)
    with_it = trained(policy, data, augments=True)
    again = trained(policy, data, augments=True)
    without = trained(policy, data, augments=False)
    assert all((with_it[name] == again[name]).all() for name in with_it)
    assert any((with_it[name] != without[name]).any() for name in with_it)


def test_a_node_keeps_pictures_for_a_run_that_changes_them(tmp_path: Path) -> None:
    node, spec = opened(tmp_path / "arm")
    query = Query(run="1", spec=spec, image_augmentation=True)
    node.run(query, None, TaskControl())
    assert node._prepared is not None
    assert node._prepared.data.features is None
    rounds = Rounds(node, spec, **{"image-augmentation": True})
    assert node._prepared.data.features is not None, "another run, which changes nothing"
    assert rounds.train(1).steps == 2
    assert node._prepared.data.features is None
