"""The pictures of an episode, as they are decoded, and what decides how they look."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zk0d.config.cameras import MappedAt, camera_name
from zk0d.learning.layout import Episode, Layout, Span, forbidden
from zk0d.learning.tables import read_pictures
from zk0d.learning.videos import TOLERANCE_SECONDS


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


def content(layout: Layout, key: str, episode: Episode, times: NDArray[np.float64]) -> str | None:
    """A SHA-256 over all that decides what :func:`pictures` gives of a whole episode.

    Of a video these are the episode's packets, as they lie there, and the rows that each is shown
    at. So it stays when other episodes are added to the file, or the file is copied.

    Returns
    -------
    ``None`` if the file cannot be opened.
    """
    digest = hashlib.sha256()
    if layout.info.features[key].dtype != "video":
        for picture in read_pictures(layout, key, episode):
            _add(digest, "" if picture is None else f"{len(picture)}", picture or b"")
        return digest.hexdigest()
    span = episode.spans[key]
    path, wanted = layout.root / span.file, span.start + times
    try:
        with av.open(str(path)) as container:
            stream = _at_start(container, wanted)
            codec = stream.codec_context
            colors = (codec.pix_fmt, codec.color_range, codec.colorspace, codec.color_primaries)
            told = (codec.name, codec.width, codec.height, *colors, codec.color_trc)
            _add(digest, f"{told}", codec.extradata or b"")
            for rows, packet in _packets(container, stream, wanted):
                _add(digest, f"{len(packet)} {rows}", packet)
    except PermissionError:
        raise forbidden(path, layout.uri) from None
    except (av.error.FFmpegError, OSError, IndexError):
        return None
    return digest.hexdigest()


def _add(digest: Any, told: str, data: bytes) -> None:
    digest.update(f"{told}\n".encode())
    digest.update(data)


def _packets(
    container: Any, stream: Any, wanted: NDArray[np.float64]
) -> Iterator[tuple[list[int], bytes]]:
    """The packets that decide the pictures of ``wanted`` times, each with the rows it is shown at.

    Packets come in the order of decoding. A picture depends on none that comes after its own.
    """
    last = wanted.max() + TOLERANCE_SECONDS
    waiting: list[tuple[list[int], bytes]] = []
    try:
        for packet in container.demux(stream):
            if packet.dts is not None and float(packet.dts * stream.time_base) > last:
                return
            shown = None if packet.pts is None else float(packet.pts * stream.time_base)
            rows = [] if shown is None else _rows_at(wanted, shown).tolist()
            waiting.append((rows, bytes(packet)))
            if shown is not None and shown <= last:
                yield from waiting
                waiting.clear()
    except (av.error.FFmpegError, OSError):
        yield [-1], b""  # here it breaks


def _at_start(container: Any, wanted: NDArray[np.float64]) -> Any:
    """The video's stream, at the last place before the first of ``wanted`` to decode from."""
    stream = container.streams.video[0]
    begin = max(0, round(float(wanted.min()) / stream.time_base) - 1)
    container.seek(begin, backward=True, stream=stream)
    return stream


def _rows_at(wanted: NDArray[np.float64], shown: float) -> NDArray[np.int64]:
    """The rows whose picture is the one that is ``shown`` then, in seconds."""
    return np.nonzero(np.abs(wanted - shown) < TOLERANCE_SECONDS)[0]


def _video_pictures(
    layout: Layout, span: Span, times: NDArray[np.float64]
) -> Iterator[tuple[int, torch.Tensor]]:
    """The rows of an episode with the video's pictures of their times; ends where it breaks."""
    path = layout.root / span.file
    wanted = span.start + times
    last = wanted.max() + TOLERANCE_SECONDS
    try:
        with av.open(str(path)) as container:
            stream = _at_start(container, wanted)
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                if frame.pts is None:
                    continue
                shown = float(frame.pts * stream.time_base)
                rows = _rows_at(wanted, shown)
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
