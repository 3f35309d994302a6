from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zk0d.learning.inspection import Inspection, inspect, inspect_together
from zk0d.learning.recordings import ACTION, STATE, Recordings, open_recordings


@pytest.fixture
def own(recordings_folder: Path) -> Recordings:
    """Recordings whose numbers a test may change."""
    return open_recordings(f"local:{recordings_folder}")


def texts(inspection: Inspection, check: str) -> list[str]:
    return [remark.text for remark in inspection.remarks if remark.check == check]


def test_good_recordings(own: Recordings) -> None:
    found = inspect(own)
    assert not found.wrong
    assert len(found.episodes) == 6
    assert sum(each.frames for each in found.episodes) == len(own)
    assert not any(each.wild or each.not_finite or each.same_as for each in found.episodes)
    assert {remark.check for remark in found.remarks} == {"episodes", "still", "widths", "license"}
    assert "goal.z" in texts(found, "still")[0]


def test_nan_is_wrong(own: Recordings) -> None:
    own.columns[ACTION][own.rows(2).start + 3, 1] = float("nan")
    found = inspect(own)
    assert found.wrong
    assert "1 of" in texts(found, "not-finite")[0]
    assert "episode 2, frame 3" in texts(found, "not-finite")[0]
    assert [each.not_finite for each in found.episodes] == [0, 0, 1, 0, 0, 0]


def test_a_spike_is_wild(own: Recordings) -> None:
    own.columns[STATE][own.rows(1).start + 5, 0] = 5000.0
    found = inspect(own)
    assert found.episodes[1].wild >= 1
    assert sum(each.wild for each in found.episodes) == found.episodes[1].wild
    assert "episodes 1 hold" in texts(found, "outliers")[0]


def test_a_copied_episode(own: Recordings) -> None:
    a, b = own.rows(0), own.rows(3)
    size = min(a.stop - a.start, b.stop - b.start)
    keep = torch.cat([torch.arange(0, a.start + size), torch.arange(a.stop, b.start + size)])
    keep = torch.cat([keep, torch.arange(b.stop, len(own))])
    columns = {name: column.clone() for name, column in own.columns.items()}
    for name in (STATE, ACTION):
        columns[name][b.start : b.start + size] = columns[name][a.start : a.start + size]
    columns = {name: column[keep] for name, column in columns.items()}
    found = inspect(replace_columns(own, columns, keep))
    assert found.episodes[3].same_as == 0
    assert "episode 3 is the same as episode 0" in texts(found, "duplicates")[0]


def replace_columns(
    own: Recordings, columns: dict[str, torch.Tensor], keep: torch.Tensor
) -> Recordings:
    tasks = [own.tasks[int(row)] for row in keep]
    return replace(own, columns=columns, tasks=tasks)


def test_a_wrong_clock(own: Recordings) -> None:
    own.columns["timestamp"] = own.columns["timestamp"] * 2
    found = inspect(own)
    assert found.wrong
    assert "do not fit 30 frames per second" in texts(found, "timestamps")[0]


def test_a_still_motor(own: Recordings) -> None:
    own.columns[STATE][:, 4] = 1.0
    assert "wrist_roll.pos" in texts(inspect(own), "still")[0]


def test_two_that_do_not_fit(own: Recordings, recordings_folder: Path) -> None:
    other = open_recordings(f"local:{recordings_folder}", cameras={"top": "wrist"})
    found = inspect_together([(own, inspect(own)), (other, inspect(other))])
    assert [remark.severity for remark in found] == ["wrong", "notice"]
    assert "does not know camera 'wrist'" in found[0].text
    assert "6 episodes are also in" in found[1].text
