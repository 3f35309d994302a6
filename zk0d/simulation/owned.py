"""An owner's recordings, on which trained policies are compared and tuned.

A command names them, or a node's settings do: then all of its datasets count, as in a federation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zk0d.config.cameras import MappedAt
from zk0d.config.datasets import DatasetSettings
from zk0d.config.machine import ClientSettings, ReadingSettings
from zk0d.config.names import DatasetUri
from zk0d.errors import DataError, UsageError
from zk0d.learning.cameras import share_out
from zk0d.learning.joined import open_all
from zk0d.learning.partition import held_out_count
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.robot import group_of
from zk0d.learning.statistics import Statistics
from zk0d.learning.trained import TrainedPolicy

#: Of fewer episodes an interval says nothing: they may all lie on one side by chance.
FEWEST_HELD_OUT = 5
#: Held out if neither a command nor a node's settings say how many.
USUAL_SHARE = 0.1


@dataclass(frozen=True)
class OwnRecordings:
    """What an owner has recorded.

    Attributes
    ----------
    datasets
        Each, and what of it counts; cameras are mapped as for a run.
    at
        Where their owner maps cameras.
    name
        The node's; empty if a command names the recordings.
    holdout_episodes
        So many of each dataset the node keeps out of training, the newest.
    reading
        How they are read.
    models
        Model names that this machine maps to folders.
    """

    datasets: tuple[DatasetSettings, ...]
    at: MappedAt = MappedAt.COMMAND
    name: str = ""
    holdout_episodes: int = 0
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    models: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def typed(
        cls, names: Sequence[str], cameras: Mapping[str, str], reading: ReadingSettings
    ) -> OwnRecordings:
        """Those that a person names at a terminal."""
        uris = [str(DatasetUri.typed(name)) for name in names]
        shares = share_out(cameras, uris)
        return cls(
            tuple(
                DatasetSettings(uri=uri, cameras=share)
                for uri, share in zip(uris, shares, strict=True)
            ),
            reading=reading,
        )

    @classmethod
    def lent(cls, path: Path, reading: ReadingSettings | None = None) -> OwnRecordings:
        """Those that a node's ``client.toml`` names.

        Raises
        ------
        UsageError
            If there is no such file, or it names none.
        """
        settings = ClientSettings.load(path) if path.exists() else None
        if settings is None or not settings.lent:
            raise UsageError(
                f"no dataset is named, here or in {path}; add --dataset with a folder, or with"
                " user/name on the hub."
            )
        return cls(
            tuple(
                each.model_copy(update={"cameras": settings.cameras_of(each)})
                for each in settings.lent
            ),
            MappedAt.SETTINGS,
            settings.name,
            settings.learner.holdout_episodes,
            reading or settings.learner,
            settings.models,
        )

    def open(self, policy: TrainedPolicy) -> Recordings:
        """Open them with their cameras named as the policy knows them.

        Raises
        ------
        DataError, UnavailableError
            If they cannot be opened, or do not fit each other.
        """
        return open_all(
            self.datasets,
            lambda each: open_recordings(
                each.uri, cameras=named_as(each.cameras or {}, policy.cameras), mapped_at=self.at
            ),
        )

    def held_out(self, recordings: Recordings, share: float | None) -> list[int]:
        """The newest episodes of each dataset, on which policies are measured.

        Parameters
        ----------
        share
            Of each dataset's episodes; by default as many as the node holds out, or else a tenth.

        Raises
        ------
        DataError
            If they are too few to tell policies apart, or all that there are.
        """
        if share is None and self.holdout_episodes:
            held = recordings.newest(self.holdout_episodes)
        else:
            held = newest_share(recordings, USUAL_SHARE if share is None else share)
        if len(held) < FEWEST_HELD_OUT:
            are = "episodes are" if held[1:] else "episode is"
            raise DataError(
                f"{recordings.uri}: {len(held)} held-out {are} too few to tell two policies apart,"
                f" which takes {FEWEST_HELD_OUT}; hold out a larger share (--hold-out), also when"
                " you train on them, or record more."
            )
        return held

    def notices(self, held: Collection[int]) -> list[str]:
        """What a reader should know of the held-out episodes, a sentence each."""
        if not self.name:
            return []
        if not self.holdout_episodes:
            return [
                "this node trains on every episode (learner.holdout-episodes is 0), so a policy"
                " that it helped to train may have seen the held-out ones, and looks better here"
                " than it is."
            ]
        if len(held) > self.holdout_episodes * len(self.datasets):
            return [
                f"--hold-out names more episodes than the {self.holdout_episodes} of each dataset"
                " that this node keeps out of training (learner.holdout-episodes): a policy that it"
                " helped to train has seen the others."
            ]
        return []


def check_measured(recordings: Recordings, episodes: Collection[int]) -> None:
    """Refuse figures of too few episodes, though more are held out.

    Raises
    ------
    DataError
        If an interval of them would say nothing.
    """
    if len(episodes) < FEWEST_HELD_OUT:
        raise DataError(
            f"{recordings.uri}: only {len(episodes)} held-out episodes have frames to measure on,"
            f" and it takes {FEWEST_HELD_OUT}; measure more frames (--frames 0 is all), or hold out"
            " more (--hold-out)."
        )


def newest_share(recordings: Recordings, share: float) -> list[int]:
    """That share of each dataset's episodes, the newest."""
    datasets: dict[str, list[int]] = {}
    for episode in recordings.episodes:
        datasets.setdefault(recordings.source(episode)[0].uri, []).append(episode)
    return [
        episode
        for uri, episodes in datasets.items()
        for episode in sorted(episodes)[-held_out_count(uri, len(episodes), share) :]
    ]


def named_as(mapping: Mapping[str, str], cameras: Collection[str]) -> dict[str, str]:
    """The part of a mapping of cameras that a policy needs.

    Two policies may call one camera differently: one by the run's name, the other, which was
    trained on these recordings alone, by the recordings'. That one needs no mapping.
    """
    return {own: to for own, to in mapping.items() if to in cameras or own not in cameras}


def statistics_for(
    policy: TrainedPolicy, own: OwnRecordings, recordings: Recordings
) -> tuple[Statistics, str]:
    """What the policy normalizes these recordings with, and of which group that is."""
    for group in (
        group_of("node", own.name, ""),
        group_of("robot-type", "", recordings.summary.robot_type),
    ):
        if group in policy.groups:
            return policy.statistics(group), group
    return policy.statistics(), ""
