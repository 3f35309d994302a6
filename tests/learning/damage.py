"""Ways in which recordings get damaged: what crashes, copies and editors leave behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets import LeRobotDataset

Rows = list[dict[str, Any]]


def make_dataset(
    folder: Path,
    lengths: Sequence[int],
    pictures: str = "video",
    state: int = 3,
    action: int = 2,
    tasks: Sequence[str] = ("task 0", "task 1"),
    cameras: Mapping[str, tuple[int, int]] = MappingProxyType({"observation.images.top": (32, 32)}),
) -> None:
    """A small whole dataset, with videos or with images in its tables.

    ``cameras`` are features with height and width.
    """
    dataset = LeRobotDataset.create(
        f"local/{folder.name}",
        fps=30,
        root=folder,
        robot_type="so101_follower",
        use_videos=pictures == "video",
        video_backend="pyav",
        # The default's encoder, SVT-AV1, gives the process of root real-time priority, for good.
        rgb_encoder=RGBEncoderConfig(vcodec="h264", extra_options={"bf": "0"}),
        features={
            **{
                name: {
                    "dtype": "float32",
                    "shape": (width,),
                    "names": [f"j{i}" for i in range(width)],
                }
                for name, width in (("observation.state", state), ("action", action))
            },
            **{
                key: {
                    "dtype": pictures,
                    "shape": (*size, 3),
                    "names": ["height", "width", "channels"],
                }
                for key, size in cameras.items()
            },
        },
    )
    _record(dataset, dict(enumerate(lengths)), tasks)


def record_more(folder: Path, *lengths: int, tasks: Sequence[str] = ("task 0", "task 1")) -> None:
    """Episodes that LeRobot adds to a dataset of :func:`make_dataset`, in its videos and tables."""
    dataset = LeRobotDataset.resume(
        f"local/{folder.name}",
        root=folder,
        video_backend="pyav",
        rgb_encoder=RGBEncoderConfig(vcodec="h264", extra_options={"bf": "0"}),
    )
    _record(dataset, dict(enumerate(lengths, dataset.meta.total_episodes)), tasks)


def _record(dataset: LeRobotDataset, lengths: Mapping[int, int], tasks: Sequence[str]) -> None:
    """Episodes by their numbers, in shades of grey."""
    generator = np.random.default_rng(min(lengths))
    features = dataset.meta.features
    state, action = (features[name]["shape"][0] for name in ("observation.state", "action"))
    cameras = {key: features[key]["shape"] for key in dataset.meta.camera_keys}
    for episode, length in lengths.items():
        for frame in range(length):
            grey = (20 * frame + 5 * episode) % 256
            dataset.add_frame(
                {
                    "observation.state": generator.random(state, dtype=np.float32),
                    "action": generator.random(action, dtype=np.float32),
                    **{key: np.full(shape, grey, np.uint8) for key, shape in cameras.items()},
                    "task": tasks[episode % len(tasks)],
                }
            )
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


def change_info(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit ``meta/info.json``."""
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def data_table(folder: Path) -> Path:
    return sorted((folder / "data").rglob("*.parquet"))[0]


def episodes_table(folder: Path) -> Path:
    return sorted((folder / "meta" / "episodes").rglob("*.parquet"))[0]


def first_video(folder: Path) -> Path:
    return sorted((folder / "videos").rglob("*.mp4"))[0]


def change_rows(path: Path, change: Callable[[Rows], Rows | None]) -> None:
    """Edit a table's rows, which ``change`` alters in place or returns."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows = change(rows) or rows
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def set_value(folder: Path, column: str, row: int, value: float) -> None:
    """Overwrite the first component of a feature in one frame."""
    change_rows(data_table(folder), lambda rows: rows[row][column].__setitem__(0, value))


def without_pictures(path: Path, numbers: Collection[int], *, close_up: bool = False) -> None:
    """Encode a video again without some of its pictures.

    The later ones keep their times, as if a camera had stalled; or they ``close_up``.
    """
    copy = path.with_suffix(".draft.mp4")
    with av.open(str(path)) as old, av.open(str(copy), "w") as new:
        source = old.streams.video[0]
        stream = new.add_stream("libx264", rate=source.average_rate, options={"g": "2", "bf": "0"})
        stream.width, stream.height = source.codec_context.width, source.codec_context.height
        stream.pix_fmt, stream.time_base = "yuv420p", source.time_base
        step = round(1 / (source.average_rate * source.time_base))
        kept = 0
        for number, frame in enumerate(old.decode(source)):
            if number in numbers:
                continue
            picture = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), "rgb24")
            picture.pts, picture.time_base = (kept if close_up else number) * step, source.time_base
            kept += 1
            new.mux(stream.encode(picture))
        new.mux(stream.encode())
    copy.replace(path)


def cut(path: Path, share: float) -> None:
    """Keep the first part of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file's content and time of change."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
