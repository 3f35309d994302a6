"""Recordings of LeRobot's former format."""

from __future__ import annotations

import errno
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.learning import damage
from tests.learning.damage import fingerprint
from tests.recordings import shapes
from zk0d.cli.main import app
from zk0d.demo.recordings import make_recordings
from zk0d.errors import DataError, TryAgainError, UsageError
from zk0d.learning.convert import convert
from zk0d.learning.frames import FrameBudget, decode_episode
from zk0d.learning.layout import POINTER
from zk0d.learning.merge import merge_datasets
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.split import split_dataset
from zk0d.machine.enrolment import Invite
from zk0d.simulators.task import Sector

BIN = Path(sys.executable).parent


def write_v21(recordings: Recordings, folder: Path, episodes: int) -> None:
    """The first episodes as LeRobot 2.1 laid them out: a file for each."""
    meta = folder / "meta"
    meta.mkdir(parents=True)
    source = recordings.layout.root
    info = json.loads((source / "meta/info.json").read_text())
    files = sorted((source / "data").rglob("*.parquet"))
    table = pd.concat(pd.read_parquet(path) for path in files)
    table = table[table["episode_index"] < episodes]
    lines: list[dict[str, Any]] = []
    stats: list[dict[str, Any]] = []
    for episode, rows in table.groupby("episode_index"):
        path = folder / f"data/chunk-000/episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(path, index=False)
        task = recordings.tasks[int(rows["index"].iloc[0])]
        lines.append({"episode_index": episode, "tasks": [task], "length": len(rows)})
        of_episode = {}
        for name in rows.columns:
            values = np.stack([np.atleast_1d(value) for value in rows[name]]).astype(float)
            of_episode[name] = summary(values)
        for key in recordings.layout.cameras:
            frames = [*decode_episode(recordings, key, int(episode)).pixels.numpy()]
            write_video(
                folder / f"videos/chunk-000/{key}/episode_{episode:06d}.mp4", frames, info["fps"]
            )
            pixels = np.stack(frames).astype(float).transpose(0, 2, 3, 1).reshape(-1, 3) / 255
            of_episode[key] = {
                name: np.reshape(value, (3, 1, 1)).tolist() if name != "count" else [len(frames)]
                for name, value in summary(pixels).items()
            }
        stats.append({"episode_index": episode, "stats": of_episode})
    tasks = [{"task_index": n, "task": task} for n, task in enumerate(recordings.layout.tasks)]
    for name, content in (("episodes", lines), ("episodes_stats", stats), ("tasks", tasks)):
        text = "".join(json.dumps(line, default=int) + "\n" for line in content)
        (meta / f"{name}.jsonl").write_text(text)
    info.update(
        codebase_version="v2.1",
        total_chunks=1,
        total_episodes=len(lines),
        total_frames=len(table),
        total_videos=len(lines) * len(recordings.layout.cameras),
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )
    (meta / "info.json").write_text(json.dumps(info))


def summary(values: np.ndarray) -> dict[str, list[Any]]:
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "count": [len(values)],
    }


