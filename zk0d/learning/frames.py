"""Every frame is decoded once.

LeRobot opens and seeks a video for each sample; a policy sees each frame hundreds of times. Frames
go to memory, and to files (:mod:`zk0d.learning.frame_files`), which the next start reads and which
are mapped into memory when frames are too many for it. What has no room there either is decoded for
each batch. If the policy's vision encoder is frozen (and nothing augments), its outputs are kept
instead of the pixels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from zk0d.config.cameras import camera_feature, camera_name
from zk0d.config.machine import CacheSettings
from zk0d.errors import DataError, TryAgainError
from zk0d.learning.frame_files import HEAD_BYTES, FrameFiles, Frames, name_of
from zk0d.learning.pictures import content, pictures
from zk0d.learning.progress import GIB, CacheUse, Decoding, Progress
from zk0d.learning.recordings import Recordings

log = logging.getLogger("zk0d")

EMBED_BATCH = 64
TELL_SECONDS = 0.5  #: between two reports within an episode


@dataclass
class FrameBudget:
    """How much room frames may take: in memory, and in files.

    ``left`` and ``disk`` are in bytes; ``left`` shrinks as arrays are allocated.
    """

    left: int
    folder: Path
    disk: int

    @classmethod
    def of(cls, settings: CacheSettings) -> FrameBudget:
        return cls(int(settings.memory_gib * GIB), settings.place, int(settings.disk_gib * GIB))

    def files(self) -> FrameFiles:
        """Where frames are kept on disk."""
        return FrameFiles(self.folder, self.disk)

    def in_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An array in memory."""
        self.left -= int(np.prod(shape)) * dtype.itemsize
        return torch.empty(shape, dtype=dtype)


@dataclass(frozen=True)
class EpisodeFrames:
    """One episode of one camera.

    Attributes
    ----------
    pixels
        uint8, shape ``(frames, channels, height, width)``, as ``LeRobotDataset`` gives them; black
        where a picture is missing.
    missing
        Which frames have no picture, bool, shape ``(frames,)``.
    """

    pixels: torch.Tensor
    missing: torch.Tensor


def decode_episode(
    recordings: Recordings, key: str, number: int, tell: Callable[[int], None] = lambda count: None
) -> EpisodeFrames:
    """Decode one episode of one camera; each picture goes to the row whose time it has.

    ``tell`` takes how many pictures there are so far.

    Raises
    ------
    DataError
        If a picture has another size than the dataset says, or may not be read.
    """
    layout = recordings.layout
    episode = layout.episodes[number]
    shape = (len(episode), *recordings.summary.cameras[recordings.cameras[key]])
    frames = EpisodeFrames(
        torch.zeros(shape, dtype=torch.uint8), torch.ones(len(episode), dtype=torch.bool)
    )
    times = recordings.columns["timestamp"][episode.rows].double().numpy()
    for count, (row, picture) in enumerate(pictures(layout, key, episode, times), 1):
        if picture.shape != shape[1:]:
            raise layout.wrong(
                f"episode {number}, frame {row}: camera '{camera_name(key)}' has a picture"
                f" of {list(picture.shape)} (channels, height, width), meta/info.json says"
                f" {list(shape[1:])}"
            )
        frames.pixels[row] = picture
        frames.missing[row] = False
        tell(count)
    return frames


def decode_frames(recordings: Recordings, camera: str, rows: torch.Tensor) -> torch.Tensor:
    """Decode some frames of one camera: uint8, ``(rows, channels, height, width)``.

    Parameters
    ----------
    rows
        Their numbers in the dataset, int64, shape ``(rows,)``. One without a picture is black.
    """
    shape = recordings.summary.cameras[camera]
    pixels = torch.zeros((len(rows), *shape), dtype=torch.uint8)
    for number in sorted(set(recordings.columns["episode_index"][rows].tolist())):
        its = recordings.rows(number)
        here = torch.nonzero((rows >= its.start) & (rows < its.stop)).flatten()
        wanted = rows[here] - its.start
        times = recordings.columns["timestamp"][its].double().numpy()
        few = sorted(set(wanted.tolist()))
        dataset, own = recordings.source(number)
        episode, key = dataset.layout.episodes[own], dataset.key(camera)
        for row, picture in pictures(dataset.layout, key, episode, times, few):
            if picture.shape == shape:
                pixels[here[wanted == row]] = picture
    return pixels


