"""Small datasets in the shapes that people published, oddities included.

They are written without LeRobot: it would put right what others left wrong.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from tests.learning import damage

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
STATE, ACTION, CAMERA = "observation.state", "action", "observation.images."
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
LENGTHS = (12, 9, 11, 10)
HEIGHT, WIDTH = 48, 64  # x265 corrupts memory with pictures lower than 48
BOOKKEEPING = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"g": "2", "bf": "0"}),
    "h264-bframes": ("libx264", {"g": "30", "bf": "3"}),
    "hevc": ("libx265", {"x265-params": "log-level=none:pools=none:frame-threads=1"}),
    # LeRobot's is SVT-AV1, which gives the process of root real-time priority, for good.
    "av1": ("libaom-av1", {"g": "2", "cpu-used": "8"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime"}),
    "mpeg4": ("mpeg4", {"g": "12"}),
}

Features = dict[str, dict[str, Any]]
Verdict = Literal["read", "convert", "convert --partial", "refused"]
TRAINED = "trained"
LEFT_OUT = "camera 'ir' has no three colour channels: it is left out"
DEPTH_LEFT_OUT = "camera 'depth' is a depth camera: it is left out"
CUT = "longer than the 48 tokens that policy 'smolvla' reads"
ONE_EPISODE = "refused: `1 episode is too few to train on some and hold out others`"
TOO_WIDE = "refused: `the state has 44 values, policy 'smolvla' takes at most 32`"


@dataclass(frozen=True)
class Shape:
    """One kind of dataset, and what zk0d makes of it."""

    name: str
    about: str
    verdict: Verdict
    make: Callable[[Path], None]
    says: str  #: of what ``zk0bot data check`` says, the part that matters
    outcomes: Mapping[str, str]  #: how training of each policy ends, if any can be trained at all

    def __str__(self) -> str:
        return self.name


SHAPES: dict[str, Shape] = {}


def shape(
    about: str,
    verdict: Verdict = "read",
    says: str = "",
    smolvla: str = TRAINED,
    act: str = TRAINED,
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Put a function that writes a dataset on the list."""

    def put(make: Callable[[Path], None]) -> Callable[[Path], None]:
        name = make.__name__.replace("_", "-")
        outcomes = {} if verdict == "refused" else {"smolvla": smolvla, "act": act}
        SHAPES[name] = Shape(name, about, verdict, make, says, outcomes)
        return make

    return put


