"""A policy that was trained, as a folder in LeRobot's layout: read before it is loaded.

Its processors hold the statistics that it was trained with. Everything that makes it run on
recordings, its cameras' names and its family, is in its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from lerobot.configs import NormalizationMode
from lerobot.utils import IMAGENET_STATS
from lerobot.utils.constants import POLICY_PREPROCESSOR_DEFAULT_NAME
from numpy.typing import NDArray
from safetensors import SafetensorError

from zk0d.config.cameras import camera_name
from zk0d.config.families import FAMILIES, UNTRAINED
from zk0d.config.machine import Precision
from zk0d.config.names import CONFIG_FILE, GROUPS_FOLDER, IMAGES, POLICY_PARTS
from zk0d.errors import ConfigError, UnavailableError
from zk0d.learning.layout import ACTION, STATE
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.recordings import Recordings
from zk0d.learning.robot import check_robot, group_of
from zk0d.learning.spec import Components, RobotDescription, check_fit
from zk0d.learning.statistics import FeatureStatistics, Statistics

_NORMALIZER = "normalizer_processor"
_UNKNOWN = "unknown"
_PARTS = ("mean", "std", "min", "max")
_QUANTILES = ("q01", "q10", "q50", "q90", "q99")


class StoredStatistics(Statistics):
    """Statistics to the bit as a checkpoint's processors hold them, quantiles too if it has any."""

    stored: dict[str, dict[str, tuple[float, ...]]]

    def for_training(self) -> dict[str, dict[str, NDArray[np.float32]]]:
        return {
            feature: {part: np.asarray(values, np.float32) for part, values in parts.items()}
            for feature, parts in self.stored.items()
        }


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy's folder.

    Attributes
    ----------
    title
        What sentences call it.
    family
        LeRobot's name of its class.
    cameras
        What it calls its cameras.
    groups
        Groups of arms that have processors of their own in it.
    robot_types
        Of the arms that it was trained on, if that is known.
    """

    title: str
    folder: Path
    family: str
    cameras: tuple[str, ...]
    groups: tuple[str, ...]
    robot_types: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path, title: str, robot_types: Sequence[str] = ()) -> TrainedPolicy:
        """Read what the folder is.

        Raises
        ------
        UnavailableError
            If it holds no policy.
        ConfigError
            If it is of a family that zk0d does not train, or cannot be read.
        """
        for part in POLICY_PARTS:
            if not (folder / part).is_file():
                raise UnavailableError(
                    f"{title}: {folder} holds no policy ({part} is missing); name a checkpoint's"
                    " folder in LeRobot's layout."
                )
        config = _read(folder / CONFIG_FILE)
        family = str(config.get("type"))
        if family not in FAMILIES:
            why = UNTRAINED.get(family, "zk0d does not know it")
            raise ConfigError(
                f"{title}: {folder / CONFIG_FILE} is of policy '{family}': {why}; take"
                f" {', '.join(FAMILIES)}."
            )
        features = config.get("input_features") or {}
        groups = sorted(path.name for path in (folder / GROUPS_FOLDER).glob("*") if path.is_dir())
        return cls(
            title=title,
            folder=folder,
            family=family,
            cameras=tuple(camera_name(key) for key in features if key.startswith(IMAGES)),
            groups=tuple(groups),
            robot_types=tuple(robot_types),
        )

    def statistics(self, group: str = "") -> Statistics:
        """What it normalizes with: as all of its arms do, or as a group's.

        Raises
        ------
        ConfigError
            If its processors do not say.
        """
        place = self.folder / GROUPS_FOLDER / group if group else self.folder
        values = self._normalizer(place)
        features, stored = {}, {}
        for name in (STATE, ACTION):
            missing = [part for part in _PARTS if f"{name}.{part}" not in values]
            if missing:
                raise ConfigError(
                    f"{self.title}: the processors in {place} have no {missing[0]} of '{name}', so"
                    " the policy cannot act; a base model has none before it was trained on"
                    " recordings."
                )
            stored[name] = {
                part: tuple(values[f"{name}.{part}"].ravel().tolist())
                for part in (*_PARTS, *_QUANTILES)
                if f"{name}.{part}" in values
            }
            numbers = {part: stored[name][part] for part in _PARTS}
            features[name] = FeatureStatistics(count=1, **numbers)  # a checkpoint keeps no count
        return StoredStatistics(features=features, stored=stored)

    def load(
        self,
        recordings: Recordings,
        statistics: Statistics,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        mixed_units: bool = False,
    ) -> LoadedPolicy:
        """Load it for these recordings, which must be of such a robot.

        Parameters
        ----------
        statistics
            Those that it normalizes with.
        mixed_units
            Let recordings on another scale pass.

        Raises
        ------
        DataError
            If the recordings do not fit: widths, cameras or the joints' scale.
        ConfigError
            If it was trained with statistics of pictures that zk0d does not use.
        UnavailableError
            If it cannot be loaded.
        """
        name, models = str(self.folder), {str(self.folder): self.folder}
        spec = spec_for(self.family, name, 0, None, models)
        spec = spec.model_copy(update={"fps": recordings.summary.fps})  # a checkpoint has none
        check_fit(recordings.summary, spec, recordings.uri, recordings.camera_map)
        check_robot(
            recordings.robot(recordings.finite_statistics()),
            self._robot(statistics, recordings.summary.robot_type),
            where=recordings.uri,
            whose=f"what {self.title} was trained on",
            mixed_units=mixed_units,
        )
        loaded = load_policy(spec, models=models, device=device, precision=precision)
        if loaded.config.normalization_mapping.get("VISUAL") is not NormalizationMode.IDENTITY:
            self._check_pictures()
        return loaded

    def settings(self) -> dict[str, Any]:
        """Its configuration, without what LeRobot notes of places and of training."""
        config = _read(self.folder / CONFIG_FILE)
        return {
            key: value
            for key, value in config.items()
            if not key.startswith(("optimizer_", "scheduler_", "push_", "pretrained_"))
            and key not in ("device", "repo_id", "private", "tags", "license", "input_features")
        }

    def _robot(self, statistics: Statistics, own: str) -> RobotDescription:
        """As much as is known of the arms it was trained on; of several types that of ``own``."""
        state, action = (
            Components.of((), len(statistics.features[name].mean), statistics.features[name])
            for name in (STATE, ACTION)
        )
        kinds = {_kind(each): each for each in self.robot_types if _kind(each) != _UNKNOWN}
        first = next(iter(kinds.values()), "")
        return RobotDescription(robot_type=kinds.get(_kind(own), first), state=state, action=action)

    def _check_pictures(self) -> None:
        for key, mean in self._normalizer(self.folder).items():
            if not key.startswith(IMAGES) or not key.endswith(".mean"):
                continue
            if not np.allclose(mean.ravel(), np.ravel(IMAGENET_STATS["mean"]), atol=1e-4):
                raise ConfigError(
                    f"{self.title}: it normalizes pictures by their own statistics, zk0d by"
                    " ImageNet's; train it with LeRobot's default (use_imagenet_stats)."
                )

    def _normalizer(self, place: Path) -> Mapping[str, Any]:
        """The tensors of the normalizing step, by ``FEATURE.STATISTIC``."""
        path = place / f"{POLICY_PREPROCESSOR_DEFAULT_NAME}.json"
        steps = _read(path).get("steps") or []
        files = [step.get("state_file") for step in steps if step["registry_name"] == _NORMALIZER]
        if not files or not files[0]:
            return {}
        try:
            values: Mapping[str, Any] = safetensors.numpy.load_file(place / Path(files[0]).name)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{self.title}: {place / files[0]} cannot be read ({error}); copy the checkpoint"
                " again."
            ) from None
        return values


def _kind(robot_type: str) -> str:
    return group_of("robot-type", "", robot_type)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no table")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); copy the checkpoint again.") from None
    return content
