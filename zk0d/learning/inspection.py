"""What is wrong or odd with somebody's recordings, before a federation trains on them.

``zk0bot data check`` and ``zk0bot doctor`` say the same of a dataset, because both ask here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d

from zk0d.errors import DataError
from zk0d.learning.frames import BadFrames, decode
from zk0d.learning.instructions import cut_instructions
from zk0d.learning.layout import ACTION, STATE
from zk0d.learning.license import license_of
from zk0d.learning.progress import Progress
from zk0d.learning.recordings import Recordings
from zk0d.learning.robot import differences, merge_robots, sentence
from zk0d.learning.spec import SAME_RATE, RobotDescription, check_alike
from zk0d.learning.statistics import still
from zk0d.learning.videos import TOLERANCE_SECONDS, missing_pictures, short_videos

#: What LeRobot's own recordings of SO-100 and SO-101 have.
USUAL_FPS, USUAL_WIDTH = 30, 6
FEW_EPISODES = 50
SHORTEST_SECONDS = 0.5
#: Longer or shorter than the median by this factor, an episode is worth a look.
ODD_LENGTH = 3.0

#: A step so many times a fast one is a jump.
JUMP = 10.0
#: How far an encoder's values are apart at its zero, by the units in which joints are recorded.
FULL_TURNS = (
    (360.0, "degrees"),
    (2 * np.pi, "radians"),
    (4096.0, "ticks"),
    (200.0, "percent of a range from -100 to 100"),
)

#: Pixels in a block's row, and the difference of 255 that coding does not make in its mean.
BLOCK, FAINT = 8, 16

Severity = Literal["wrong", "notice"]


@dataclass(frozen=True)
class Remark:
    """One thing that a check found: what, where, and what to do."""

    check: str
    severity: Severity
    text: str


@dataclass(frozen=True)
class EpisodeFacts:
    """One episode in numbers. ``wild`` counts frames with a value or a jump beyond belief."""

    episode: int
    task: str
    frames: int
    seconds: float
    not_finite: int
    wild: int
    same_as: int | None  #: an earlier episode with the same states and actions
    travel: float  #: mean over the joints of the way they went, in their own units


@dataclass(frozen=True)
class Inspection:
    """All that was found in one dataset."""

    uri: str
    episodes: tuple[EpisodeFacts, ...]
    remarks: tuple[Remark, ...]
    hashes: tuple[str, ...]  #: of each episode's states and actions

    @property
    def wrong(self) -> bool:
        """Whether a federation should not train on it as it is."""
        return any(remark.severity == "wrong" for remark in self.remarks)


def inspect(recordings: Recordings) -> Inspection:
    """Look at every number of a dataset.

    Wild is a value further from the component's usual range (its 0.5 to 99.5 % quantiles over
    all frames) than that range is wide, or a change within one frame that is a quarter of that
    range, ten times a fast step of that component (the 95 % quantile of those in which it moves),
    and no part of a motion. Both are measured without an encoder's seam, which is a jump itself.
    """
    values = torch.cat([recordings.columns[STATE], recordings.columns[ACTION]], 1).numpy()
    finite = ~recordings.not_finite().numpy()
    wild = _wild(values, finite, recordings.columns["frame_index"].numpy() == 0)
    episodes: list[EpisodeFacts] = []
    seen: dict[str, int] = {}
    hashes = []
    width = recordings.columns[STATE].shape[1]
    for number in recordings.episodes:
        rows = recordings.rows(number)
        content = np.ascontiguousarray(values[rows])
        digest = hashlib.sha256(content.tobytes()).hexdigest()
        hashes.append(digest)
        states = content[:, :width]
        episodes.append(
            EpisodeFacts(
                episode=number,
                task=recordings.tasks[rows.start],
                frames=len(content),
                seconds=len(content) / recordings.summary.fps,
                not_finite=int((~finite[rows]).sum()),
                wild=int(wild[rows].sum()),
                same_as=seen.get(digest),
                travel=float(np.nansum(np.abs(np.diff(states, axis=0))) / width),
            )
        )
        seen.setdefault(digest, number)
    remarks = [*_remarks(recordings, episodes, values, finite)]
    return Inspection(recordings.uri, tuple(episodes), tuple(remarks), tuple(hashes))


def _wild(
    values: NDArray[np.float32], finite: NDArray[np.bool_], first: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Frames with a value or a jump beyond belief, shape ``(frames,)``."""
    if not finite.any():
        return np.zeros(len(values), bool)
    seams = np.zeros(values.shape, bool)
    values = values.copy()
    for index in range(values.shape[1]):
        # A seam widens a joint's range and its steps to a turn, and would hide what else jumps.
        for turn, _ in FULL_TURNS:
            if len(rows := _seam_rows(values[:, index], first, turn)):
                seams[rows, index] = True
                values[:, index] = _unwrapped(values[:, index], first, turn)
    low, high = np.quantile(values[finite], (0.005, 0.995), axis=0)
    width = high - low
    # A motor that hardly moves (a closed gripper) makes any movement look wild.
    moves = ~still(low, high)
    steps = _steps(values, first)
    with np.errstate(invalid="ignore"):
        far = (values < low - width) | (values > high + width)
        jump = _alone(steps) & (abs(steps) > width / 4) & (abs(steps) > JUMP * _fast_steps(steps))
    found: NDArray[np.bool_] = ((far | jump | seams) & moves).any(1) & finite
    return found


