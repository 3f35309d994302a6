"""Which of a dataset's pictures a policy takes, and under which names. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from zk0d.config.cameras import MappedAt, camera_name, camera_words, did_you_mean
from zk0d.errors import UsageError, Zk0dError
from zk0d.learning.layout import Feature, Info, find, read_info, wrong

_MASKS = {"mask", "masks", "seg", "segmentation", "semantic", "silhouette", "matte"}


def map_cameras(
    info: Info, uri: str, mapping: Mapping[str, str], at: MappedAt
) -> tuple[dict[str, str], list[str]]:
    """The policy's name for each picture's feature that is used, and what a reader should know.

    Parameters
    ----------
    mapping
        Own names to the policy's; ``""`` leaves a camera out. The others keep their names, but
        for depth cameras and masks, which are left out.

    Raises
    ------
    DataError
        If ``mapping`` names no camera of the dataset, or what is left cannot be used.
    """
    keys = {camera_name(key): key for key, each in info.features.items() if each.is_picture}
    own = {_own(name, keys): to for name, to in mapping.items()}
    for name in own:
        if name not in keys:
            near = did_you_mean(name, keys)
            raise wrong(
                uri,
                f"{at.value} names '{name}'{near}",
                f"the recordings have {', '.join(sorted(keys)) or 'no camera'}",
            )
    mapped, notices = {}, []
    for name, key in keys.items():
        why = _not_for_policies(name, info.features[key])
        if why and own.get(name) and not _has_colours(info.features[key]):
            raise wrong(
                uri,
                f"'{name}' {why}, which no policy here takes",
                f"leave it out: {at.spell({name: ''})}",
            )
        if why and name not in own:
            notices.append(f"camera '{name}' {why}: it is left out.")
        elif to := own.get(name, name):
            mapped[key] = to
    if not mapped:
        left_out = f" ({notices[0]})".replace(".)", ")") if notices else ""
        raise wrong(uri, f"has no camera that is used{left_out}", "a policy needs at least one")
    if len(set(mapped.values())) != len(mapped):
        raise wrong(uri, f"{at.value} maps two cameras to one name", "give each its own")
    return mapped, notices


def share_out(mapping: Mapping[str, str], uris: Sequence[str]) -> list[dict[str, str]]:
    """For each dataset of a command the part of ``mapping`` whose cameras it has.

    A dataset that cannot be read gets none; whoever opens it says why.

    Raises
    ------
    UsageError
        If no dataset has a camera that ``mapping`` names.
    """
    shares: list[dict[str, str]] = []
    seen: dict[str, str] = {}
    unread = False
    for uri in uris:
        try:
            features = read_info(find(uri), uri).features
        except Zk0dError:
            unread = True
            shares.append({})
            continue
        keys = {camera_name(key): key for key, each in features.items() if each.is_picture}
        seen |= keys
        shares.append({name: to for name, to in mapping.items() if _own(name, keys) in keys})
    for name in mapping:
        if not unread and not any(name in share for share in shares):
            raise UsageError(
                f"--camera: no dataset has a camera '{name}'{did_you_mean(name, seen)}; they have"
                f" {', '.join(sorted(seen)) or 'none'}."
            )
    return shares


def _own(name: str, keys: Collection[str]) -> str:
    """A dataset's name for the camera that a person calls ``name``."""
    long = f"observation.{name}"
    return long if name not in keys and long in keys else name


def _has_colours(feature: Feature) -> bool:
    return 3 in (feature.shape[0], feature.shape[-1])


def _not_for_policies(name: str, feature: Feature) -> str:
    """Why a policy does not take such pictures unless asked to; empty if it does."""
    told = {**(feature.video_info or {}), **(feature.info or {})}
    deep = re.search(r"gray1[0-6]|1[26]le", str(told.get("video.pix_fmt", "")))
    if feature.is_depth or "depth" in camera_words(name) or (deep and not _has_colours(feature)):
        return "is a depth camera"
    if _MASKS & camera_words(name):
        return "is a mask"
    return "" if _has_colours(feature) else "has no three colour channels"
