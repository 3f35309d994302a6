"""What cameras are called, how a person maps them to a policy's, and which may mean the same.

Nearly no two owners call their cameras alike.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import tomli_w

from zk0d.config.names import IMAGES

#: Words for places that a camera looks from; a name belongs to the first group that has one of its
#: words. SmolVLA's camera1 looks from above or from the front, its camera2 from the wrist.
_WRIST = {"wrist", "hand", "gripper", "handeye", "eyeinhand", "arm", "palm", "tcp", "ee"}
_ABOVE = {"top", "overhead", "up", "above", "ceiling", "bird", "birdseye", "topdown", "high"}
_FRONT = {"front", "head", "main", "base", "scene", "overview", "external", "agentview", "ego"}
_FRONT |= {"laptop", "phone", "webcam", "cam0", "camera0", "world"}
_SIDE = {"side", "left", "right", "back", "rear", "lateral"}
PLACES = (_WRIST, _ABOVE, _FRONT, _SIDE)
#: Names that say nothing of a place are given out in this order of the places.
_ORDER = (_ABOVE, _FRONT, _WRIST, _SIDE)
_NUMBERED = re.compile(r"(cam|camera|image|img|view)?_?\d*")


class MappedAt(Enum):
    """Where a person maps cameras, which decides how that is written."""

    SETTINGS = "[cameras]"
    EVALUATION = "cameras of the [[evaluation]] table"
    COMMAND = "--camera"

    def spell(self, names: Mapping[str, str]) -> str:
        """``names``, own ones mapped to the policy's, as one writes them there."""
        if self is MappedAt.COMMAND:
            words = (shlex.quote(f"{own}={to}") for own, to in names.items())
            return " ".join(f"--camera {word}" for word in words)
        pairs = ", ".join(tomli_w.dumps({own: to}).strip() for own, to in names.items())
        if self is MappedAt.SETTINGS:
            return f"{pairs} under [cameras] in client.toml"
        return f"cameras = {{ {pairs} }} in its [[evaluation]] table"


@dataclass(frozen=True)
class CameraMap:
    """How the cameras of a dataset are mapped: its own names by the policy's, and where."""

    at: MappedAt = MappedAt.SETTINGS
    own: Mapping[str, str] = field(default_factory=dict)

    def spell(self, names: Mapping[str, str]) -> str:
        """What one writes to map cameras, given by the names they have now, to others."""
        return self.at.spell({self.own.get(name, name): to for name, to in names.items()})


def camera_name(key: str) -> str:
    """What the camera of a picture's feature is called."""
    return key.removeprefix(IMAGES)


def camera_feature(camera: str) -> str:
    """The feature under which LeRobot's policies and robots know a camera.

    ``observation.image``, as LeRobot's simulators write it, is one already; a bare ``image``, which
    LeRobot's processors would drop, is none.
    """
    return camera if camera.startswith("observation.") else IMAGES + camera


def suggest_cameras(own: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Which of ``own`` cameras may be which of the ``wanted``, by likeness; each at most once."""
    mine, left = list(own), list(wanted)
    found: dict[str, str] = {}

    def pair(one: str, other: str) -> None:
        found[one] = other
        mine.remove(one)
        left.remove(other)

    for name in list(mine):
        place = _place(name)
        alike = [other for other in left if place is not None and _place(other) is place]
        if near := difflib.get_close_matches(name, alike, n=1, cutoff=0.0):
            pair(name, near[0])
    for name in list(mine):
        if near := difflib.get_close_matches(name, left, n=1, cutoff=0.7):
            pair(name, near[0])
    # Numbers have no place: the usual order.
    rank = {id(place): number for number, place in enumerate(_ORDER)}
    for name in sorted(mine, key=lambda each: rank.get(id(_place(each)), len(_ORDER))):
        if free := [other for other in left if _NUMBERED.fullmatch(_plain(other))]:
            pair(name, free[0])
    if len(mine) == len(left) == 1:
        pair(mine[0], left[0])
    return found


def did_you_mean(name: str, known: Collection[str]) -> str:
    """``" (did you mean 'x'?)"`` for the most alike of the known cameras, or nothing."""
    place = _place(name)
    alike = [each for each in known if place is not None and _place(each) is place]
    near = difflib.get_close_matches(name, alike or known, n=1, cutoff=0.0 if alike else 0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _plain(name: str) -> str:
    return name.removeprefix("observation.").lower()


def camera_words(name: str) -> set[str]:
    """The words of a camera's name, and all of it as one."""
    return {word for word in re.split(r"[^a-z0-9]+|(?<=[a-z]{2})(?=\d)", _plain(name)) if word} | {
        re.sub(r"[^a-z0-9]", "", _plain(name))
    }


def _place(name: str) -> set[str] | None:
    words = camera_words(name)
    return next((place for place in PLACES if place & words), None)