def _seam_rows(
    values: NDArray[np.float32], first: NDArray[np.bool_], turn: float
) -> NDArray[np.intp]:
    """Where a joint's encoder, ``(frames,)``, goes from one end of ``turn`` to the other.

    Such a step is nearly a turn, alone, and a jump beside the other steps. What only snaps from end
    to end, as a command to a gripper, has no others.
    """
    if not (finite := np.isfinite(values)).any():
        return np.zeros(0, np.intp)
    low, high = np.quantile(values[finite], (0.005, 0.995))
    steps = _steps(values[:, None], first)
    size = np.abs(steps)
    with np.errstate(invalid="ignore"):
        crossed = (size > 0.85 * turn) & (size < 1.02 * turn) & _alone(steps)
    if high - low > 1.1 * turn or not crossed.any():
        return np.zeros(0, np.intp)
    fast = _fast_steps(np.where(crossed, 0, size))
    found: NDArray[np.intp] = np.nonzero((crossed & (fast > 0) & (size > JUMP * fast))[:, 0])[0]
    return found


def _unwrapped(
    values: NDArray[np.float32], first: NDArray[np.bool_], turn: float
) -> NDArray[np.float32]:
    """A joint's way, ``(frames,)``, without the seam; each episode begins on the side of most."""
    made = values.astype(np.float64)
    usable = np.isfinite(made)
    angle = np.exp(2j * np.pi * made[usable] / turn).mean()
    middle = np.angle(angle) / (2 * np.pi) * turn
    starts = np.nonzero(first)[0]
    for start, stop in zip(starts, [*starts[1:], len(made)], strict=True):
        rows = np.arange(start, stop)[usable[start:stop]]
        if len(rows):
            way = np.unwrap(made[rows], period=turn)
            made[rows] = way - turn * np.round((np.median(way) - middle) / turn)
    return made.astype(np.float32)