def numbers(width: int, names: Any = None, dtype: str = "float32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [width], "names": names}


def camera(
    shape: Sequence[int] = (HEIGHT, WIDTH, 3),
    names: Any = ("height", "width", "channels"),
    dtype: str = "video",
    codec: str = "h264",
    info: str = "info",
) -> dict[str, Any]:
    described = {"video.codec": codec, "video.is_depth_map": False, "has_audio": False}
    return {"dtype": dtype, "shape": list(shape), "names": names, info: described}


def so101(*cameras: str, **how: Any) -> Features:
    """Features of an SO-101 as LeRobot records them."""
    joints = [f"{joint}.pos" for joint in JOINTS]
    return {
        ACTION: numbers(6, joints),
        STATE: numbers(6, joints),
        **{CAMERA + name: camera(**how) for name in cameras or ("front", "wrist")},
    }


def pictures(count: int, height: int, width: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """A square that moves over a ramp."""
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = np.stack([columns * 255 // width, rows * 255 // height, (rows + columns) % 256], -1)
    for number in range(count):
        picture = ramp.astype(np.uint8)
        left = (5 * number + 9 * seed) % (width - width // 4)
        picture[height // 4 : height // 2, left : left + width // 4] = (255, 40 * seed % 256, 0)
        yield picture


def write_video(
    path: Path, shown: Sequence[NDArray[np.uint8]], fps: float, codec: str = "h264"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder, options = ENCODERS[codec]
    with av.open(str(path), "w") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(encoder, rate=rate, options=options)
        stream.height, stream.width = shown[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in shown:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def write(
    folder: Path,
    features: Features | None = None,
    *,
    lengths: Sequence[int] = LENGTHS,
    numbered: Sequence[int] | None = None,
    fps: float = 30,
    version: str = "v3.0",
    tasks: Sequence[str] = ("pick up the cube",),
    robot: str | None = "so101_follower",
    scale: float = 50.0,
    statistics: bool = True,
    shown: Callable[[str, int, int, int, int], Iterator[NDArray[np.uint8]]] | None = None,
) -> None:
    """A whole dataset; ``shown(camera, count, height, width, episode)`` gives its pictures."""
    features = so101() if features is None else features
    numbered = list(numbered or range(len(lengths)))
    random = np.random.default_rng(0)
    film = shown or (lambda key, count, height, width, seed: pictures(count, height, width, seed))
    tables, films, begin = [], [], 0
    for place, (episode, length) in enumerate(zip(numbered, lengths, strict=True)):
        films.append(
            {
                key: [*film(key, length, *_size(feature), episode)]
                for key, feature in features.items()
                if feature["dtype"] in ("video", "image")
            }
        )
        table = _rows(features, length, random, scale, films[-1])
        own = {
            "timestamp": (np.arange(length) / fps).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, episode),
            "index": np.arange(begin, begin + length),
            "task_index": np.full(length, place % len(tasks)),
        }
        tables.append(pa.table(table | {name: pa.array(each) for name, each in own.items()}))
        begin += length
    described = features | {name: numbers(1, dtype=dtype) for name, dtype in BOOKKEEPING.items()}
    info: dict[str, Any] = {
        "codebase_version": version,
        "robot_type": robot,
        "total_episodes": len(lengths),
        "total_frames": begin,
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "features": described,
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    write_parts = _write_v3 if version.startswith("v3") else _write_v2
    write_parts(folder, info, numbered, tables, films, tasks, statistics)


def _size(feature: dict[str, Any]) -> tuple[int, int]:
    first, second, third = feature["shape"]
    return (second, third) if first in (1, 3) else (first, second)


def _rows(
    features: Features,
    length: int,
    random: np.random.Generator,
    scale: float,
    film: dict[str, list[NDArray[np.uint8]]],
) -> dict[str, pa.Array]:
    time = np.linspace(0, 3, length)[:, None]
    columns: dict[str, pa.Array] = {}
    for key, feature in features.items():
        dtype, size = feature["dtype"], int(np.prod(feature["shape"]))
        if dtype == "image":
            encoded = [_png(picture, grey=1 in feature["shape"]) for picture in film[key]]
            columns[key] = pa.array([{"bytes": each, "path": None} for each in encoded])
        elif dtype == "string":
            columns[key] = pa.array(["note"] * length)
        elif dtype != "video":
            swing = np.sin(time * (1 + random.random(size)) + 6 * random.random(size))
            values = (scale * swing).astype(dtype)
            if feature["shape"] == [1]:
                columns[key] = pa.array(values[:, 0])
            else:
                nested = values.reshape(length, *feature["shape"]).tolist()
                kind: pa.DataType = pa.from_numpy_dtype(np.dtype(dtype))
                for _ in feature["shape"]:
                    kind = pa.list_(kind)
                columns[key] = pa.array(nested, kind)
    return columns


def _png(picture: NDArray[np.uint8], *, grey: bool) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    (image.convert("L") if grey else image).save(buffer, "PNG")
    return buffer.getvalue()


def _codec(feature: dict[str, Any]) -> str:
    told: dict[str, Any] = feature.get("info") or feature["video_info"]
    return str(told["video.codec"])


def _write_v3(
    folder: Path,
    info: dict[str, Any],
    numbered: Sequence[int],
    tables: Sequence[pa.Table],
    films: Sequence[dict[str, list[NDArray[np.uint8]]]],
    tasks: Sequence[str],
    statistics: bool,
) -> None:
    info |= {
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), folder / "data/chunk-000/file-000.parquet")
    videos = [key for key, each in info["features"].items() if each["dtype"] == "video"]
    rows, begin = [], 0
    for episode, table in zip(numbered, tables, strict=True):
        end = begin + len(table)
        used = sorted({*table.column("task_index").to_pylist()})
        row: dict[str, Any] = {
            "episode_index": episode,
            "tasks": [tasks[task] for task in used],
            "length": len(table),
            "dataset_from_index": begin,
            "dataset_to_index": end,
        }
        for what in ("data", "meta/episodes", *(f"videos/{key}" for key in videos)):
            row |= {f"{what}/chunk_index": 0, f"{what}/file_index": 0}
        for key in videos:
            row[f"videos/{key}/from_timestamp"] = begin / info["fps"]
            row[f"videos/{key}/to_timestamp"] = end / info["fps"]
        rows.append(row)
        begin = end
    pq.write_table(pa.Table.from_pylist(rows), folder / EPISODES)
    index = pd.Index([*tasks], name="task")
    pd.DataFrame({"task_index": range(len(tasks))}, index=index).to_parquet(
        folder / "meta/tasks.parquet"
    )
    for key in videos:
        shown = [picture for film in films for picture in film[key]]
        path = folder / f"videos/{key}/chunk-000/file-000.mp4"
        write_video(path, shown, info["fps"], _codec(info["features"][key]))
    (folder / "meta/info.json").write_text(json.dumps(info))


def _write_v2(
    folder: Path,
    info: dict[str, Any],
    numbered: Sequence[int],
    tables: Sequence[pa.Table],
    films: Sequence[dict[str, list[NDArray[np.uint8]]]],
    tasks: Sequence[str],
    statistics: bool,
) -> None:
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    info |= {"total_chunks": 1, "total_videos": 0, "data_path": data, "video_path": video}
    (folder / "data/chunk-000").mkdir(parents=True)
    lines: dict[str, list[Any]] = {"episodes": [], "tasks": [], "episodes_stats": []}
    for episode, table, film in zip(numbered, tables, films, strict=True):
        names: dict[str, Any] = {"episode_chunk": 0, "episode_index": episode}
        pq.write_table(table, folder / data.format(**names))
        for key, feature in info["features"].items():
            if feature["dtype"] == "video" and film[key]:
                path = folder / video.format(video_key=key, **names)
                write_video(path, film[key], info["fps"], _codec(feature))
        used = sorted({*table.column("task_index").to_pylist()})
        about = {"tasks": [tasks[task] for task in used], "length": len(table)}
        lines["episodes"].append({"episode_index": episode, **about})
        lines["episodes_stats"].append({"episode_index": episode, "stats": _stats(table, film)})
    lines["tasks"] = [{"task_index": n, "task": task} for n, task in enumerate(tasks)]
    if not (statistics and info["codebase_version"] == "v2.1"):
        del lines["episodes_stats"]
    for name, content in lines.items():
        text = "".join(json.dumps(line) + "\n" for line in content)
        (folder / f"meta/{name}.jsonl").write_text(text)
    (folder / "meta/info.json").write_text(json.dumps(info))


def _stats(table: pa.Table, film: dict[str, list[NDArray[np.uint8]]]) -> dict[str, Any]:
    values = {
        key: np.stack([np.atleast_1d(each) for each in table.column(key).to_pylist()]).astype(float)
        for key in table.column_names
        if key not in film and len(table) and not pa.types.is_string(table.schema.field(key).type)
    }
    made = {key: _summary(each, each.shape[1:]) for key, each in values.items()}
    for key, shown in film.items():
        if shown:
            pixels = np.stack(shown).reshape(-1, 3) / 255
            made[key] = _summary(pixels, (3, 1, 1)) | {"count": [len(shown)]}
    return made


def _summary(values: NDArray[np.float64], shape: tuple[int, ...]) -> dict[str, Any]:
    found = {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
    }
    return {name: each.reshape(shape).tolist() for name, each in found.items()} | {
        "count": [len(values)]
    }


# Robots and cameras.


@shape("SO-101, cameras front and wrist, as LeRobot 0.6 records it")
def so101_plain(folder: Path) -> None:
    write(folder)


@shape("two SO-101: 12 values, three cameras")
def so101_bimanual(folder: Path) -> None:
    joints = [f"{side}_{joint}.pos" for side in ("left", "right") for joint in JOINTS]
    features = {ACTION: numbers(12, joints), STATE: numbers(12, joints)}
    features |= {CAMERA + name: camera() for name in ("left_wrist", "right_wrist", "top")}
    write(folder, features, robot="bi_so101_follower")


@shape("two SO-101 over XR: one feature for each joint")
def joints_apart(folder: Path) -> None:
    write(folder, _apart(), robot="so101_follower_dual", fps=15)


def _apart() -> Features:
    features: Features = {}
    for side in ("left", "right"):
        for joint in JOINTS:
            features[f"observation.{side}_{joint}.pos"] = numbers(1)
            features[f"action.{side}_{joint}.pos"] = numbers(1)
    return features | {CAMERA + "head": camera(), "observation.force": numbers(1)}


@shape("openpi: state, actions, image, wrist_image")
def openpi(folder: Path) -> None:
    features = {"actions": numbers(7), "state": numbers(8), "image": camera()}
    write(folder, features | {"wrist_image": camera()}, robot="panda", fps=10)


@shape("LeKiwi: an arm and wheels, cameras of two sizes")
def lekiwi(folder: Path) -> None:
    names = [f"arm_{joint}.pos" for joint in JOINTS] + ["x.vel", "y.vel", "theta.vel"]
    features = {ACTION: numbers(9, names), STATE: numbers(9, names), CAMERA + "front": camera()}
    write(folder, features | {CAMERA + "wrist": camera((64, 48, 3))}, robot="lekiwi_client")


@shape("17 values without names, three cameras")
def values_17(folder: Path) -> None:
    features = {ACTION: numbers(17), STATE: numbers(17)}
    features |= {CAMERA + name: camera() for name in ("head", "left_arm", "right_arm")}
    write(folder, features, robot="xlerobot")


@shape("PushT: 2 values, observation.image of 96 x 96, 10 frames per second")
def pusht(folder: Path) -> None:
    features = {ACTION: numbers(2), STATE: numbers(2), "observation.image": camera((96, 96, 3))}
    write(folder, features, robot="unknown", fps=10)


@shape("Reachy: 19 values, observation.image with channels first")
def reachy(folder: Path) -> None:
    axes = ("channel", "height", "width")
    image = camera((3, HEIGHT, WIDTH), names=axes)
    features = {ACTION: numbers(19), STATE: numbers(19), "observation.image": image}
    write(folder, features, robot="reachy2")


@shape("environment state beside the robot's, 50 frames per second")
def environment_state(folder: Path) -> None:
    objects = [f"object_{n}" for n in range(28)]
    more = {"observation.environment_state": numbers(28, objects)}
    write(folder, so101("wrist", "overhead") | more, fps=50)


@shape("efforts, forces and velocities; camera names that begin with a digit")
def efforts(folder: Path) -> None:
    features = {
        ACTION: numbers(8, [f"action_{n}" for n in range(8)]),
        STATE: numbers(8, [f"qpos_{n}" for n in range(8)]),
        "observation.effort": numbers(8),
        "observation.force_torque": numbers(6),
        "observation.qvel": numbers(8),
        CAMERA + "0_femtobolt": camera(),
        CAMERA + "1_gemini330": camera(),
    }
    write(folder, features, robot="mobile")


@shape("humanoid: 44 values of float64, names in a list in a list", smolvla=TOO_WIDE)
def humanoid(folder: Path) -> None:
    joints = [[f"motor_{n}" for n in range(44)]]
    features = {ACTION: numbers(44, joints, "float64"), STATE: numbers(44, joints, "float64")}
    write(folder, features | {CAMERA + "ego_view": camera()}, robot="GR1", fps=20)


@shape("servo ticks as integers")
def integers(folder: Path) -> None:
    features = so101()
    features[ACTION] |= {"dtype": "int64"}
    features[STATE] |= {"dtype": "int64"}
    write(folder, features, scale=2000)


@shape("metres and radians that span 8 mm")
def small_units(folder: Path) -> None:
    write(folder, scale=0.004)


@shape("camera names with spaces, dots and letters beyond ASCII")
def camera_names(folder: Path) -> None:
    write(folder, so101("USB Camera 1", "cam.high", "Kamera-übersicht"))


@shape("instructions in Chinese, French and Korean")
def unicode_tasks(folder: Path) -> None:
    write(folder, tasks=("把方块放进盒子", "Ramasse la brique 🧱", "큐브를 집어서 넣으세요"))


@shape("an instruction of 126 words", says=CUT)
def long_task(folder: Path) -> None:
    sentence = (
        "Pick up the red cube from the left side of the table, carry it over the blue tray without"
        " touching anything else, lower it gently into the third slot from the right, let go, and"
        " then go back to the place where the arm began. "
    )
    write(folder, tasks=(3 * sentence,))


@shape("an empty instruction", says="some episodes have no instruction; the policy reads it.")
def empty_task(folder: Path) -> None:
    write(folder, tasks=("",))


@shape("pictures in the tables, observation.image")
def pictures_in_tables(folder: Path) -> None:
    image = camera(dtype="image")
    write(folder, {**so101("top", dtype="image"), "observation.image": image})


@shape("an infrared camera: one channel, as a video", says=LEFT_OUT)
def infrared(folder: Path) -> None:
    write(folder, {**so101(), CAMERA + "ir": camera((HEIGHT, WIDTH, 1))})


@shape("an infrared camera: one channel, in the tables", says=LEFT_OUT)
def infrared_in_tables(folder: Path) -> None:
    write(folder, {**so101(), CAMERA + "ir": camera((HEIGHT, WIDTH, 1), dtype="image")})


@shape("a depth camera that is declared, as a video", says=DEPTH_LEFT_OUT)
def declared_depth(folder: Path) -> None:
    depth = camera()
    depth["info"]["video.is_depth_map"] = True
    write(folder, {**so101(), CAMERA + "depth": depth})


@shape("a depth camera that is declared, 16 bits in the tables", says=DEPTH_LEFT_OUT)
def declared_depth_in_tables(folder: Path) -> None:
    depth = camera((HEIGHT, WIDTH, 1), dtype="image")
    depth["info"] = {"is_depth_map": True, "depth_unit": "mm"}
    more = {
        CAMERA + "depth": depth,
        "observation.timestamps.front_ns": numbers(1, dtype="int64"),
        "observation.valid.front": numbers(1, dtype="bool"),
    }
    write(folder, so101() | more)
    _grey_of_16_bits(folder, CAMERA + "depth")


@shape("channels first, names null")
def channels_first(folder: Path) -> None:
    write(folder, so101("front", shape=(3, HEIGHT, WIDTH), names=None))


@shape("names as dicts, info as video_info")
def names_in_dicts(folder: Path) -> None:
    axes = {"axes": ["height", "width", "channel"]}
    features = so101("front", names=axes, info="video_info")
    features[STATE]["names"] = {"motors": features[STATE]["names"]}
    features[ACTION]["names"] = {name: place for place, name in enumerate(JOINTS)}
    write(folder, features)


@shape("more features: text, truth values, a matrix, another arm's pose")
def more_features(folder: Path) -> None:
    more = {
        "observation.note": numbers(1, dtype="string"),
        "next.done": numbers(1, dtype="bool"),
        "observation.tactile": {"dtype": "float32", "shape": [4, 4], "names": None},
        "action.ee": numbers(7, list("xyzabcg")),
    }
    write(folder, so101() | more)


# Rates and codecs.


@shape("29.97 frames per second")
def rate_29_97(folder: Path) -> None:
    write(folder, fps=29.97)


@shape("30.0 frames per second")
def rate_as_float(folder: Path) -> None:
    write(folder, fps=30.0)


def _of_codec(codec: str) -> None:
    def make(folder: Path) -> None:
        write(folder, so101(codec=codec))

    make.__name__ = f"codec_{codec}"
    shape(f"videos of {codec}")(make)


for _each in ENCODERS:
    _of_codec(_each)


# Files.


@shape("what macOS leaves: ._ files and .DS_Store")
def macos_files(folder: Path) -> None:
    write(folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7" * 30)
    for path in (folder, folder / "data", folder / "meta/episodes", folder / "videos"):
        (path / ".DS_Store").write_bytes(b"\0" * 60)


@shape("v3.0 with v2's paths, and a table and video for each episode without times")
def paths_of_v2(folder: Path) -> None:
    write(folder, tasks=("pick up the cube", "open the drawer"))
    table = pq.read_table(damage.data_table(folder))
    damage.data_table(folder).unlink()
    info = json.loads((folder / "meta/info.json").read_text())
    rows = pq.read_table(folder / EPISODES).to_pylist()
    for row in rows:
        number, begin, end = (row[f] for f in ("episode_index", "dataset_from_index", "length"))
        part = table.slice(begin, end)
        pq.write_table(part, folder / f"data/chunk-000/episode_{number:06d}.parquet")
        for key in [key for key, each in info["features"].items() if each["dtype"] == "video"]:
            shown = [*pictures(len(part), HEIGHT, WIDTH, number)]
            write_video(folder / f"videos/chunk-000/{key}/episode_{number:06d}.mp4", shown, 30)
            (folder / f"videos/{key}/chunk-000/file-000.mp4").unlink(missing_ok=True)
    plain = [
        {key: value for key, value in row.items() if "/" not in key or "chunk" in key}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(plain), folder / EPISODES)
    _info(
        folder,
        data_path="data/chunk-{chunk_index:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )


@shape("v3.0 whose info.json still names v2's paths")
def paths_that_lie(folder: Path) -> None:
    write(folder)
    _info(
        folder,
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )


@shape("tables without index, frame_index and task_index")
def tables_without_index(folder: Path) -> None:
    write(folder, tasks=("pick up the cube", "open the drawer"))
    path = damage.data_table(folder)
    table = pq.read_table(path).drop_columns(["index", "frame_index", "task_index"])
    pq.write_table(table, path)


@shape("tasks.parquet with the task as a column")
def task_as_column(folder: Path) -> None:
    tasks = ("pick up the cube", "open the drawer")
    write(folder, tasks=tasks)
    frame = pd.DataFrame({"task_index": range(2), "task": tasks})
    frame.to_parquet(folder / "meta/tasks.parquet")


@shape("robot_type null, a newer info.json's keys of a video")
def newer_info(folder: Path) -> None:
    write(folder, robot=None)
    more: dict[str, Any] = {
        "is_depth_map": False,
        "video.fps": 30,
        "video.preset": None,
        "video.extra_options": {},
    }

    def change(info: dict[str, Any]) -> None:
        for name in ("front", "wrist"):
            told = info["features"][CAMERA + name]["info"]
            del told["video.is_depth_map"]
            told.update(more)

    damage.change_info(folder, change)


@shape(
    "one episode",
    says="1 episode; a task is learned from 50 or more",
    smolvla=ONE_EPISODE,
    act=ONE_EPISODE,
)
def one_episode(folder: Path) -> None:
    write(folder, lengths=(40,))


@shape("no robot_type, a split for validation, no statistics")
def sparse_info(folder: Path) -> None:
    write(folder)
    damage.change_info(
        folder, lambda info: (info.pop("robot_type"), info["splits"].update(val="3:4"))
    )


def _info(folder: Path, **changes: Any) -> None:
    damage.change_info(folder, lambda info: info.update(changes))


# Former formats.


@shape("v2.0: koch, no statistics by episode", "convert", "is of LeRobot's format v2.0")
def v20(folder: Path) -> None:
    write(folder, so101("laptop", "phone", info="video_info"), version="v2.0", robot="koch")


@shape(
    "v2.0: ALOHA, next.done, AV1, 50 frames per second", "convert", "is of LeRobot's format v2.0"
)
def v20_aloha(folder: Path) -> None:
    _aloha(folder, "v2.0")


@shape(
    "v2.1: ALOHA, next.done, AV1, 50 frames per second", "convert", "is of LeRobot's format v2.1"
)
def v21_aloha(folder: Path) -> None:
    _aloha(folder, "v2.1")


def _aloha(folder: Path, version: str) -> None:
    joints = {"motors": [f"{side}_{n}" for side in ("left", "right") for n in range(7)]}
    features = {
        CAMERA + "top": camera(codec="av1", info="video_info"),
        STATE: numbers(14, joints),
        ACTION: numbers(14, joints),
        "next.done": numbers(1, dtype="bool"),
    }
    write(folder, features, version=version, robot="aloha", fps=50.0, scale=1)


@shape(
    "v2.0 as GR00T's: float64, times from the end of a frame, no frame_index",
    "convert",
    "is of LeRobot's format v2.0",
    TOO_WIDE,
)
def v20_groot(folder: Path) -> None:
    features = {ACTION: numbers(44, dtype="float64"), STATE: numbers(44, dtype="float64")}
    write(folder, features | {CAMERA + "ego_view": camera()}, version="v2.0", fps=20.0)
    for path in (folder / "data").rglob("*.parquet"):
        table = pq.read_table(path).drop_columns(["frame_index"])
        times = np.arange(1, len(table) + 1) / 20
        place = table.schema.get_field_index("timestamp")
        pq.write_table(table.set_column(place, "timestamp", pa.array(times)), path)
    damage.change_info(folder, lambda info: info["features"].pop("frame_index"))


@shape("v2.1: SO-100, old joint names", "convert", "is of LeRobot's format v2.1")
def v21(folder: Path) -> None:
    write(folder, so101("laptop", "phone", codec="av1"), version="v2.1", robot="so100")


@shape(
    "v2.1 without meta/episodes_stats.jsonl, 29.97 frames per second",
    "convert",
    "is of LeRobot's format v2.1",
)
def v21_without_statistics(folder: Path) -> None:
    write(folder, version="v2.1", statistics=False, fps=29.97)


@shape("v2.1 with pictures in its tables", "convert", "is of LeRobot's format v2.1")
def v21_pictures_in_tables(folder: Path) -> None:
    write(folder, so101("top", dtype="image"), version="v2.1")


@shape("v2.1 with a feature for each joint", "convert", "is of LeRobot's format v2.1")
def v21_joints_apart(folder: Path) -> None:
    write(folder, _apart(), version="v2.1", fps=15)


@shape("v2.1 with keys of its own in info.json", "convert", "is of LeRobot's format v2.1")
def v21_own_keys(folder: Path) -> None:
    write(folder, version="v2.1", robot="so101_follower")
    _info(folder, discarded_episode_indices=[3])


@shape("v2.1 from which episode 2 was taken", "convert", "is of LeRobot's format v2.1")
def v21_episode_taken(folder: Path) -> None:
    write(folder, version="v2.1", numbered=(0, 1, 3, 4))


@shape(
    "v2.1 with pictures in its tables from which episode 2 was taken",
    "convert",
    "is of LeRobot's format v2.1",
)
def v21_pictures_in_tables_taken(folder: Path) -> None:
    write(folder, so101("top", dtype="image"), version="v2.1", numbered=(0, 1, 3, 4))


@shape("v2.1, an episode without frames", "convert --partial", "is of LeRobot's format v2.1")
def v21_empty_episode(folder: Path) -> None:
    write(folder, version="v2.1", lengths=(12, 0, 11, 10))


@shape(
    "v2.1 fetched in part: counts more episodes than are there",
    "convert --partial",
    "is of LeRobot's format v2.1",
)
def v21_part(folder: Path) -> None:
    write(folder, version="v2.1")
    for path in folder.rglob("episode_000003.*"):
        path.unlink()
    damage.change_info(folder, lambda info: info.update(total_episodes=9))


# Refused, each in one sentence.


@shape("Git LFS pointers for tables", "refused", "are Git LFS pointers; run git lfs pull in")
def pointers_for_tables(folder: Path) -> None:
    write(folder)
    _pointers((folder / "data").rglob("*.parquet"))


@shape("Git LFS pointers for videos", "refused", "are Git LFS pointers; run git lfs pull in")
def pointers_for_videos(folder: Path) -> None:
    write(folder)
    _pointers((folder / "videos").rglob("*.mp4"))


@shape("Git LFS pointers for all of meta", "refused", "are Git LFS pointers; run git lfs pull in")
def pointers_for_meta(folder: Path) -> None:
    write(folder)
    _pointers(path for path in (folder / "meta").rglob("*") if path.is_file())


def _pointers(paths: Iterator[Path]) -> None:
    for path in [*paths]:
        digest = "ab" * 32
        path.write_text(
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 7302\n"
        )


@shape("LeRobot's version in place of the format's", "refused", "names the format 0.4.0")
def version_of_lerobot(folder: Path) -> None:
    write(folder)
    _info(folder, codebase_version="0.4.0")


@shape("v1.6", "refused", "names the format v1.6")
def version_16(folder: Path) -> None:
    write(folder)
    _info(folder, codebase_version="v1.6")


@shape(
    "v3.0 that counts more episodes than are there", "refused", "counts 6 episodes, meta/episodes"
)
def counts_more(folder: Path) -> None:
    write(folder)
    _info(folder, total_episodes=6)


@shape("v3.0 from which episode 2 was taken", "refused", "has episode 3 where episode 2 must be")
def episode_taken(folder: Path) -> None:
    write(folder, numbered=(0, 1, 3, 4))


@shape("an episode without frames", "refused", "episode 1 has no frames")
def empty_episode(folder: Path) -> None:
    write(folder, lengths=(12, 0, 11, 10))


@shape("no state", "refused", "no state was recorded")
def no_state(folder: Path) -> None:
    features = so101()
    del features[STATE]
    write(folder, features)


@shape("actions of two rows a frame", "refused", "'action' must be a list of numbers")
def action_matrix(folder: Path) -> None:
    write(folder, so101() | {ACTION: {"dtype": "float32", "shape": [2, 6], "names": None}})


@shape("no meta/tasks.parquet", "refused", "meta/tasks.parquet is missing")
def no_tasks(folder: Path) -> None:
    write(folder)
    (folder / "meta/tasks.parquet").unlink()


@shape("a video larger than said", "refused", "shows 64 x 48 pixels, meta/info.json says 24 x 16")
def larger_video(folder: Path) -> None:
    write(folder)
    damage.change_info(
        folder, lambda info: info["features"][CAMERA + "wrist"].update(shape=[16, 24, 3])
    )


@shape("a picture in a table larger than said", "refused", "has a picture of [3, 48, 64]")
def larger_picture(folder: Path) -> None:
    write(folder, so101("top", dtype="image"))
    damage.change_info(
        folder, lambda info: info["features"][CAMERA + "top"].update(shape=[16, 24, 3])
    )


@shape("a depth camera of 16 bits in the tables", "refused", "has pictures of more than 8 bits")
def depth_in_tables(folder: Path) -> None:
    write(folder, so101("top", dtype="image"))
    _grey_of_16_bits(folder, CAMERA + "top")


def _grey_of_16_bits(folder: Path, key: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((HEIGHT, WIDTH), 900, np.uint16)).save(buffer, "PNG")

    def change(rows: damage.Rows) -> None:
        for row in rows:
            row[key]["bytes"] = buffer.getvalue()

    damage.change_rows(damage.data_table(folder), change)


@shape("a video that ends early", "refused", "ends 3 frames before episode 3")
def short_video(folder: Path) -> None:
    write(folder)
    damage.without_pictures(damage.first_video(folder), range(39, 42))


@shape("NaN in the state", "refused", "hold NaN or infinity")
def not_a_number(folder: Path) -> None:
    write(folder)
    damage.set_value(folder, STATE, 5, float("nan"))


@shape("20 frames per second said, 18.5 recorded", "refused", "recorded at about 18.5")
def rate_of_18_5(folder: Path) -> None:
    write(folder, fps=20, lengths=(40, 30))
    _times(folder, lambda row: row["frame_index"] / 18.5)


@shape("the same with pictures in its tables", "refused", "recorded at about 18.5")
def rate_of_18_5_in_tables(folder: Path) -> None:
    write(folder, so101("top", dtype="image"), fps=20, lengths=(40, 30))
    _times(folder, lambda row: row["frame_index"] / 18.5)


@shape("a gap in the times", "refused", "has the time")
def gap(folder: Path) -> None:
    write(folder)
    _times(folder, lambda row: row["timestamp"] + (0.4 if row["index"] in range(16, 21) else 0))


@shape("times of a wall clock, some milliseconds off", "refused", "are those of no picture")
def uneven_times(folder: Path) -> None:
    write(folder)
    _times(folder, lambda row: row["timestamp"] + 0.003 * (row["index"] % 3))


def _times(folder: Path, time: Callable[[dict[str, Any]], float]) -> None:
    def change(rows: damage.Rows) -> None:
        for row in rows:
            row["timestamp"] = time(row)

    damage.change_rows(damage.data_table(folder), change)


# Read, with a notice that --videos brings.


@shape("a camera that is black for an episode", says="camera 'wrist' is black throughout")
def black_camera(folder: Path) -> None:
    def shown(key: str, count: int, *where: int) -> Iterator[NDArray[np.uint8]]:
        for picture in pictures(count, *where):
            yield picture * (not (key.endswith("wrist") and where[-1] == 2))

    write(folder, shown=shown)


@shape("a camera that froze for an episode", says="camera 'front' shows the same picture")
def frozen_camera(folder: Path) -> None:
    def shown(key: str, count: int, *where: int) -> Iterator[NDArray[np.uint8]]:
        film = [*pictures(count, *where)]
        yield from film[:1] * count if key.endswith("front") and where[-1] == 1 else film

    write(folder, shown=shown)
