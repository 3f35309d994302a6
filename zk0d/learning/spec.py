"""What a run's policy is, said so that two machines can tell whether they mean the same one.

No torch here: the server reads and sends these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from zk0d.config.base import Settings
from zk0d.config.cameras import CameraMap, suggest_cameras
from zk0d.config.families import FAMILIES, NEW, family_of
from zk0d.config.names import PolicyName
from zk0d.config.run import AdapterName, RunSettings
from zk0d.errors import DataError
from zk0d.learning import backbones

if TYPE_CHECKING:
    from zk0d.learning.statistics import FeatureStatistics

UNMAPPED = CameraMap()
#: Rates that differ by less are one: 29.97 is 30, and a chunk of a second ends a millisecond later.
SAME_RATE = 0.01


#: Of a robot's description, which comes from other machines.
LONGEST_NAME, MOST_VALUES = 64, 512


def check_printable(text: str) -> str:
    """``text``, if a terminal may show it as it is; else ``ValueError``."""
    if not text.isprintable():
        raise ValueError("a name holds what cannot be printed")
    return text


Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(check_printable)]
Numbers = Annotated[tuple[float, ...], Field(max_length=MOST_VALUES)]


class Components(Settings):
    """What the numbers of a state or an action are called, in order, and how far each goes.

    Either may be empty, which is unknown.
    """

    names: Annotated[tuple[Name, ...], Field(max_length=MOST_VALUES)] = ()
    low: Numbers = ()
    high: Numbers = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.low) != len(self.high) or not all(map(math.isfinite, (*self.low, *self.high))):
            raise ValueError("low and high must be finite and of one length")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("low is above high")
        if self.names and self.low and len(self.names) != len(self.low):
            raise ValueError("names and ranges must be of one length")
        return self

    @classmethod
    def of(cls, names: Iterable[str], width: int, statistics: FeatureStatistics | None) -> Self:
        """Of a dataset's feature; names that are not one for each number are unknown."""
        told = tuple(names)
        fits = len(told) == width <= MOST_VALUES and len(set(told)) == width
        if not fits or not all(0 < len(n) <= LONGEST_NAME and n.isprintable() for n in told):
            told = ()
        if statistics is None or width > MOST_VALUES:
            return cls(names=told)
        return cls(names=told, low=statistics.min, high=statistics.max)

    @property
    def width(self) -> int:
        """How many numbers; 0 if that is unknown."""
        return len(self.names) or len(self.low)


class RobotDescription(Settings):
    """A robot as its recordings show it."""

    robot_type: Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(check_printable)] = ""
    state: Components = Components()
    action: Components = Components()


class Adapter(Settings):
    """Matrices beside layers of a policy that is frozen; they alone train and travel.

    A run asks for a kind and a rank. Who builds the policy first adds the rest.
    """

    kind: AdapterName
    rank: PositiveInt
    targets: Annotated[
        tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=4096)
    ] = Field((), description="The layers by name; empty: those that LeRobot names.")
    trains_a: bool = Field(
        False,
        description="Train A, too, whose average is not exact: an experiment, which no run's"
        " settings ask for.",
    )
    norm: NonNegativeFloat = Field(
        0.0, description="Norm of the layers' own weights, to which an update's is compared."
    )

    @classmethod
    def of(cls, settings: RunSettings) -> Self | None:
        """What a run asks for; ``None`` if the policy itself trains."""
        if settings.adapter == "none":
            return None
        return cls(kind=settings.adapter, rank=settings.adapter_rank)

    def is_like(self, other: Adapter) -> bool:
        """Whether both are of the same matrices, whatever these are beside."""
        mine, theirs = ((a.kind, a.rank, sorted(a.targets)) for a in (self, other))
        return mine == theirs