class BadFrames:
    """Counts frames that cannot be used and stops when they are too many.

    Parameters
    ----------
    allowed
        How many may be bad before :class:`DataError` (reason ``data_error``) is raised.
    """

    def __init__(self, recordings: Recordings, allowed: int) -> None:
        self._recordings = recordings
        self._allowed = allowed
        self.bad = torch.zeros(len(recordings), dtype=torch.bool)
        self.examples: list[str] = []
        not_finite = recordings.not_finite()
        if not_finite.any():
            first = int(torch.nonzero(not_finite)[0])
            self.add(not_finite, f"{recordings.place(first)}: state or action is not a number")

    def add(self, rows: torch.Tensor, why: str) -> None:
        """Mark ``rows`` (bool, shape ``(frames,)``) as bad for the reason ``why``."""
        self.bad |= rows
        self.examples.append(why)
        if self.count > self._allowed:
            raise DataError(
                f"{self._recordings.uri}: {self.count} of {len(self.bad)} frames cannot be used"
                f" ({self.examples[0]}); repair or remove these episodes, or allow them with"
                " learner.max-bad-frames."
            )

    @property
    def count(self) -> int:
        return int(self.bad.sum())


class _Count:
    """Tells how far decoding is: after each camera of an episode, and within a long one.

    Parameters
    ----------
    of
        Frames of all cameras.
    """

    def __init__(self, of: int, tell: Callable[[Progress], None]) -> None:
        self._of, self._tell = of, tell
        self._process = psutil.Process()
        self._began = self._told = time.monotonic()
        self._done = self._kept = 0

    def within(self, frames: int) -> None:
        """So many of the episode's frames are done."""
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._say(self._done + frames)

    def add(self, frames: int, *, kept: bool = False) -> None:
        """An episode is done; ``kept`` if it was before."""
        self._done += frames
        self._kept += frames if kept else 0
        self._say(self._done)

    def _say(self, done: int) -> None:
        self._told = time.monotonic()
        memory = self._process.memory_info().rss
        self._tell(Decoding(done, self._of, self._told - self._began, memory, self._kept))


