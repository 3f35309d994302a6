from __future__ import annotations

from pathlib import Path

import pytest

from zk0d.config.machine import CacheSettings
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.spec import PolicySpec


@pytest.fixture(scope="session")
def recordings(recordings_folder: Path) -> Recordings:
    return open_recordings(f"local:{recordings_folder}")


@pytest.fixture(scope="session")
def smolvla_spec(recordings: Recordings) -> PolicySpec:
    return spec_for("smolvla", "tiny", 0, recordings.summary, models={})


@pytest.fixture(scope="session")
def act_spec(recordings: Recordings) -> PolicySpec:
    return spec_for("act", "tiny", 0, recordings.summary, models={})


@pytest.fixture
def smolvla(smolvla_spec: PolicySpec) -> LoadedPolicy:
    return load_policy(smolvla_spec, device="cpu")


@pytest.fixture
def act(act_spec: PolicySpec) -> LoadedPolicy:
    return load_policy(act_spec, device="cpu")


@pytest.fixture
def with_pixels(recordings: Recordings, smolvla: LoadedPolicy) -> PreparedRecordings:
    return PreparedRecordings(recordings, smolvla, CacheSettings(vision_features=False))


@pytest.fixture
def with_features(recordings: Recordings, smolvla: LoadedPolicy) -> PreparedRecordings:
    return PreparedRecordings(recordings, smolvla, CacheSettings())
