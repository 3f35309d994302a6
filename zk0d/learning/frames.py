"""Every frame is decoded once.

LeRobot opens and seeks a video for each sample; a policy sees each frame hundreds of times. Frames
go to memory, or to a file that is mapped into memory when they are too many. If the policy's vision
encoder is frozen (and nothing augments) its outputs are kept instead of the pixels.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import posix_fallocate
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zk0d.config.cameras import camera_feature, camera_name
from zk0d.errors import DataError, TryAgainError
from zk0d.learning.layout import Episode, Layout, Span, forbidden
from zk0d.learning.recordings import Recordings
from zk0d.learning.tables import read_pictures
from zk0d.learning.videos import TOLERANCE_SECONDS

EMBED_BATCH = 64


@dataclass
class FrameBudget:
    """How much memory frames may take, and where they go beyond that.

    ``left`` is in bytes and shrinks as arrays are allocated.
    """

    left: int
    folder: Path | None = None

    @classmethod
    def of_gib(cls, gib: float, folder: Path | None = None) -> FrameBudget:
        return cls(int(gib * 2**30), folder)

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Room for an array: in memory if the budget allows, else in an unnamed mapped file.

        Raises
        ------
        TryAgainError
            If the disk is too full for that file.
        """
        size = int(np.prod(shape)) * dtype.itemsize
        if size <= self.left:
            self.left -= size
            return torch.empty(shape, dtype=dtype)
        folder = self.folder or Path(tempfile.gettempdir())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Without a name the space comes back however this process ends.
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            posix_fallocate(file.fileno(), 0, max(1, size))
        except OSError as error:
            raise TryAgainError(
                f"{folder}: no room for {size / 2**30:.1f} GiB of decoded frames"
                f" ({error.strerror}); free some, or set learner.cache.folder to a larger disk.",
                reason="disk_full",
            ) from None
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
    video = layout.info.features[key].dtype == "video"
    times = recordings.columns["timestamp"][episode.rows].double().numpy()
    found = (
        _video_pictures(layout, episode.spans[key], times)
        if video
        else _table_pictures(layout, key, episode)
    )
    for row, picture in found:
        if picture.shape != shape[1:]:
            raise layout.wrong(
                f"episode {number}, frame {row}: camera '{camera_name(key)}' has a picture"
                f" of {list(picture.shape)} (channels, height, width), meta/info.json says"
                f" {list(shape[1:])}"
            )
        frames.pixels[row] = picture
        frames.missing[row] = False
    return frames


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
    layout: Layout, key: str, episode: Episode
) -> Iterator[tuple[int, torch.Tensor]]:
    """The rows of an episode with the pictures that lie in its table."""
    colours = layout.info.features[key].channels_first[0]
    for row, content in enumerate(read_pictures(layout, key, episode)):
        try:
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(content or b"")))
            pixels = np.array(image.convert("RGB") if colours == 3 else image)
        except (OSError, ValueError, SyntaxError):
            continue
        # LeRobot divides by 255 and multiplies again: exact for bytes.
        yield row, torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)


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
    recordings: Recordings, bad: BadFrames
) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
    """Decode a dataset episode by episode.

    Yields
    ------
    The episode's rows and, by the policy's camera name, its frames (uint8,
    ``(frames, channels, height, width)``). One without a picture is black and counted in ``bad``.
    """
    for episode in recordings.episodes:
        rows = recordings.rows(episode)
        images: dict[str, torch.Tensor] = {}
        for key, camera in recordings.cameras.items():
            frames = decode_episode(recordings, key, episode)
            if frames.missing.any():
                broken = torch.zeros(len(recordings), dtype=torch.bool)
                broken[rows] = frames.missing
                bad.add(broken, _lacking(recordings, key, episode, frames.missing))
            images[camera] = frames.pixels
        yield rows, images


def _lacking(recordings: Recordings, key: str, episode: int, missing: torch.Tensor) -> str:
    """Which pictures an episode lacks, and where they should be."""
    where = recordings.layout.episodes[episode]
    file = where.spans[key].file if key in where.spans else where.file
    first = int(missing.nonzero()[0])
    if bool(missing[first:].all()):
        return f"{file}: episode {episode} breaks off after frame {first}"
    return f"{file}: episode {episode} lacks {int(missing.sum())} pictures, first of frame {first}"


class PixelCache:
    """Every frame of a dataset, decoded: ``images[camera]`` is uint8, ``(frames, C, H, W)``."""

    def __init__(self, recordings: Recordings, bad: BadFrames, budget: FrameBudget) -> None:
        self.images = {
            camera: budget.allocate((len(recordings), *shape), torch.uint8)
            for camera, shape in recordings.summary.cameras.items()
        }
        for rows, images in decode(recordings, bad):
            for camera, frames in images.items():
                self.images[camera][rows] = frames

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """The frames at ``indices`` under LeRobot's names, uint8."""
        return {camera_feature(camera): images[indices] for camera, images in self.images.items()}


class FeatureCache:
    """The outputs of a frozen vision encoder for every frame of a dataset.

    ``features[camera]`` has the encoder's dtype and shape ``(frames, tokens, width)``.
    """

    def __init__(
        self,
        recordings: Recordings,
        bad: BadFrames,
        budget: FrameBudget,
        embed: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.features: dict[str, torch.Tensor] = {}
        for rows, images in decode(recordings, bad):
            for camera, frames in images.items():
                parts = [
                    embed(frames[start : start + EMBED_BATCH]).cpu()
                    for start in range(0, len(frames), EMBED_BATCH)
                ]
                if camera not in self.features:
                    shape = (len(recordings), *parts[0].shape[1:])
                    self.features[camera] = budget.allocate(shape, parts[0].dtype)
                self.features[camera][rows] = torch.cat(parts)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """The features at ``indices`` by camera, on the CPU."""
        return {camera: features[indices] for camera, features in self.features.items()}