def write_video(path: Path, frames: list[np.ndarray], fps: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"bf": "0"})
        _, stream.height, stream.width = frames[0].shape
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def former(recordings_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "former"
    write_v21(open_recordings(f"local:{recordings_folder}"), folder, episodes=2)
    return folder


@pytest.mark.slow
def test_a_converted_copy_is_the_same_recordings(recordings_folder: Path, former: Path) -> None:
    with pytest.raises(DataError, match=rf"v2\.1, .*zk0bot data convert {former}"):
        open_recordings(f"local:{former}")
    before_bytes = fingerprint(former)
    said = subprocess.run(
        [str(BIN / "zk0bot"), "data", "convert", str(former)], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    copy = former.with_name("former-v3.0")
    assert said.stdout.strip() == str(copy)
    assert fingerprint(former) == before_bytes
    before, after = (open_recordings(f"local:{path}") for path in (recordings_folder, copy))
    assert after.episodes == [0, 1]
    for name in ("action", "observation.state"):
        assert np.allclose(after.columns[name], before.columns[name][: len(after)])
    assert after.tasks == before.tasks[: len(after)]
    key = after.layout.cameras[0]
    pictures = [decode_episode(each, key, 1).pixels.float() for each in (before, after)]
    assert (pictures[0] - pictures[1]).abs().mean() < 12, "the same pictures, encoded again"
    assert sorted(path.name for path in former.parent.iterdir()) == ["former", "former-v3.0"]


@pytest.mark.parametrize("files", ["meta/tasks.jsonl", "data/**/*.parquet", "videos/**/*.mp4"])
def test_git_lfs_pointers_are_not_converted(former: Path, files: str) -> None:
    for path in former.glob(files):
        path.write_bytes(POINTER + b"v1\noid sha256:ab\nsize 7302\n")
    with pytest.raises(DataError, match=rf"are Git LFS pointers; run git lfs pull in {former}\.$"):
        convert(former, former.with_name("new"))
    assert [path.name for path in former.parent.iterdir()] == ["former"]


@pytest.mark.parametrize("lacking", [range(26, 29), range(10, 13)], ids=["end", "middle"])
def test_a_video_that_lacks_pictures_is_not_converted(former: Path, lacking: range) -> None:
    """LeRobot's script takes a video's length for the episode's."""
    video = former / "videos/chunk-000/observation.images.top/episode_000000.mp4"
    damage.without_pictures(video, lacking)
    with pytest.raises(DataError, match=rf"{former}: episode 0 lacks 3 pictures in .*000000.mp4"):
        convert(former, former.with_name("new"))
    assert [path.name for path in former.parent.iterdir()] == ["former"]


def changed_line(file: str, **values: Any) -> Callable[[Path], None]:
    """Change the second line of one of a dataset's papers."""

    def damaged(folder: Path) -> None:
        path = folder / "meta" / file
        lines = path.read_text().splitlines()
        lines[1] = json.dumps(json.loads(lines[1]) | values)
        path.write_text("\n".join(lines))

    return damaged


def changed_table(column: str, value: Any, *, throughout: bool = False) -> Callable[[Path], None]:
    """Change one value in the table of episode 1, or all of them."""

    def damaged(folder: Path) -> None:
        rows = pq.read_table(folder / TABLE).to_pylist()
        for row in rows if throughout else rows[2:3]:
            row[column] = value
        pq.write_table(pa.Table.from_pylist(rows), folder / TABLE)

    return damaged


TABLE = "data/chunk-000/episode_000001.parquet"
NO_NUMBERS: tuple[Any, ...] = (None, [], {}, "1")
SAID = ("min", "max", "mean", "std", "count")
NUMERIC = (shapes.ACTION, shapes.STATE, *shapes.BOOKKEEPING)
SMALL = io.BytesIO()
Image.new("RGB", (32, 24)).save(SMALL, "PNG")


@pytest.mark.slow
@pytest.mark.parametrize("statistics", [True, False], ids=["own", "computed"])
@pytest.mark.parametrize(
    ("damaged", "file"),
    [
        *(
            (changed_line("tasks.jsonl", task_index=value), "meta/tasks.jsonl")
            for value in (*NO_NUMBERS, 0)
        ),
        (changed_line("tasks.jsonl", task=None), "meta/tasks.jsonl"),
        *(
            (changed_line("episodes.jsonl", **{name: value}), "meta/episodes.jsonl")
            for name in ("episode_index", "length", "tasks")
            for value in (None, float("inf"), {"a": 1} if name != "tasks" else 1)
        ),
        (changed_line("episodes.jsonl", episode_index=0), "meta/episodes.jsonl names episode 0 2"),
        *((changed_table("action", value), TABLE) for value in (None, [0.5], [0.5] * 5 + [None])),
        *((changed_table(name, None), TABLE) for name in shapes.BOOKKEEPING if name != "index"),
    ],
)
def test_a_damaged_dataset_is_refused_with_the_files_name(
    tmp_path: Path, damaged: Callable[[Path], None], file: str, statistics: bool
) -> None:
    folder = tmp_path / "former"
    features = shapes.so101("top", dtype="image")
    shapes.write(folder, features, version="v2.1", tasks=("pick", "put"), statistics=statistics)
    damaged(folder)
    for partial in (False, True):
        with pytest.raises(DataError) as said:
            convert(folder, tmp_path / "new", partial=partial)
        assert file in said.value.message
        assert "LeRobot cannot" not in said.value.message
        assert "\n" not in said.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["former"]


@pytest.mark.parametrize(
    ("value", "what"),
    [(None, "no pictures"), ({"bytes": SMALL.getvalue()}, "pictures of several sizes")],
    ids=["none", "small"],
)
def test_pictures_without_statistics_are_refused_with_the_tables_name(
    tmp_path: Path, value: Any, what: str
) -> None:
    camera = f"{shapes.CAMERA}top"
    folder = tmp_path / "former"
    features = shapes.so101("top", dtype="image")
    shapes.write(folder, features, version="v2.1", statistics=False)
    changed_table(camera, value, throughout=value is None)(folder)
    with pytest.raises(DataError, match=rf"{folder}: {TABLE} has {what} in '{camera}'; "):
        convert(folder, tmp_path / "new")


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        *({"episode_index": value} for value in NO_NUMBERS),
        *({"stats": value} for value in (*NO_NUMBERS, 3)),
        *({"stats": dict.fromkeys(NUMERIC, value)} for value in (*NO_NUMBERS, {"mean": [0]})),
        *(
            {"stats": dict.fromkeys(NUMERIC, dict.fromkeys(SAID, value))}
            for value in (*NO_NUMBERS, [0])
        ),
        {"stats": {name: {key: [1] for key in (*SAID, "q01")} for name in NUMERIC}},
    ],
    ids=str,
)
def test_damaged_statistics_are_computed_again(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = tmp_path / "former"
    features = {shapes.ACTION: shapes.numbers(6), shapes.STATE: shapes.numbers(6)}
    shapes.write(folder, features, version="v2.1")
    convert(folder, tmp_path / "whole")
    changed_line("episodes_stats.jsonl", **values)(folder)
    convert(folder, tmp_path / "new")
    before, after = (
        json.loads((tmp_path / name / "meta/stats.json").read_text()) for name in ("whole", "new")
    )
    assert after.keys() == before.keys()
    for name, stats in before.items():
        for key in ("min", "max", "mean", "count"):
            assert np.allclose(after[name][key], stats[key], rtol=1e-4, atol=1e-6), (name, key)


def long_lists(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("action")
    values = table.column("action").cast(pa.large_list(pa.float32()))
    return table.set_column(place, "action", values)


def without_numbers(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in shapes.BOOKKEEPING if name != "timestamp"])


@pytest.mark.parametrize("statistics", [True, False], ids=["own", "computed"])
@pytest.mark.parametrize("change", [long_lists, without_numbers])
def test_tables_may_have_long_lists_and_a_matrix_and_no_numbers(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], statistics: bool
) -> None:
    folder = tmp_path / "former"
    features = shapes.so101("top", dtype="image")
    features["matrix"] = {"dtype": "float32", "shape": [4, 4], "names": None}
    shapes.write(folder, features, version="v2.1", statistics=statistics)
    actions = []
    for path in sorted(folder.rglob("*.parquet")):
        table = pq.read_table(path)
        actions += table.column("action").to_pylist()
        pq.write_table(change(table), path)
    convert(folder, tmp_path / "new")
    assert open_recordings(f"local:{tmp_path / 'new'}").columns["action"].tolist() == actions


