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
from lerobot.utils.constants import (
    POLICY_POSTPROCESSOR_DEFAULT_NAME,
    POLICY_PREPROCESSOR_DEFAULT_NAME,
)
from numpy.typing import NDArray
from safetensors import SafetensorError

from zk0d.config.cameras import camera_feature, camera_name
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

#: The step that normalizes what comes in, and the one that brings actions back.
_NORMALIZER, _UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
_UNKNOWN = "unknown"
_PARTS = ("mean", "std", "min", "max")
_QUANTILES = ("q01", "q10", "q50", "q90", "q99")
#: What each normalization divides by, as its two numbers, and with which it does nothing.
_IDLE = {
    "MEAN_STD": ("mean", 0.0, "std", 1.0),
    "MIN_MAX": ("min", -1.0, "max", 1.0),
    "QUANTILES": ("q01", -1.0, "q99", 1.0),
    "QUANTILE10": ("q10", -1.0, "q90", 1.0),
}


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
    joints
        What the numbers of the state and of the action are called, if that is known.
    """

    title: str
    folder: Path
    family: str
    cameras: tuple[str, ...]
    groups: tuple[str, ...]
    robot_types: tuple[str, ...] = ()
    joints: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @classmethod
    def read(
        cls,
        folder: Path,
        title: str,
        robot_types: Sequence[str] = (),
        joints: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()),
    ) -> TrainedPolicy:
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
            joints=joints,
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

    def check_processors(self, group: str = "") -> None:
        """Refuse processors that would let numbers pass as they are, without a word.

        LeRobot skips what it has no statistics of, and a base model's statistics change nothing.

        Raises
        ------
        ConfigError
            Naming the folder and what is missing, or of another width or value.
        """
        place = self.folder / GROUPS_FOLDER / group if group else self.folder
        values = self._step(place, POLICY_PREPROCESSOR_DEFAULT_NAME, _NORMALIZER)
        back = self._step(place, POLICY_POSTPROCESSOR_DEFAULT_NAME, _UNNORMALIZER)
        config = _read(self.folder / CONFIG_FILE)
        modes = config.get("normalization_mapping") or {}
        for key, kind, tensors, table in (
            (STATE, "STATE", values, "input_features"),
            (ACTION, "ACTION", values, "output_features"),
            (ACTION, "ACTION", back, "output_features"),
        ):
            mode = str(modes.get(kind, "IDENTITY"))
            if mode not in _IDLE:
                raise self._not_whole(place, f"'{key}' is not normalized at all ({mode})")
            low, idle_low, high, idle_high = _IDLE[mode]
            parts = [tensors.get(f"{key}.{part}") for part in (low, high)]
            for part, tensor in zip((low, high), parts, strict=True):
                if tensor is None:
                    raise self._not_whole(place, f"they have no {part} of '{key}'")
                width = (config.get(table) or {}).get(key, {}).get("shape", [0])[0]
                if tensor.size != width:
                    raise self._not_whole(
                        place, f"{part} of '{key}' has {tensor.size} values, the policy {width}"
                    )
                if not np.isfinite(tensor).all():
                    raise self._not_whole(
                        place, f"{part} of '{key}' holds something else than numbers"
                    )
            if np.all(parts[0] == idle_low) and np.all(parts[1] == idle_high):
                raise self._not_whole(
                    place, f"those of '{key}' change nothing, as before any training"
                )
        for part in (each for each in back if each.startswith(f"{ACTION}.")):
            if part in values and not np.array_equal(values[part], back[part]):
                raise self._not_whole(place, f"the two of them differ in {part}")
        if modes.get("VISUAL", "IDENTITY") != "IDENTITY":
            for camera in self.cameras:
                if f"{camera_feature(camera)}.mean" not in values:
                    raise self._not_whole(place, f"they have no mean of camera '{camera}'")

    def _not_whole(self, place: Path, why: str) -> ConfigError:
        return ConfigError(
            f"{self.title}: the processors in {place} are not whole: {why}; copy or pull the policy"
            " again.",
            reason="processors",
        )

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
            self.robot(statistics, recordings.summary.robot_type),
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

    def robot(self, statistics: Statistics, own: str) -> RobotDescription:
        """As much as is known of the arms it was trained on; of several types that of ``own``."""
        state, action = (
            Components.of(names, len(statistics.features[name].mean), statistics.features[name])
            for name, names in zip((STATE, ACTION), self.joints, strict=True)
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
        return self._step(place, POLICY_PREPROCESSOR_DEFAULT_NAME, _NORMALIZER)

    def _step(self, place: Path, pipeline: str, name: str) -> Mapping[str, Any]:
        """The tensors of a pipeline's step; none if it has no such step, or that has none."""
        path = place / f"{pipeline}.json"
        steps = _read(path).get("steps") or []
        files = [step.get("state_file") for step in steps if step.get("registry_name") == name]
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