def decode(
    recordings: Recordings,
    bad: BadFrames,
    episodes: Collection[int] = (),
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
    """Decode a dataset episode by episode.

    Parameters
    ----------
    episodes
        Only these; all, if there are none.
    tell
        Takes how far it is, after each camera of an episode and within long ones.

    Yields
    ------
    The episode's rows and, by the policy's camera name, its frames (uint8,
    ``(frames, channels, height, width)``). One without a picture is black and counted in ``bad``.
    """
    chosen = sorted(episodes) or recordings.episodes
    frames = sum(map(recordings.length, chosen))
    count = _Count(len(recordings.cameras) * frames, tell)
    for episode in chosen:
        images: dict[str, torch.Tensor] = {}
        dataset, own = recordings.source(episode)
        for camera in recordings.cameras.values():
            decoded = decode_episode(dataset, dataset.key(camera), own, count.within)
            _count_missing(recordings, bad, camera, episode, decoded.missing)
            images[camera] = decoded.pixels
            count.add(len(decoded.missing))
        yield recordings.rows(episode), images


def _count_missing(
    recordings: Recordings, bad: BadFrames, camera: str, episode: int, missing: torch.Tensor
) -> None:
    if missing.any():
        broken = torch.zeros(len(recordings), dtype=torch.bool)
        broken[recordings.rows(episode)] = missing
        dataset, own = recordings.source(episode)
        bad.add(broken, _lacking(dataset, dataset.key(camera), own, missing))


def _lacking(recordings: Recordings, key: str, episode: int, missing: torch.Tensor) -> str:
    """Which pictures an episode lacks, and where they should be."""
    where = recordings.layout.episodes[episode]
    file = where.spans[key].file if key in where.spans else where.file
    first = int(missing.nonzero()[0])
    if bool(missing[first:].all()):
        return f"{file}: episode {episode} breaks off after frame {first}"
    return f"{file}: episode {episode} lacks {int(missing.sum())} pictures, first of frame {first}"


class FrameCache:
    """What is made of each frame of some episodes, once; kept where there is room.

    The first rows are in memory. Files have whole episodes: first those that are not all in memory,
    which are mapped from there, then the others, so that the next start reads them. Rows without
    room are decoded, and made, each time that they are asked for.

    Parameters
    ----------
    make
        Makes it of uint8 frames ``(n, C, H, W)``: ``(n, ...)``.
    made_by
        Says which policy's ``make`` that is, and all that decides how. What has a frame's own shape
        and type is the frame, whatever this says.
    episodes
        Only these are decoded, all if there are none; no other frame may be asked for.
    tell
        Takes where the frames will be, and how far decoding is.
    """

    def __init__(
        self,
        recordings: Recordings,
        bad: BadFrames,
        budget: FrameBudget,
        make: Callable[[torch.Tensor], torch.Tensor],
        made_by: str = "",
        episodes: Collection[int] = (),
        tell: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._recordings, self._make, self._made_by = recordings, make, made_by
        chosen = sorted(episodes) or recordings.episodes
        rows = torch.cat([torch.arange(len(recordings))[recordings.rows(e)] for e in chosen])
        self._one = {
            camera: self._made(torch.zeros((1, *shape), dtype=torch.uint8))[0]
            for camera, shape in recordings.summary.cameras.items()
        }
        size = sum(each.nbytes for each in self._one.values())
        in_memory = min(len(rows), budget.left // size)
        #: Where a row is in memory; -1 if it is not.
        self._places = torch.full((len(recordings),), -1)
        self._places[rows[:in_memory]] = torch.arange(in_memory)
        self._memory = {
            camera: budget.in_memory((in_memory, *each.shape), each.dtype)
            for camera, each in self._one.items()
        }
        #: Of the other rows, the episodes that have a file, by camera; a line of bytes is a row.
        self._mapped: dict[str, dict[int, NDArray[np.uint8]]] = {c: {} for c in self._one}
        self._files = budget.files()
        on_disk, again = self._plan(chosen, size)
        tell(
            CacheUse(
                frames=len(rows) * len(self._one),
                memory=in_memory * size,
                disk=sum(map(recordings.length, on_disk)) * size,
                again=again * size,
                folder=str(self._files.folder),
            )
        )
        count = _Count(len(rows) * len(self._one), tell)
        names = self._names(sorted(on_disk), count)
        for episode in chosen:
            for camera in recordings.cameras.values():
                self._add(camera, episode, bad, count, names.get((camera, episode)))

    def _plan(self, chosen: list[int], size: int) -> tuple[set[int], int]:
        """The episodes that files have room for, and how many rows have none anywhere."""
        recordings, room = self._recordings, self._files.room()
        lacking = {e: int((self._places[recordings.rows(e)] < 0).sum()) for e in chosen}
        on_disk: set[int] = set()
        for episode in sorted(chosen, key=lambda e: not lacking[e]):
            wanted = recordings.length(episode) * size + len(self._one) * HEAD_BYTES
            if wanted <= room:
                on_disk.add(episode)
                room -= wanted
        return on_disk, sum(rows for episode, rows in lacking.items() if episode not in on_disk)

    def _names(self, episodes: list[int], count: _Count) -> dict[tuple[str, int], str]:
        """What the files of these episodes are called, by camera; none for one without content."""
        recordings, names = self._recordings, {}
        for number in episodes:
            dataset, own = recordings.source(number)
            episode = dataset.layout.episodes[own]
            times = recordings.columns["timestamp"][recordings.rows(number)].double().numpy()
            for camera in recordings.cameras.values():
                found = content(dataset.layout, dataset.key(camera), episode, times)
                one = self._one[camera]
                shape = recordings.summary.cameras[camera]
                as_it_is = (one.shape, one.dtype) == (shape, torch.uint8)
                made_by = "" if as_it_is else self._made_by
                if found is not None:
                    frames = (len(episode), *shape)
                    names[camera, number] = name_of(found, frames, one, made_by)
                count.within(0)
        if names:
            self._files.use(names.values())
        return names

    def _add(
        self, camera: str, number: int, bad: BadFrames, count: _Count, name: str | None
    ) -> None:
        """Read one episode of one camera, or decode it; keep it in its file, if it has one."""
        recordings = self._recordings
        length, one = recordings.length(number), self._one[camera]
        places = self._places[recordings.rows(number)]
        held = int((places >= 0).sum())  # the first of them
        found = name and self._files.read(name, (length, *one.shape), one.dtype)
        was_kept = bool(found)
        if found:
            values, missing = found.values, found.missing
        else:
            dataset, own = recordings.source(number)
            decoded = decode_episode(
                dataset, dataset.key(camera), own, lambda done: count.within(done // 2)
            )
            missing = decoded.missing
            wanted = length if name else held
            values = self._made(
                decoded.pixels[:wanted], lambda done: count.within((length + done) // 2)
            )
            del decoded
        _count_missing(recordings, bad, camera, number, missing)
        if held:
            first = int(places[0])
            self._memory[camera][first : first + held] = values[:held]
        if name and not found:
            found = self._write(name, Frames(values, missing), needed=held < length)
        if found and held < length:
            lines = found.values.reshape(length, -1)
            self._mapped[camera][number] = lines.view(torch.uint8).numpy()
        count.add(length, kept=was_kept)

    def _write(self, name: str, frames: Frames, *, needed: bool) -> Frames | None:
        """Write a file; that it cannot be is no fault, if all that it holds is in memory."""
        try:
            return self._files.write(name, frames)
        except TryAgainError as error:
            if needed:
                raise
            log.warning("the next start decodes again: %s", error.message)
            return None

    def rows(self, camera: str, indices: torch.Tensor) -> torch.Tensor:
        """What was made of the frames at ``indices`` (int64, any shape): ``(*indices, ...)``."""
        wanted = indices.flatten()
        places, memory = self._places[wanted], self._memory[camera]
        held = places >= 0
        if bool(held.all()):
            # An index in brackets copies byte by byte.
            return memory.index_select(0, places).view(*indices.shape, *memory.shape[1:])
        found = torch.empty((len(places), *memory.shape[1:]), dtype=memory.dtype)
        if held.any():
            found.index_copy_(
                0, torch.nonzero(held).flatten(), memory.index_select(0, places[held])
            )
        again = self._copy_mapped(camera, wanted, held, found)
        if again:
            frames = decode_frames(self._recordings, camera, wanted[again])
            found[again] = self._made(frames)
        return found.view(*indices.shape, *memory.shape[1:])

    def _copy_mapped(
        self, camera: str, wanted: torch.Tensor, held: torch.Tensor, found: torch.Tensor
    ) -> list[int]:
        """Put the rows that are not ``held`` in memory to their places; those without a file."""
        mapped, again = self._mapped[camera], []
        lines = found.view(len(found), -1).view(torch.uint8).numpy()
        episodes = self._recordings.columns["episode_index"][wanted].tolist()
        numbers = (wanted - self._recordings.first[wanted]).tolist()
        for place in torch.nonzero(~held).flatten().tolist():
            file = mapped.get(episodes[place])
            if file is None:
                again.append(place)
            else:
                lines[place] = file[numbers[place]]
        return again

    def _made(
        self, frames: torch.Tensor, tell: Callable[[int], None] = lambda count: None
    ) -> torch.Tensor:
        """What is made of frames; ``tell`` takes of how many it is, so far."""
        parts = []
        for start in range(0, len(frames), EMBED_BATCH):
            parts.append(self._make(frames[start : start + EMBED_BATCH]).cpu())
            tell(min(start + EMBED_BATCH, len(frames)))
        return torch.cat(parts) if parts else torch.empty(0)


class PixelCache(FrameCache):
    """The frames themselves, uint8, shrunk to what the policy takes if that is smaller.

    Parameters
    ----------
    shrink
        As :meth:`~zk0d.learning.policies.base.LoadedPolicy.shrunk_images`.
    """

    def __init__(
        self,
        recordings: Recordings,
        bad: BadFrames,
        budget: FrameBudget,
        shrink: Callable[[torch.Tensor], torch.Tensor] = lambda frames: frames,
        **more: Any,
    ) -> None:
        super().__init__(recordings, bad, budget, shrink, **more)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """The frames at ``indices`` under LeRobot's names, uint8."""
        return {camera_feature(camera): self.rows(camera, indices) for camera in self._one}


class FeatureCache(FrameCache):
    """The outputs of a frozen vision encoder: ``(tokens, width)`` a frame, of its own dtype."""

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """The features at ``indices`` by camera, on the CPU."""
        return {camera: self.rows(camera, indices) for camera in self._one}