def test_partial_leaves_out_an_episode_whose_pictures_lay_in_its_table(tmp_path: Path) -> None:
    folder = tmp_path / "former"
    shapes.write(folder, shapes.so101("top", dtype="image"), version="v2.1")
    (folder / TABLE).unlink()
    with pytest.raises(DataError, match=rf"{TABLE} is missing.*--partial"):
        convert(folder, tmp_path / "new")
    convert(folder, tmp_path / "new", partial=True)
    copy = open_recordings(f"local:{tmp_path / 'new'}")
    key = copy.layout.cameras[0]
    kept = [former for former in range(len(shapes.LENGTHS)) if former != 1]
    assert copy.episodes == [*range(len(kept))]
    for number, former in enumerate(kept):
        shown = decode_episode(copy, key, number).pixels.permute(0, 2, 3, 1).numpy()
        size = (shapes.LENGTHS[former], shapes.HEIGHT, shapes.WIDTH)
        assert np.array_equal(shown, [*shapes.pictures(*size, seed=former)])


def test_the_written_copy_is_verified(former: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zk0d.learning.convert._check_pictures", lambda former: None)
    video = former / "videos/chunk-000/observation.images.top/episode_000000.mp4"
    damage.without_pictures(video, range(26, 29))
    with pytest.raises(DataError, match=rf"{former}: episode 0 has 29 rows and 26.0 frames of"):
        convert(former, former.with_name("new"))
    assert [path.name for path in former.parent.iterdir()] == ["former"]


def test_a_dataset_that_cannot_be_converted_is_refused(
    recordings_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"format v3\.\d; only v2\.0 and v2\.1 can be"):
        convert(recordings_folder, tmp_path / "new")
    with pytest.raises(DataError, match="is not a LeRobot dataset"):
        convert(tmp_path, tmp_path / "new")
    broken = tmp_path / "broken"
    (broken / "meta").mkdir(parents=True)
    (broken / "meta/info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(UsageError, match="is there already"):
        convert(broken, tmp_path)
    with pytest.raises(DataError, match=rf"{broken}: .*meta/info\.json cannot be read"):
        convert(broken, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


@pytest.mark.slow
def test_nothing_is_written_into_recordings(
    former: Path, recordings_folder: Path, copied_recordings: Path, tmp_path: Path
) -> None:
    inside = copied_recordings / "a" / "b"
    link = tmp_path / "link"
    link.symlink_to(copied_recordings)
    uri = f"local:{recordings_folder}"
    kept = copied_recordings, former

    def content() -> list[object]:
        return [(fingerprint(folder), sorted(folder.rglob("*"))) for folder in kept]

    def command(*words: str | Path) -> None:
        CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)

    (tmp_path / "ca.crt").touch()
    coordinator = "--coordinator", "hub:9443", "--ca", tmp_path / "ca.crt"
    invite = Invite("hub:9443", "").to_line()
    before = content()
    for write in (
        lambda: convert(former, former / "new"),
        lambda: convert(former, inside),
        lambda: split_dataset(uri, inside, "iid", 2),
        lambda: split_dataset(uri, link / "parts", "iid", 2),
        lambda: merge_datasets([recordings_folder], inside),
        lambda: make_recordings(inside, Sector(), 1, first_seed=0),
        lambda: command("demo", "--folder", inside),
        lambda: command("demo", "--folder", tmp_path / "demo", "--svg", former / "demo.svg"),
        lambda: command("server", "init", "--host", "hub", "--folder", inside),
        lambda: command("client", "init", *coordinator, "--folder", link / "settings"),
        lambda: command("client", "join", invite, "--folder", former),
        lambda: command("report", "--html", inside, tmp_path),
        lambda: command("dashboards", "export", inside),
        lambda: command("node", "keygen", "--key", inside),
        lambda: command("node", "switch", "--key", former / "node.key"),
        lambda: command("node", "seal", "--key", former / "node.key"),
        lambda: FrameBudget(1, inside, 1).files().room(),
    ):
        with pytest.raises(UsageError, match="lies in the recordings at"):
            write()
    for folder in kept:
        with pytest.raises(UsageError, match=r"OUTPUT: .* is not empty"):
            command("data", "split", folder, folder.parent)
    assert content() == before
    assert not (tmp_path / "demo").exists()


def test_a_full_and_a_forbidden_disk_are_named(
    former: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a full disk: LeRobot's script raises what pyarrow and shutil raise there."""
    full = r"\(No space left on device\); free space there or name another folder\."
    for error, reason, says in (
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", full),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device")]), "disk_full", full),
        (OSError(errno.EPERM, "x", "/d/new"), "forbidden", r"\(.* not permitted: /d/new\); give"),
    ):

        def fail(*args: object, error: Exception = error, **how: object) -> None:
            try:
                raise error
            except OSError as cause:
                raise RuntimeError("could not write") from cause

        monkeypatch.setattr("zk0d.learning.convert._run_lerobots", fail)
        with pytest.raises(TryAgainError, match=f"new: cannot be written {says}") as said:
            convert(former, former.with_name("new"))
        assert said.value.reason == reason


@pytest.mark.slow
@pytest.mark.parametrize("pictures", ["video", "image"])
def test_short_episodes_are_split_and_merged_again(tmp_path: Path, pictures: str) -> None:
    damage.make_dataset(tmp_path / "whole", [6, 1, 7, 2], pictures)
    made = split_dataset(f"local:{tmp_path}/whole", tmp_path / "parts", "iid", 2)
    assert sum(len(open_recordings(f"local:{folder}")) for folder, _ in made) == 16
    merge_datasets([folder for folder, _ in made], tmp_path / "again")
    assert open_recordings(f"local:{tmp_path}/again").summary.episodes == 4
