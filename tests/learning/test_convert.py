"""Recordings of LeRobot's former format."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest

from zk0d.errors import DataError, UsageError
from zk0d.learning.convert import convert
from zk0d.learning.recordings import Recordings, open_recordings

BIN = Path(sys.executable).parent


def write_v21(recordings: Recordings, folder: Path) -> None:
    """The same recordings as LeRobot 2.1 laid them out: a file for each episode."""
    meta = folder / "meta"
    meta.mkdir(parents=True)
    source = recordings.metadata.root
    info = json.loads((source / "meta/info.json").read_text())
    files = sorted((source / "data").rglob("*.parquet"))
    table = pd.concat(pd.read_parquet(path) for path in files)
    table = table[table["episode_index"].isin(recordings.episodes)]
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
        for key in recordings.metadata.camera_keys:
            frames = [recordings.dataset[int(i)][key].numpy() for i in rows["index"]]
            write_video(
                folder / f"videos/chunk-000/{key}/episode_{episode:06d}.mp4", frames, info["fps"]
            )
            pixels = np.stack(frames).astype(float).transpose(0, 2, 3, 1).reshape(-1, 3) / 255
            of_episode[key] = {
                name: np.reshape(value, (3, 1, 1)).tolist() if name != "count" else [len(frames)]
                for name, value in summary(pixels).items()
            }
        stats.append({"episode_index": episode, "stats": of_episode})
    names = recordings.metadata.tasks.index
    tasks = [{"task_index": index, "task": str(name)} for index, name in enumerate(names)]
    for name, content in (("episodes", lines), ("episodes_stats", stats), ("tasks", tasks)):
        text = "".join(json.dumps(line, default=int) + "\n" for line in content)
        (meta / f"{name}.jsonl").write_text(text)
    info.update(
        codebase_version="v2.1",
        total_chunks=1,
        total_episodes=len(lines),
        total_frames=len(table),
        total_videos=len(lines) * len(recordings.metadata.camera_keys),
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )
    (meta / "info.json").write_text(json.dumps(info))


def summary(values: np.ndarray) -> dict[str, list[float]]:
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
        stream = container.add_stream("libx264", rate=fps)
        _, stream.height, stream.width = frames[0].shape
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def former(recordings_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "former"
    write_v21(open_recordings(f"local:{recordings_folder}", max_episodes=2), folder)
    return folder


@pytest.mark.slow
def test_a_converted_copy_is_the_same_recordings(recordings_folder: Path, former: Path) -> None:
    with pytest.raises(DataError, match=rf"v2\.1, .*zk0bot data convert {former}"):
        open_recordings(f"local:{former}")
    said = subprocess.run(
        [str(BIN / "zk0bot"), "data", "convert", str(former)], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    copy = former.with_name("former-v3.0")
    assert said.stdout.strip() == str(copy)
    before = open_recordings(f"local:{recordings_folder}", max_episodes=2)
    after = open_recordings(f"local:{copy}")
    assert len(after.dataset) == len(before.dataset)
    for name in ("action", "observation.state"):
        assert np.allclose(after.columns[name], before.columns[name])
    assert after.tasks == before.tasks
    key = after.metadata.camera_keys[0]
    difference = after.dataset[3][key].float() - before.dataset[3][key].float()
    assert difference.abs().mean() < 12, "the same picture, encoded again"
    assert json.loads((former / "meta/info.json").read_text())["codebase_version"] == "v2.1"
    assert sorted(path.name for path in former.parent.iterdir()) == ["former", "former-v3.0"]


def test_what_cannot_be_converted(recordings_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"format v3\.\d; only v2\.1 can be converted"):
        convert(recordings_folder, tmp_path / "new")
    with pytest.raises(DataError, match="is no LeRobot dataset"):
        convert(tmp_path, tmp_path / "new")
    broken = tmp_path / "broken"
    (broken / "meta").mkdir(parents=True)
    (broken / "meta/info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(UsageError, match="is there already"):
        convert(broken, tmp_path)
    with pytest.raises(DataError, match="LeRobot cannot convert it"):
        convert(broken, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]
    shutil.rmtree(broken)
