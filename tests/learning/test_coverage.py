"""What recordings cover, and where an owner should record more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.recordings.shapes import write
from zk0d.cli.main import app
from zk0d.errors import DataError, UsageError, Zk0dError
from zk0d.learning.coverage import Coverage, draw, gaps
from zk0d.learning.recordings import open_recordings


def covered(uri: str, begins: list[float], ends: list[float] | None = None) -> Coverage:
    """Two joints: ``pan``, which is where it is told to be, and ``grip``, which never moves."""

    def poses(pan: list[float]) -> np.ndarray:
        return np.array([[value, 1.0] for value in pan])

    return Coverage(
        uri=uri,
        joints=("pan", "grip"),
        begins=poses(begins),
        ends=poses(ends or [0.0] * len(begins)),
        seconds=np.array([1.0] * len(begins)),
        cameras=("top",),
        spans=np.array([100.0, 0.0]),
    )


def test_a_gap_is_where_others_begin_and_this_one_does_not() -> None:
    left = covered("left", [-50.0, -45.0, -40.0, -30.0, -20.0, 0.0])
    right = covered("right", [20.0, 25.0, 30.0, 45.0, 46.0, 50.0])
    of_left = gaps(left, [left, right])
    assert {(gap.joint, gap.what) for gap in of_left} == {("pan", "begin")}
    assert [(gap.low, gap.high, gap.episodes, gap.others) for gap in of_left] == [
        (10.0, 30.0, 0, 2),
        (30.0, 50.0, 0, 4),
    ][::-1]
    assert of_left[0].sentence() == "no episode begins with pan from 30 to 50; 4 of the others do"
    assert [gap.high for gap in gaps(right, [left, right])] == [-30.0, -10.0, 10.0]


def test_a_dataset_alone_has_gaps_within_its_own_range() -> None:
    begins = [0.0, 1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 30.0, 61.0, 62.0, 99.0, 100.0]
    alone = covered("alone", begins)
    (gap,) = gaps(alone, [alone])
    assert (gap.low, gap.high, gap.episodes) == (40.0, 60.0, 0)


def test_poses_that_all_lie_together_say_nothing() -> None:
    alone = covered("alone", [1.0, 1.5, 9.0])
    assert gaps(alone, [alone]) == [], "the arm moves by 100, and always begins at the same place"


def test_coverage_is_read_from_recordings(tmp_path: Path) -> None:
    write(tmp_path / "arm", lengths=(8, 11))
    recordings = open_recordings(f"local:{tmp_path / 'arm'}")
    found = Coverage.of(recordings)
    state = recordings.columns["observation.state"].double().numpy()
    assert np.array_equal(found.begins, state[[0, 8]])
    assert np.array_equal(found.ends, state[[7, 18]])
    assert found.seconds.tolist() == pytest.approx([8 / 30, 11 / 30])
    assert found.joints[0].startswith("shoulder_pan")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"chart{suffix}"
    draw([covered("left", [-5.0, 0.0]), covered("right", [4.0, 5.0])], path)
    head = path.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in path.read_bytes()
    assert head


def test_a_picture_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Zk0dError, match=r"nowhere/c\.png: the picture cannot be written"):
        draw([covered("left", [-5.0, 0.0])], tmp_path / "nowhere" / "c.png")


def test_the_command_shows_a_nodes_own_datasets(tmp_path: Path) -> None:
    for name in ("cube", "cup"):
        write(tmp_path / name, lengths=(8, 8, 9))
    tables = "".join(f'[[dataset]]\nuri = "{tmp_path / name}"\n' for name in ("cube", "cup"))
    (tmp_path / "client.toml").write_text(f'name = "left"\n{tables}')
    show = ["data", "coverage", "--folder", str(tmp_path)]
    done = CliRunner().invoke(app, [*show, "--chart", str(tmp_path / "c.svg")])
    assert done.exit_code == 0, done.output
    assert "cube: 3 episodes of 0.3 to 0.3 s" in done.output
    assert (tmp_path / "c.svg").exists()
    told = json.loads(CliRunner().invoke(app, [*show, "--json"]).output)
    assert [len(each["begins"]) for each in told] == [3, 3]
    with pytest.raises(UsageError, match=r"--chart: c\.gif is not a \.png or \.svg"):
        CliRunner().invoke(app, [*show, "--chart", "c.gif"], catch_exceptions=False)


def test_datasets_of_other_arms_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "one", lengths=(8, 8))
    write(tmp_path / "two", lengths=(8, 8), fps=10)
    asked = ["data", "coverage", str(tmp_path / "one"), str(tmp_path / "two")]
    with pytest.raises(DataError, match="two: recorded at 10 frames per second"):
        CliRunner().invoke(app, asked, catch_exceptions=False)
