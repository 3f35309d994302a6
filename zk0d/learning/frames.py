"""Every frame is decoded once.

LeRobot opens and seeks a video for each sample; a policy sees each frame hundreds of times. Frames
go to memory, or to a file that is mapped into memory when they are too many. If the policy's vision
encoder is frozen (and nothing augments) its outputs are kept instead of the pixels.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import posix_fallocate
from pathlib import Path

import av
import numpy as np
import torch

from zk0d.errors import DataError, TryAgainError
from zk0d.learning.recordings import IMAGES, Recordings

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


def decode_episode(recordings: Recordings, key: str, episode: int) -> torch.Tensor:
    """The frames of one episode of one camera.

    Returns
    -------
    uint8, shape ``(frames, channels, height, width)``, exactly as ``LeRobotDataset`` gives them;
    fewer frames than the episode has if the video ends early or breaks.
    """
    metadata = recordings.metadata
    rows = recordings.rows(episode)
    wanted = rows.stop - rows.start
    if key in metadata.image_keys:
        pixels = [recordings.dataset.hf_dataset[row][key] for row in range(rows.start, rows.stop)]
        return (torch.stack(pixels) * 255).round().to(torch.uint8)
    path = metadata.root / metadata.get_video_file_path(episode, key)
    begins = metadata.episodes[episode][f"videos/{key}/from_timestamp"]
    frames: list[torch.Tensor] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            skip = round(begins * metadata.fps)
            container.seek(
                max(0, round(begins / stream.time_base) - 1), backward=True, stream=stream
            )
            for frame in container.decode(stream):
                if frame.pts is None or round(frame.pts * stream.time_base * metadata.fps) < skip:
                    continue
                image = torch.from_numpy(frame.to_ndarray(format="rgb24"))
                frames.append(image.permute(2, 0, 1))
                if len(frames) == wanted:
                    break
    except PermissionError:
        raise DataError(
            f"{path}: this process may not read it (user {os.geteuid()}); give it the right, for"
            " example with chmod -R a+rX on the recordings."
        ) from None
    except (av.error.FFmpegError, OSError, IndexError):
        pass  # what could be read is returned; the caller counts what is missing
    if not frames:
        channels, height, width = recordings.summary.cameras[recordings.cameras[key]]
        return torch.empty((0, channels, height, width), dtype=torch.uint8)
    return torch.stack(frames).contiguous()


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
    ``(frames, channels, height, width)``). Missing frames are black and counted in ``bad``.
    """
    for episode in recordings.episodes:
        rows = recordings.rows(episode)
        images: dict[str, torch.Tensor] = {}
        for key, camera in recordings.cameras.items():
            shape = (rows.stop - rows.start, *recordings.summary.cameras[camera])
            frames = decode_episode(recordings, key, episode)
            if frames.shape != shape:
                good = len(frames) if frames.shape[1:] == shape[1:] else 0
                broken = torch.zeros(len(recordings), dtype=torch.bool)
                broken[rows.start + good : rows.stop] = True
                path = recordings.metadata.get_video_file_path(episode, key)
                bad.add(broken, f"{path}: episode {episode} breaks off after frame {good}")
                whole = torch.zeros(shape, dtype=torch.uint8)
                whole[:good] = frames[:good]
                frames = whole
            images[camera] = frames
        yield rows, images


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
        return {IMAGES + camera: images[indices] for camera, images in self.images.items()}


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
