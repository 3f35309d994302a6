"""The videos of a LeRobot v3.0 dataset: whether they hold what its episodes claim. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import av
import numpy as np
from numpy.typing import NDArray

from zk0d.learning.layout import (
    INFO,
    LEAVE_OUT,
    Episode,
    Layout,
    forbidden,
    is_there,
    unreadable,
)
from zk0d.learning.spec import SAME_RATE

# FFmpeg would print what it thinks of a damaged video; the refusal says it in a sentence.
av.logging.set_libav_level(av.logging.PANIC)

#: LeRobot's: a picture is a row's if their times differ by less.
TOLERANCE_SECONDS = 1e-4


@dataclass(frozen=True)
class _Head:
    seconds: float
    frames: int  #: 0 if the head does not say
    height: int
    width: int


def check_times(layout: Layout, times: NDArray[np.float32]) -> None:
    """Refuse rows whose time is another frame's: a chunk of actions is a span of time.

    ``times`` are the rows' time stamps in seconds, each from its episode's first, ``(frames,)``.

    Raises
    ------
    DataError
        Naming the rate at which the rows were recorded if they are steady, and the first such row.
    """
    fps = layout.info.fps
    for episode in layout.episodes:
        own = times[episode.rows].astype(np.float64)
        off = ~(np.abs(own - np.arange(len(own)) / fps) < 0.5 / fps)
        if not off.any():
            continue
        row = int(off.argmax())
        raise layout.wrong(
            f"episode {episode.number}, frame {row} has the time {own[row]:.3f} s, at"
            f" {fps:g} frames per second it is {row / fps:.3f} s{_pace(own, fps)}",
            "correct the rate or the time stamps, or record it again",
        )


def _pace(times: NDArray[np.float64], fps: float) -> str:
    """At what other rate an episode was recorded, if its times are steady."""
    steps = np.diff(times)
    step = float(np.median(steps)) if len(steps) else 0.0
    steady = step > 0 and np.median(np.abs(steps - step)) < 0.1 * step
    if not steady or abs(1 / step - fps) < SAME_RATE * fps:
        return ""
    return f"; it was recorded at about {1 / step:.3g} frames per second"


def check_videos(layout: Layout, cameras: Iterable[str]) -> None:
    """Hold the episodes' spans against their rows, each other, and the heads of the videos.

    Raises
    ------
    DataError
        If a video is missing, damaged or of another size, or if a span is longer or shorter than
        its episode by half a frame, overlaps another or leaves its file.
    """
    for camera in cameras:
        if layout.info.features[camera].dtype != "video":
            continue
        by_file: dict[str, list[Episode]] = {}
        for episode in layout.episodes:
            span = episode.spans[camera]
            frames = (span.end - span.start) * layout.info.fps
            if not (span.start >= 0 and abs(frames - len(episode)) <= 0.5):
                raise layout.wrong(
                    f"episode {episode.number} has {len(episode)} rows and {frames:.1f} frames of"
                    f" {span.file}, so rows and pictures do not belong together",
                    LEAVE_OUT,
                )
            by_file.setdefault(span.file, []).append(episode)
        for file, episodes in by_file.items():
            _check_file(layout, camera, file, episodes)


def short_videos(layout: Layout, cameras: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """Videos with fewer pictures than rows, by their heads: file, pictures, rows."""
    for camera in cameras:
        rows: dict[str, int] = {}
        for episode in layout.episodes:
            if camera in episode.spans:
                file = episode.spans[camera].file
                rows[file] = rows.get(file, 0) + len(episode)
        for file, count in rows.items():
            frames = _head(layout, file).frames
            if 0 < frames < count:
                yield file, frames, count


def missing_pictures(layout: Layout, camera: str, times: NDArray[np.float32]) -> dict[int, int]:
    """How many rows of each episode have no picture of their time; whole episodes are left out.

    Reads whole videos and decodes nothing. ``times`` as for :func:`check_times`.
    """
    stamps: dict[str, NDArray[np.float64]] = {}
    missing: dict[int, int] = {}
    for episode in layout.episodes:
        span = episode.spans[camera]
        if span.file not in stamps:
            stamps[span.file] = _stamps(layout, span.file)
        wanted = span.start + times[episode.rows].astype(np.float64)
        lacking = int((~matched(stamps[span.file], wanted)).sum())
        if lacking:
            missing[episode.number] = lacking
    return missing


def check_pictures(layout: Layout, times: NDArray[np.float32]) -> None:
    """Refuse a dataset in which some row of some camera has no picture of its time.

    Raises
    ------
    DataError
        Naming the first such episode and its video.
    """
    for camera in layout.cameras:
        if layout.info.features[camera].dtype != "video":
            continue
        for episode, count in missing_pictures(layout, camera, times).items():
            raise layout.wrong(
                f"episode {episode} lacks {count} pictures in"
                f" {layout.episodes[episode].spans[camera].file}, so rows and pictures do not"
                " belong together",
                LEAVE_OUT,
            )


def matched(stamps: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """For each of ``times`` whether one of ``stamps`` (seconds, ascending) is its own."""
    if not len(stamps):
        return np.zeros(len(times), np.bool_)
    after = np.searchsorted(stamps, times).clip(max=len(stamps) - 1)
    before = (after - 1).clip(min=0)
    distance = np.minimum(np.abs(stamps[after] - times), np.abs(stamps[before] - times))
    near: NDArray[np.bool_] = distance < TOLERANCE_SECONDS
    return near


def _check_file(layout: Layout, camera: str, file: str, episodes: list[Episode]) -> None:
    head = _head(layout, file)
    _, height, width = layout.info.features[camera].channels_first
    if (head.height, head.width) != (height, width):
        raise layout.wrong(
            f"{file} shows {head.width} x {head.height} pixels, {INFO} says {width} x {height}",
            f"correct the shape of '{camera}' there if the video is right, or record it again",
        )
    half = 0.5 / layout.info.fps
    ordered = sorted(episodes, key=lambda episode: episode.spans[camera].start)
    for one, other in pairwise(ordered):
        if not other.spans[camera].start >= one.spans[camera].end - half:
            raise layout.wrong(
                f"episodes {one.number} and {other.number} claim the same part of {file}"
            )
    last = ordered[-1]
    beyond = last.spans[camera].end - head.seconds
    if not beyond <= half:
        raise layout.wrong(
            f"{file} ends {beyond * layout.info.fps:.0f} frames before episode"
            f" {last.number}, which has rows without pictures",
            LEAVE_OUT,
        )


def _head(layout: Layout, file: str) -> _Head:
    with _opened(layout, file) as container:
        stream = container.streams.video[0]
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (container.duration or 0) / 1e6  # in AV_TIME_BASE
        context = stream.codec_context
        if context is None:  # without a decoder for what it is, or what damage made of it
            raise layout.wrong(f"{file} is of a kind that cannot be decoded here")
        return _Head(seconds, stream.frames, context.height, context.width)


def _stamps(layout: Layout, file: str) -> NDArray[np.float64]:
    """When each picture of a video is shown, in seconds, ascending."""
    stamps: list[float] = []
    # What lies behind damage is missing.
    with _opened(layout, file) as container, suppress(av.error.FFmpegError, OSError):
        stream = container.streams.video[0]
        stamps.extend(
            float(packet.pts * stream.time_base)
            for packet in container.demux(stream)
            if packet.pts is not None
        )
    return np.sort(np.array(stamps, dtype=np.float64))


def _opened(layout: Layout, file: str) -> av.container.InputContainer:
    path = layout.root / file
    if not is_there(path, layout.uri):
        raise layout.wrong(f"the dataset is incomplete ({file} is missing)")
    try:
        container = av.open(str(path))
    except PermissionError:
        raise forbidden(path, layout.uri) from None
    except (av.error.FFmpegError, OSError) as error:
        raise unreadable(layout.root, file, error, layout.uri) from None
    if not container.streams.video:
        container.close()
        raise layout.wrong(f"{file} holds no video")
    return container
