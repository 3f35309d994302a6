"""Who gets which episodes, when one dataset stands for many contributors. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import DataError, UsageError

if TYPE_CHECKING:
    from zk0d.learning.recordings import Recordings

Scheme = Literal["iid", "dirichlet", "task", "region"]
SCHEMES: tuple[Scheme, ...] = ("iid", "dirichlet", "task", "region")
#: How many regions a dataset is cut into where Dirichlet mixes regions (it has one task only).
REGIONS = 10
_TRIES = 1000


def partition(
    recordings: Recordings, scheme: Scheme, parts: int, *, seed: int = 0, alpha: float = 0.5
) -> list[list[int]]:
    """Deal a dataset's episodes out to ``parts`` contributors; every episode goes to one.

    Parameters
    ----------
    scheme
        ``iid``: shuffled and dealt out evenly. ``dirichlet``: each task's episodes are shared out
        by a draw from Dirichlet(``alpha``) (Hsu, Qi, Brown 2019); of a dataset with one task,
        each region's. ``task``: a task's episodes stay together. ``region``: sorted by where the
        arm points at an episode's end (the first joint), and cut into equal parts.

    Raises
    ------
    DataError
        If there are too few episodes, or tasks, for that many contributors.
    """
    episodes = recordings.episodes
    if parts < 1 or parts > len(episodes):
        raise DataError(
            f"{recordings.uri}: {len(episodes)} episodes cannot be split among {parts}"
            " contributors; ask for fewer, or record more."
        )
    random = np.random.default_rng([seed, parts])
    if scheme == "iid":
        return _named(episodes, np.array_split(random.permutation(len(episodes)), parts))
    if scheme == "region":
        return _named(episodes, np.array_split(np.argsort(bearings(recordings)), parts))
    tasks = [recordings.tasks[recordings.rows(episode).start] for episode in episodes]
    if scheme == "task":
        return _named(episodes, _by_task(recordings.uri, tasks, parts))
    labels = tasks
    if len(set(tasks)) == 1:
        order = np.argsort(bearings(recordings))
        rank = np.argsort(order)
        labels = [str(int(place) * REGIONS // len(episodes)) for place in rank]
    return _named(episodes, _dirichlet(labels, parts, alpha, random, recordings.uri))


def bearings(recordings: Recordings) -> NDArray[np.float64]:
    """Where the arm points at the end of each episode: the state's first joint, in its unit."""
    state = recordings.columns["observation.state"]
    return np.array([float(state[recordings.rows(e).stop - 1, 0]) for e in recordings.episodes])


def held_out_count(uri: str, episodes: int, share: float) -> int:
    """How many of so many episodes ``--hold-out`` keeps out of training.

    Raises
    ------
    UsageError
        If it is no share.
    DataError
        If none would be left to train on.
    """
    if not 0.0 < share < 1.0:
        raise UsageError(f"--hold-out: give a share between 0 and 1, not {share:g}.")
    count = max(1, round(share * episodes))
    if count >= episodes:
        are = "episode is" if episodes == 1 else "episodes are"
        raise DataError(
            f"{uri}: {episodes} {are} too few to train on some and hold out others; record more."
        )
    return count


def _by_task(uri: str, tasks: Sequence[str], parts: int) -> list[NDArray[np.int64]]:
    """The largest task goes to the part with the fewest episodes, then the next."""
    names, counts = np.unique(np.array(tasks), return_counts=True)
    if len(names) < parts:
        raise DataError(
            f"{uri}: has {len(names)} tasks, which cannot be split among {parts} contributors by"
            " task; ask for fewer, or split by region."
        )
    owner: dict[str, int] = {}
    held = [0] * parts
    for index in np.argsort(-counts, kind="stable"):
        owner[str(names[index])] = smallest = held.index(min(held))
        held[smallest] += int(counts[index])
    return [
        np.array([i for i, task in enumerate(tasks) if owner[task] == part])
        for part in range(parts)
    ]


def _dirichlet(
    labels: Sequence[object], parts: int, alpha: float, random: np.random.Generator, uri: str
) -> list[NDArray[np.int64]]:
    if alpha <= 0:
        raise DataError(f"{uri}: Dirichlet's alpha is {alpha:g}, it must be more than 0.")
    kinds = sorted(set(labels), key=str)
    for _ in range(_TRIES):
        shares: list[list[int]] = [[] for _ in range(parts)]
        for kind in kinds:
            members = [i for i, label in enumerate(labels) if label == kind]
            owners = random.choice(parts, len(members), p=random.dirichlet(np.full(parts, alpha)))
            for member, owner in zip(members, owners, strict=True):
                shares[int(owner)].append(member)
        if all(shares):
            return [np.array(share) for share in shares]
    raise DataError(
        f"{uri}: with alpha {alpha:g} some of {parts} contributors would have no episode; raise"
        " alpha, or ask for fewer contributors."
    )


def _named(episodes: list[int], shares: Sequence[NDArray[np.int64]]) -> list[list[int]]:
    return [sorted(episodes[int(index)] for index in share) for share in shares]
