"""Each shape is read, converted or refused in one sentence; nobody's files change."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lerobot.datasets import LeRobotDataset

from tests.learning.damage import fingerprint
from tests.recordings import page
from tests.recordings.page import PAGE, published, with_tables
from tests.recordings.shapes import CAMERA, ENCODERS, SHAPES, Shape
from tests.recordings.trial import said_of
from zk0d.errors import DataError
from zk0d.learning.convert import convert
from zk0d.learning.frames import decode_episode
from zk0d.learning.merge import merge_datasets
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.split import split_dataset

pytestmark = pytest.mark.slow


def test_the_page_has_each_shape_and_each_published_dataset_and_no_more() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_tables(text), "run: python -m tests.recordings.page"
    for name in (*(shape.about for shape in SHAPES.values()), *map("`{}`".format, published())):
        assert f"\n| {name} |" in text


def test_what_became_of_a_published_dataset_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Path(shutil.copy(page.KEPT, tmp_path))
    monkeypatch.setattr(page, "KEPT", kept)
    page.keep("g1", page.Outcome("refused", {}, "is torn"))
    assert page.published()["g1"].outcome == page.Outcome("refused", {}, "is torn")
    text = PAGE.read_text(encoding="utf-8")
    assert "\n| `g1` | refused |  |  | `is torn` |\n" in with_tables(text)
    assert with_tables(with_tables(text)) == with_tables(text) != text


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
def test_a_shape_is_read_converted_or_refused(shape: Shape, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    shape.make(folder)
    before = fingerprint(folder)
    good, said = said_of(folder)
    assert shape.says in said
    assert "\n" not in said or shape.verdict == "read"
    assert good == (shape.verdict == "read")
    assert ("pictures:" in said) == ("throughout" in shape.says or "same picture" in shape.says)
    if shape.verdict.startswith("convert"):
        partial = shape.verdict.endswith("--partial")
        if partial:
            with pytest.raises(DataError, match=r"(is missing|has no frames).*--partial\.$"):
                convert(folder, tmp_path / "new")
        convert(folder, tmp_path / "new", partial=partial)
        good, said = said_of(tmp_path / "new")
        assert good, said
        assert (tmp_path / "new/README.md").read_bytes() == (folder / "README.md").read_bytes()
        assert_lerobot_reads_the_same(open_recordings(f"local:{tmp_path / 'new'}"))
    assert fingerprint(folder) == before


@pytest.mark.parametrize("codec", ENCODERS)
def test_frames_are_lerobots_own(codec: str, tmp_path: Path) -> None:
    SHAPES[f"codec-{codec}"].make(tmp_path / "dataset")
    assert_lerobot_reads_the_same(open_recordings(f"local:{tmp_path / 'dataset'}"))


@pytest.mark.parametrize("name", ["pictures-in-tables", "rate-29-97", "channels-first", "integers"])
def test_a_shape_gives_what_lerobot_reads(name: str, tmp_path: Path) -> None:
    SHAPES[name].make(tmp_path / "dataset")
    assert_lerobot_reads_the_same(open_recordings(f"local:{tmp_path / 'dataset'}"))


@pytest.mark.parametrize(
    "name",
    [
        "joints-apart",
        "paths-of-v2",
        "tables-without-index",
        "task-as-column",
        "macos-files",
        "pictures-in-tables",
    ],
)
def test_parts_that_are_merged_again_are_the_same_recordings(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    SHAPES[name].make(folder)
    (folder / "LICENSE").write_text("any use")
    before = fingerprint(folder)
    made = [part for part, _ in split_dataset(f"local:{folder}", tmp_path / "parts", "iid", 2)]
    for part in made:
        for paper in ("README.md", "LICENSE"):
            assert (part / paper).read_bytes() == (folder / paper).read_bytes()
    merge_datasets(made, tmp_path / "again")
    whole, again = (open_recordings(f"local:{path}") for path in (folder, tmp_path / "again"))
    assert again.summary == whole.summary
    assert sorted(map(str, numbers_of(again))) == sorted(map(str, numbers_of(whole)))
    assert fingerprint(folder) == before


def test_videos_of_a_rate_that_is_not_whole_are_not_split(tmp_path: Path) -> None:
    """LeRobot's tool would give their pictures the times of 29 frames per second."""
    SHAPES["rate-29-97"].make(tmp_path / "dataset")
    with pytest.raises(DataError, match=r"has 29\.97 frames per second; .* zk0bot simulate"):
        split_dataset(f"local:{tmp_path}/dataset", tmp_path / "parts", "iid", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def numbers_of(recordings: Recordings) -> Iterator[tuple[str, list[float], list[float]]]:
    """Each episode's instruction, states and actions."""
    for number in recordings.episodes:
        rows = recordings.rows(number)
        columns = (
            recordings.columns[name][rows].tolist() for name in ("observation.state", "action")
        )
        yield recordings.tasks[rows.start], *columns


def assert_lerobot_reads_the_same(recordings: Recordings) -> None:
    """Some frames of each episode: numbers, instruction and every picture."""
    theirs = LeRobotDataset(
        "local/dataset", root=recordings.layout.root, video_backend="pyav", return_uint8=True
    )
    assert theirs.meta.fps == recordings.summary.fps
    for number in recordings.episodes:
        rows = recordings.rows(number)
        shown = {key: decode_episode(recordings, key, number) for key in recordings.cameras}
        for row in (rows.start, (rows.start + rows.stop) // 2, rows.stop - 1):
            item = theirs[row]
            assert item["task"] == recordings.tasks[row]
            for name in ("observation.state", "action"):
                assert torch.equal(item[name].float(), recordings.columns[name][row])
            for key, frames in shown.items():
                picture = item[key]
                if picture.dtype != torch.uint8:
                    picture = (picture * 255).round().to(torch.uint8)
                assert not frames.missing.any()
                assert torch.equal(picture, frames.pixels[row - rows.start]), (number, row, key)


def test_joints_apart_are_joined_in_the_order_of_the_actions(tmp_path: Path) -> None:
    SHAPES["joints-apart"].make(tmp_path / "dataset")
    recordings = open_recordings(f"local:{tmp_path / 'dataset'}")
    features = recordings.layout.info.features
    assert features["action"].names == features["observation.state"].names
    assert features["action"].names[0] == "left_shoulder_pan.pos"
    assert recordings.summary.state_width == recordings.summary.action_width == 12
    for name in ("action", "observation"):
        joined = recordings.columns["action" if name == "action" else "observation.state"]
        alone = recordings.columns[f"{name}.right_gripper.pos"]
        assert torch.equal(joined[:, 11], alone[:, 0])


def test_names_are_read_from_lists_and_dicts(tmp_path: Path) -> None:
    for shape, state, action in (
        ("names-in-dicts", "gripper.pos", "gripper"),
        ("humanoid", "motor_43", "motor_43"),
    ):
        SHAPES[shape].make(tmp_path / shape)
        features = open_recordings(f"local:{tmp_path / shape}").layout.info.features
        assert features["observation.state"].names[-1] == state
        assert features["action"].names[-1] == action


def test_only_another_rate_than_the_usual_is_noticed(tmp_path: Path) -> None:
    for shape, noticed in (("rate-29-97", False), ("joints-apart", True)):
        SHAPES[shape].make(tmp_path / shape)
        assert ("fps:" in said_of(tmp_path / shape)[1]) == noticed


def test_instructions_are_those_of_the_tasks(tmp_path: Path) -> None:
    for name in ("task-as-column", "tables-without-index", "paths-of-v2"):
        SHAPES[name].make(tmp_path / name)
        recordings = open_recordings(f"local:{tmp_path / name}")
        tasks = [recordings.tasks[recordings.rows(n).start] for n in recordings.episodes]
        assert tasks == ["pick up the cube", "open the drawer"] * 2


def test_a_converted_copy_keeps_rate_and_license(tmp_path: Path) -> None:
    SHAPES["v21-without-statistics"].make(tmp_path / "former")
    (tmp_path / "former/LICENSE").write_text("do what you like")
    info = tmp_path / "former/meta/info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"license": "mit"}))
    (tmp_path / "former/._LICENSE").write_bytes(os.urandom(9))
    convert(tmp_path / "former", tmp_path / "new")
    facts = json.loads((tmp_path / "new/meta/info.json").read_text())
    assert (facts["fps"], facts["license"]) == (29.97, "mit")
    assert (tmp_path / "new/LICENSE").read_text() == "do what you like"
    assert not (tmp_path / "new/._LICENSE").exists()
    stats = json.loads((tmp_path / "new/meta/stats.json").read_text())
    shown = stats[CAMERA + "front"]
    assert 0 < shown["mean"][0][0][0] < shown["max"][0][0][0] <= 1