def _steps(values: NDArray[np.float32], first: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How far each component went since the frame before; 0 at an episode's first."""
    steps = np.zeros_like(values)
    with np.errstate(invalid="ignore"):
        steps[1:] = np.diff(values, axis=0)
    steps[first] = 0
    return steps


def _alone(steps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Steps that are not part of a motion: none beside them goes a quarter as far that way."""
    way = np.sign(steps)
    with np.errstate(invalid="ignore"):
        beside = np.zeros_like(steps)
        beside[1:] = np.fmax(beside[1:], steps[:-1] * way[1:])
        beside[:-1] = np.fmax(beside[:-1], steps[1:] * way[:-1])
        found: NDArray[np.bool_] = beside < np.abs(steps) / 4
    return found


def _fast_steps(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """By component, the 95 % quantile of the steps in which it moves, shape ``(width,)``."""
    size = np.abs(steps)
    moving = np.where(size > 0, size, np.nan)
    still = np.isnan(moving).all(0)
    moving[0, still] = 0.0
    fast: NDArray[np.float32] = np.nanquantile(moving, 0.95, axis=0)
    return fast


def _remarks(
    recordings: Recordings,
    episodes: list[EpisodeFacts],
    values: NDArray[np.float32],
    finite: NDArray[np.bool_],
) -> Iterable[Remark]:
    summary = recordings.summary
    bad = recordings.not_finite()
    if bad.any():
        yield Remark(
            "not-finite",
            "wrong",
            f"{int(bad.sum())} of {len(recordings)} frames hold NaN or infinity, first"
            f" {recordings.place(int(bad.nonzero()[0]))}; record those episodes again, or raise"
            " max-bad-frames to leave such frames out.",
        )
    for notice in recordings.notices:
        yield Remark("recordings", "notice", notice)
    yield from _timing(recordings)
    yield from _seams(recordings)
    for file, pictures, rows in short_videos(recordings.layout, recordings.cameras):
        yield Remark(
            "videos",
            "wrong",
            f"{file} has {pictures} pictures for {rows} rows; zk0bot data check --videos names the"
            " episodes.",
        )
    if wild := [each for each in episodes if each.wild]:
        yield Remark(
            "outliers",
            "notice",
            f"{sum(each.wild for each in wild)} frames in episodes"
            f" {_some(each.episode for each in wild)} hold impossible values or jumps; look at"
            " them, and leave the episodes out if a motor or cable was at fault.",
        )
    for each in episodes:
        if each.same_as is not None:
            yield Remark(
                "duplicates",
                "notice",
                f"episode {each.episode} is the same as episode {each.same_as}; leave one out.",
            )
    yield from _lengths(episodes)
    unmoved = [
        f"{name}[{index}]{_component(recordings, name, index)}"
        for name in (STATE, ACTION)
        for index in np.nonzero(_still(recordings.columns[name].numpy()[finite]))[0]
    ]
    if unmoved:
        yield Remark(
            "still", "notice", f"{_some(unmoved)} never changes; if it is a motor, check it."
        )
    if abs(summary.fps - USUAL_FPS) > SAME_RATE * USUAL_FPS:
        yield Remark(
            "fps",
            "notice",
            f"{summary.fps:g} frames per second; a run takes one rate from all nodes, and published"
            f" policies are made for {USUAL_FPS}.",
        )
    for what, width in (("state", summary.state_width), ("action", summary.action_width)):
        if width != USUAL_WIDTH:
            yield Remark(
                "widths",
                "notice",
                f"the {what} has {width} values, that of an SO-100 or SO-101 has {USUAL_WIDTH};"
                " a run takes one width from all nodes.",
            )
    if any(not each.task.strip() for each in episodes):
        yield Remark("task", "notice", "some episodes have no instruction; the policy reads it.")
    for notice in cut_instructions(each.task for each in episodes):
        yield Remark("task", "notice", notice)
    if license_of(recordings.layout.root, recordings.layout.info) is None:
        yield Remark(
            "license",
            "notice",
            "no license is named; name one in README.md's head (license: apache-2.0), so that"
            " others may use weights that are trained on it.",
        )


def _still(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Components that never change, whatever their unit, shape ``(width,)``."""
    if not len(values):
        return np.zeros(values.shape[1], np.bool_)
    found: NDArray[np.bool_] = still(values.min(0), values.max(0))
    return found


def _component(recordings: Recordings, feature: str, index: int) -> str:
    """What a component of a feature is called, in brackets, if the dataset says so."""
    names = recordings.layout.info.features[feature].names
    return f" ({names[index]})" if index < len(names) else ""


def _timing(recordings: Recordings) -> Iterable[Remark]:
    """Time stamps must be those of pictures; videos are read only where some are uneven."""
    expected = recordings.columns["frame_index"].double() / recordings.summary.fps
    times = recordings.columns["timestamp"]
    if not ((times.double() - expected).abs() > TOLERANCE_SECONDS).any():
        return
    for camera in recordings.cameras:
        if recordings.layout.info.features[camera].dtype != "video":
            continue
        if missing := missing_pictures(recordings.layout, camera, times.numpy()):
            yield Remark(
                "timestamps",
                "wrong",
                f"{sum(missing.values())} time stamps in episodes {_some(missing)} are those of no"
                f" picture of '{camera}' (LeRobot allows {1e3 * TOLERANCE_SECONDS:g} ms); set each"
                " to its frame_index / fps if no picture is missing, or record again.",
            )
            return


def _seams(recordings: Recordings) -> Iterable[Remark]:
    """Joints whose encoder jumps from one end of its turn to the other within their travel."""
    first = recordings.columns["frame_index"].numpy() == 0
    for feature in (STATE, ACTION):
        values = recordings.columns[feature].numpy()
        for index in range(values.shape[1]):
            for turn, unit in FULL_TURNS:
                rows = _seam_rows(values[:, index], first, turn)
                if not len(rows):
                    continue
                yield Remark(
                    "seam",
                    "notice",
                    f"{feature}[{index}]{_component(recordings, feature, index)} jumps by nearly a"
                    f" full turn ({turn:g} {unit}) {len(rows)} times, first"
                    f" {recordings.place(int(rows[0]))}: its encoder's zero lies in its travel;"
                    " calibrate the joint so that it does not, and record those episodes again.",
                )


def _lengths(episodes: list[EpisodeFacts]) -> Iterable[Remark]:
    if len(episodes) < FEW_EPISODES:
        yield Remark(
            "episodes",
            "notice",
            f"{len(episodes)} episode{'s' * (len(episodes) > 1)}; a task is learned from"
            f" {FEW_EPISODES} or more.",
        )
    if short := [each.episode for each in episodes if each.seconds < SHORTEST_SECONDS]:
        yield Remark(
            "lengths",
            "notice",
            f"episodes {_some(short)} last less than {SHORTEST_SECONDS:g} s; leave them out if the"
            " recording was broken off.",
        )
    median = float(np.median([each.frames for each in episodes]))
    odd = [
        each.episode
        for each in episodes
        if not median / ODD_LENGTH <= each.frames <= median * ODD_LENGTH
    ]
    if odd:
        yield Remark(
            "lengths",
            "notice",
            f"episodes {_some(odd)} are more than {ODD_LENGTH:g} times longer or shorter than the"
            f" median of {median:.0f} frames; look at them.",
        )


def inspect_pictures(
    recordings: Recordings, tell: Callable[[Progress], None] = lambda progress: None
) -> Iterator[Remark]:
    """Decode every frame; name broken frames, and cameras that show nothing for an episode.

    Means of blocks of 8 x 8 pixels are compared: encoding a picture again changes them little. A
    camera is black if none of an episode is above 16 of 255, and frozen if none is further than
    that from the first picture's. ``tell`` takes how far decoding is.
    """
    bad = BadFrames(recordings, len(recordings))
    numbers = bad.count
    empty: dict[tuple[str, str], list[int]] = {}
    for rows, images in decode(recordings, bad, tell=tell):
        usable = ~bad.bad[rows]
        for camera, frames in images.items():
            if usable.sum() < 2:
                continue
            shown = frames[usable]
            if not _differ(shown, torch.zeros_like(shown[0])):
                why = "is black"
            elif not _differ(shown, shown[0]):
                why = "shows the same picture"
            else:
                continue
            episode = int(recordings.columns["episode_index"][rows.start])
            empty.setdefault((camera, why), []).append(episode)
    if bad.count > numbers and not any(_timing(recordings)):  # a row of another time is named there
        yield Remark(
            "videos",
            "wrong",
            f"{bad.count - numbers} frames cannot be decoded ({bad.examples[-1]}); record them"
            " again.",
        )
    for (camera, why), episodes in empty.items():
        yield Remark(
            "pictures",
            "notice",
            f"camera '{camera}' {why} throughout episodes {_some(episodes)}; leave those episodes"
            " out if it was covered or had stopped.",
        )


def _differ(frames: torch.Tensor, plain: torch.Tensor) -> bool:
    """Whether some block of some frame, ``(frames, channels, H, W)``, is another in ``plain``."""
    expected = avg_pool2d(plain.float(), BLOCK, ceil_mode=True)
    return any(
        bool(((avg_pool2d(frame.float(), BLOCK, ceil_mode=True) - expected).abs() > FAINT).any())
        for frame in frames
    )


def inspect_together(
    all_of_them: list[tuple[Recordings, Inspection]], mixed_units: bool = False
) -> list[Remark]:
    """What keeps several datasets from being one federation; the first is the yardstick.

    Joints and their ranges are held against those of all datasets before. ``mixed_units`` lets
    other scales pass.
    """
    remarks: list[Remark] = []
    like = all_of_them[0][0].summary
    seen: dict[str, str] = {}
    robots: list[RobotDescription] = []
    for recordings, inspection in all_of_them:
        robot, cohort = recordings.robot(recordings.finite_statistics()), merge_robots(robots)
        whose = all_of_them[0][0].uri if len(robots) == 1 else "the datasets before it"
        for each in differences(robot, cohort, whose) if cohort else ():
            if each.reason and not (each.allowable and mixed_units):
                remarks.append(Remark("together", "wrong", sentence(each, recordings.uri)))
            else:
                remarks.append(Remark("together", "notice", f"{recordings.uri}: {each.text}."))
        robots.append(robot)
        if (recordings.summary.state_width, recordings.summary.action_width) != (
            like.state_width,
            like.action_width,
        ):
            continue  # said above, with the names
        try:
            check_alike(
                recordings.summary, like, where=recordings.uri, cameras=recordings.camera_map
            )
        except DataError as error:
            remarks.append(Remark("together", "wrong", error.message))
        copies = [digest for digest in inspection.hashes if digest in seen]
        if copies:
            remarks.append(
                Remark(
                    "together",
                    "notice",
                    f"{recordings.uri}: {len(copies)} episodes are also in {seen[copies[0]]}; what"
                    " is there twice counts twice.",
                )
            )
        seen.update(dict.fromkeys(inspection.hashes, recordings.uri))
    return remarks


def _some(things: Iterable[object], most: int = 5) -> str:
    """The first few of them, and how many more."""
    names = [str(thing) for thing in things]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
