"""Every frame is decoded once.

LeRobot opens and seeks a video for each sample; a policy sees each frame hundreds of times. Frames
go to memory, or to a file that is mapped into memory when they are too many; what has no room there
either is decoded for each batch. If the policy's vision encoder is frozen (and nothing augments),
its outputs are kept instead of the pixels.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from os import posix_fallocate
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zk0d.config.cameras import MappedAt, camera_feature, camera_name
from zk0d.config.machine import CacheSettings
from zk0d.config.names import check_apart
from zk0d.errors import DataError, not_written
from zk0d.learning.layout import Episode, Layout, Span, forbidden
from zk0d.learning.progress import GIB, CacheUse, Decoding, Progress
from zk0d.learning.recordings import Recordings
from zk0d.learning.tables import read_pictures
from zk0d.learning.videos import TOLERANCE_SECONDS

EMBED_BATCH = 64
FREE_SHARE = 0.9  # of a disk's free space that frames may take


@dataclass
class FrameBudget:
    """How much room frames may take: in memory, and beyond that in a file.

    ``left`` and ``disk`` are in bytes and shrink as arrays are allocated.
    """

    left: int
    folder: Path
    disk: int

    @classmethod
    def of(cls, settings: CacheSettings) -> FrameBudget:
        folder = settings.folder or Path(tempfile.gettempdir())
        return cls(int(settings.memory_gib * GIB), folder, int(settings.disk_gib * GIB))

    def split(self, rows: int, size: int) -> tuple[int, int]:
        """Of so many rows of ``size`` bytes, how many go to memory and how many to the file."""
        in_memory = min(rows, self.left // size)
        rest = rows - in_memory
        if not rest or not self.disk:
            return in_memory, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError:
            return in_memory, 0
        return in_memory, min(rest, int(min(self.disk, FREE_SHARE * free)) // size)

    def in_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An array in memory."""
        self.left -= int(np.prod(shape)) * dtype.itemsize
        return torch.empty(shape, dtype=dtype)

    def in_file(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An array in an unnamed file that is mapped into memory.

        Raises
        ------
        UsageError
            If its folder lies in recordings.
        TryAgainError
            If the disk is too full for that file, or forbidden.
        """
        check_apart(self.folder, "cache.folder")
        size = int(np.prod(shape)) * dtype.itemsize
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Without a name the space comes back however this process ends.
            file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
            posix_fallocate(file.fileno(), 0, max(1, size))
        except OSError as error:
            raise not_written(
                f"{self.folder}: {size / GIB:.1f} GiB of decoded frames cannot be written",
                error,
                ", or set cache.folder to another disk, or cache.disk-gib to less",
            ) from None
        self.disk -= size
        flat = np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
        return torch.from_numpy(flat).view(dtype).view(shape)


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


def decode_episode(recordings: Recordings, key: str, number: int) -> EpisodeFrames:
    """Decode one episode of one camera; each picture goes to the row whose time it has.

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
    for row, picture in pictures(layout, key, episode, times):
        if picture.shape != shape[1:]:
            raise layout.wrong(
                f"episode {number}, frame {row}: camera '{camera_name(key)}' has a picture"
                f" of {list(picture.shape)} (channels, height, width), meta/info.json says"
                f" {list(shape[1:])}"
            )
        frames.pixels[row] = picture
        frames.missing[row] = False
    return frames


def decode_frames(recordings: Recordings, key: str, rows: torch.Tensor) -> torch.Tensor:
    """Decode some frames of one camera: uint8, ``(rows, channels, height, width)``.

    Parameters
    ----------
    rows
        Their numbers in the dataset, int64, shape ``(rows,)``. One without a picture is black.
    """
    shape = recordings.summary.cameras[recordings.cameras[key]]
    pixels = torch.zeros((len(rows), *shape), dtype=torch.uint8)
    for number in sorted(set(recordings.columns["episode_index"][rows].tolist())):
        episode = recordings.layout.episodes[number]
        here = torch.nonzero((rows >= episode.rows.start) & (rows < episode.rows.stop)).flatten()
        wanted = rows[here] - episode.rows.start
        times = recordings.columns["timestamp"][episode.rows].double().numpy()
        few = sorted(set(wanted.tolist()))
        for row, picture in pictures(recordings.layout, key, episode, times, few):
            if picture.shape == shape:
                pixels[here[wanted == row]] = picture
    return pixels


def pictures(
    layout: Layout,
    key: str,
    episode: Episode,
    times: NDArray[np.float64],
    wanted: list[int] | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """The rows of an episode with a camera's pictures of their ``times`` (seconds, ``(rows,)``).

    A picture is uint8, ``(channels, height, width)``; a row without one does not come. Of
    ``wanted`` rows, each is looked for by itself.
    """
    if layout.info.features[key].dtype != "video":
        yield from _table_pictures(layout, key, episode, wanted)
        return
    if wanted is None:
        yield from _video_pictures(layout, episode.spans[key], times)
        return
    for row in wanted:
        for _, picture in _video_pictures(layout, episode.spans[key], times[row : row + 1]):
            yield row, picture


def _video_pictures(
    layout: Layout, span: Span, times: NDArray[np.float64]
) -> Iterator[tuple[int, torch.Tensor]]:
    """The rows of an episode with the video's pictures of their times; ends where it breaks."""
    path = layout.root / span.file
    wanted = span.start + times
    last = wanted.max() + TOLERANCE_SECONDS
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            begin = max(0, round(float(wanted.min()) / stream.time_base) - 1)
            container.seek(begin, backward=True, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None:
                    continue
                shown = float(frame.pts * stream.time_base)
                rows = np.nonzero(np.abs(wanted - shown) < TOLERANCE_SECONDS)[0]
                if len(rows):
                    image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                    for row in rows:
                        yield int(row), image
                if shown > last:
                    break
    except PermissionError:
        raise forbidden(path, layout.uri) from None
    except (av.error.FFmpegError, OSError, IndexError):
        return  # the caller counts what is missing


def _table_pictures(
    layout: Layout, key: str, episode: Episode, wanted: list[int] | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """The rows of an episode with the pictures that lie in its table."""
    for row, content in enumerate(read_pictures(layout, key, episode)):
        if wanted is not None and row not in wanted:
            continue
        try:
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(content or b"")))
            depth = image.mode.startswith(("I", "F"))
            pixels = np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
        if depth:
            name = camera_name(key)
            ways = (at.spell({name: ""}) for at in (MappedAt.COMMAND, MappedAt.SETTINGS))
            raise layout.wrong(
                f"camera '{name}' has pictures of more than 8 bits, as a depth camera does",
                f"leave it out: {' or '.join(ways)}",
            )
        # LeRobot divides by 255 and multiplies again: exact for bytes.
        yield row, torch.from_numpy(pixels).permute(2, 0, 1)


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
        Takes how far it is, after each camera of an episode.

    Yields
    ------
    The episode's rows and, by the policy's camera name, its frames (uint8,
    ``(frames, channels, height, width)``). One without a picture is black and counted in ``bad``.
    """
    chosen = sorted(episodes) or recordings.episodes
    cameras = len(recordings.cameras)
    total = cameras * sum(len(recordings.layout.episodes[episode]) for episode in chosen)
    began, done = time.monotonic(), 0
    process = psutil.Process()
    for episode in chosen:
        rows = recordings.rows(episode)
        images: dict[str, torch.Tensor] = {}
        for key, camera in recordings.cameras.items():
            frames = decode_episode(recordings, key, episode)
            if frames.missing.any():
                broken = torch.zeros(len(recordings), dtype=torch.bool)
                broken[rows] = frames.missing
                bad.add(broken, _lacking(recordings, key, episode, frames.missing))
            images[camera] = frames.pixels
            done += len(frames.missing)
            tell(Decoding(done, total, time.monotonic() - began, process.memory_info().rss))
        yield rows, images


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

    The first rows are in memory, the next in a mapped file. Those that have no room are decoded,
    and made, each time that they are asked for.

    Parameters
    ----------
    make
        Makes it of uint8 frames ``(n, C, H, W)``: ``(n, ...)``.
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
        episodes: Collection[int] = (),
        tell: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._recordings, self._make = recordings, make
        chosen = sorted(episodes) or recordings.episodes
        rows = torch.cat([torch.arange(len(recordings))[recordings.rows(e)] for e in chosen])
        one = {
            camera: self._made(torch.zeros((1, *shape), dtype=torch.uint8))[0]
            for camera, shape in recordings.summary.cameras.items()
        }
        size = sum(each.nbytes for each in one.values())
        in_memory, in_file = budget.split(len(rows), size)
        kept = in_memory + in_file
        tell(
            CacheUse(
                frames=len(rows) * len(one),
                memory=in_memory * size,
                disk=in_file * size,
                again=(len(rows) - kept) * size,
                folder=str(budget.folder),
            )
        )
        #: Where a row is kept; -1 if it is not.
        self._places = torch.full((len(recordings),), -1)
        self._places[rows[:kept]] = torch.arange(kept)
        self._parts = {
            camera: (
                budget.in_memory((in_memory, *each.shape), each.dtype),
                budget.in_file((in_file, *each.shape), each.dtype)
                if in_file
                else torch.empty((0, *each.shape), dtype=each.dtype),
            )
            for camera, each in one.items()
        }
        for decoded, images in decode(recordings, bad, chosen, tell):
            places = self._places[decoded]
            held = places >= 0
            for camera, frames in images.items() if held.any() else ():
                made = self._made(frames[held])
                for part, at, here in self._where(camera, places[held]):
                    part[at] = made[here]

    def rows(self, camera: str, indices: torch.Tensor) -> torch.Tensor:
        """What was made of the frames at ``indices`` (int64, any shape): ``(*indices, ...)``."""
        places = self._places[indices.flatten()]
        memory, file = self._parts[camera]
        if not len(file) and bool((places >= 0).all()):
            return memory[places].view(*indices.shape, *memory.shape[1:])
        found = torch.empty((len(places), *memory.shape[1:]), dtype=memory.dtype)
        for part, at, here in self._where(camera, places):
            found[here] = part[at]
        again = places < 0
        if again.any():
            keys = {name: key for key, name in self._recordings.cameras.items()}
            frames = decode_frames(self._recordings, keys[camera], indices.flatten()[again])
            found[again] = self._made(frames)
        return found.view(*indices.shape, *memory.shape[1:])

    def _where(
        self, camera: str, places: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """By part that holds some of ``places``: it, their numbers in it, and which they are."""
        memory, file = self._parts[camera]
        first = len(memory)
        for part, start, here in (
            (memory, 0, (places >= 0) & (places < first)),
            (file, first, places >= first),
        ):
            if here.any():
                yield part, places[here] - start, here

    def _made(self, frames: torch.Tensor) -> torch.Tensor:
        parts = [
            self._make(frames[start : start + EMBED_BATCH]).cpu()
            for start in range(0, len(frames), EMBED_BATCH)
        ]
        return torch.cat(parts)


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
        return {camera_feature(camera): self.rows(camera, indices) for camera in self._parts}


class FeatureCache(FrameCache):
    """The outputs of a frozen vision encoder: ``(tokens, width)`` a frame, of its own dtype."""

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """The features at ``indices`` by camera, on the CPU."""
        return {camera: self.rows(camera, indices) for camera in self._parts}
