from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zk0d.errors import DataError
from zk0d.learning.partition import SCHEMES, _dirichlet, bearings, partition
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.split import split_dataset


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_episode_goes_to_one(recordings: Recordings, scheme: str) -> None:
    shares = partition(recordings, scheme, 2, seed=3, alpha=2.0)  # type: ignore[arg-type]
    assert sorted(episode for share in shares for episode in share) == recordings.episodes
    assert all(shares)
    again = partition(recordings, scheme, 2, seed=3, alpha=2.0)  # type: ignore[arg-type]
    assert shares == again


def test_by_region_is_by_bearing(recordings: Recordings) -> None:
    left, right = partition(recordings, "region", 2)
    where = dict(zip(recordings.episodes, bearings(recordings), strict=True))
    assert max(where[e] for e in left) <= min(where[e] for e in right)
    assert len(left) == len(right)


def test_by_task_keeps_a_task_together(recordings: Recordings) -> None:
    shares = partition(recordings, "task", 2)
    tasks = [
        {recordings.tasks[recordings.rows(episode).start] for episode in share} for share in shares
    ]
    assert not tasks[0] & tasks[1]


def test_iid_follows_its_seed(recordings: Recordings) -> None:
    found = {str(partition(recordings, "iid", 3, seed=seed)) for seed in range(5)}
    assert len(found) > 1


def test_a_small_alpha_is_uneven() -> None:
    labels = [number // 50 for number in range(200)]

    def spread(alpha: float) -> float:
        """How far the parts' shares of each label lie apart."""
        random = np.random.default_rng(0)
        shares = _dirichlet(labels, 4, alpha, random, "test")
        counts = [
            [sum(labels[i] == label for i in share) for label in range(4)] for share in shares
        ]
        return float(np.std(counts))

    assert spread(0.3) > 2 * spread(100.0)


@pytest.mark.parametrize(
    ("scheme", "parts", "words"),
    [
        ("iid", 99, "cannot be split among 99"),
        ("task", 6, "tasks, which cannot be split among 6"),
    ],
)
def test_too_many_parts(recordings: Recordings, scheme: str, parts: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        partition(recordings, scheme, parts)  # type: ignore[arg-type]


@pytest.mark.slow
def test_parts_are_datasets(
    recordings_folder: Path, recordings: Recordings, tmp_path: Path
) -> None:
    made = split_dataset(f"local:{recordings_folder}", tmp_path / "parts", "region", 2)
    parts = [open_recordings(f"local:{folder}") for folder, _ in made]
    assert sum(len(part) for part in parts) == len(recordings)
    assert max(bearings(parts[0])) <= min(bearings(parts[1]))
    assert [count for _, count in made] == [len(part.episodes) for part in parts]