class PolicySpec(Settings):
    """A policy by name, shape and content; never by path.

    The coordinator's evaluator fills it in, every learner builds the policy from it and compares
    ``sha256``, so that a different base model or library version is an error and no silent drift.
    """

    policy: PolicyName
    package_version: str = Field("", description="Of the package that the policy is of.")
    model_name: str
    seed: int
    fps: PositiveFloat = Field(description="Frames per second that the action chunk is made for.")
    state_width: PositiveInt
    action_width: PositiveInt
    cameras: dict[str, tuple[int, int, int]] = Field(
        description="Camera names of the policy with channels, height, width."
    )
    backbone: str = Field(
        "", description="Vision backbone that begins with ImageNet's weights; empty: at random."
    )
    adapter: Adapter | None = Field(None, description="None if the policy itself trains.")
    sha256: str = Field("", description="Hash of every weight, frozen ones too, before training.")

    @property
    def frozen_norm(self) -> float:
        """Norm of the frozen weights to which what trains is added."""
        return self.adapter.norm if self.adapter else 0.0

    @property
    def notice(self) -> str:
        """What a person should know of how it begins; empty if nothing."""
        backbone = family_of(self.policy).backbone
        if self.model_name != NEW or not backbone or self.backbone:
            return ""
        return (
            f"the new '{self.policy}' begins with a {backbone} of random weights, because"
            " ImageNet's are not in torch hub's cache; get them with zk0d fetch (fetch-models"
            f" names '{backbone}'), or without services download {backbones.URLS[backbone]} to"
            f" {backbones.path(backbone).parent}, and begin again"
        )


class RecordingsSummary(Settings):
    """What a dataset looks like from outside, with the node's camera names already mapped."""

    episodes: PositiveInt
    frames: PositiveInt
    fps: PositiveFloat
    state_width: PositiveInt
    action_width: PositiveInt
    cameras: dict[str, tuple[int, int, int]]
    robot_type: str = "unknown"

    def cache_bytes(self, policy: str) -> int:
        """What a policy family's usual model keeps of all frames."""
        pictures = [
            family_of(policy).embedding or math.prod(shape) for shape in self.cameras.values()
        ]
        return self.frames * sum(pictures)


def check_fit(
    recordings: RecordingsSummary,
    spec: PolicySpec,
    where: str,
    cameras: CameraMap = UNMAPPED,
) -> None:
    """Refuse recordings that the policy would accept in silence and learn nonsense from.

    Raises
    ------
    DataError
        Naming the first of: frame rate, state or action width, unknown or missing camera.
    """
    family = family_of(spec.policy)
    every = not family.spares_cameras
    check_alike(recordings, spec, where=where, every_camera=every, cameras=cameras)
    for what, have in (("state", recordings.state_width), ("action", recordings.action_width)):
        if family.widest and have > family.widest:
            wider = ", ".join(name for name, other in FAMILIES.items() if not other.widest)
            raise DataError(
                f"{where}: the {what} has {have} values, policy '{spec.policy}' takes at most"
                f" {family.widest}; train one that takes any number ({wider})."
            )


def check_alike(
    recordings: RecordingsSummary,
    like: PolicySpec | RecordingsSummary,
    *,
    where: str,
    every_camera: bool = True,
    cameras: CameraMap = UNMAPPED,
) -> None:
    """Refuse recordings of another shape than ``like``; errors as of `check_fit`.

    Cameras may differ in their resolution. ``cameras`` is how they were mapped.
    """
    if abs(recordings.fps - like.fps) > SAME_RATE * like.fps:
        raise DataError(
            f"{where}: recorded at {recordings.fps:g} frames per second, the policy's is"
            f" {like.fps:g}; an action chunk would span another time. Record or resample at"
            f" {like.fps:g}."
        )
    for what, have, want in (
        ("state", recordings.state_width, like.state_width),
        ("action", recordings.action_width, like.action_width),
    ):
        if have != want:
            raise DataError(
                f"{where}: the {what} has {have} values, the run's policy takes {want};"
                " join a run for this robot."
            )
    unknown = sorted(set(recordings.cameras) - set(like.cameras))
    missing = sorted(set(like.cameras) - set(recordings.cameras))
    if unknown:
        suggested = suggest_cameras([cameras.own.get(name, name) for name in unknown], missing)
        map_it = f"map it ({cameras.at.spell(suggested)}), or " if suggested else ""
        raise DataError(
            f"{where}: the policy does not know camera '{unknown[0]}' (it knows"
            f" {', '.join(sorted(like.cameras))}); {map_it}leave it out"
            f" ({cameras.spell({unknown[0]: ''})})."
        )
    if missing and (every_camera or not recordings.cameras):
        raise DataError(
            f"{where}: the policy needs camera '{missing[0]}', the recordings have"
            f" {', '.join(sorted(recordings.cameras)) or 'none'}; record with it, or train a policy"
            " of the cameras that are there."
        )
