from __future__ import annotations

from pathlib import Path

import pytest

from zk0d.config.families import FAMILIES
from zk0d.config.run import RunSettings
from zk0d.demo import recordings
from zk0d.demo.budget import picture_side, run_values
from zk0d.demo.layout import Layout
from zk0d.demo.main import DemoOptions, _make_recordings
from zk0d.demo.progress import Progress
from zk0d.learning.recordings import open_recordings


@pytest.mark.parametrize("policy", FAMILIES)
@pytest.mark.parametrize("task", ["soreach", "so101"])
def test_every_policys_budget_is_a_runs_settings(task: str, policy: str) -> None:
    settings = RunSettings.parse(run_values(task, policy), where="test")
    assert settings.policy == policy


def test_larger_pictures_take_a_smaller_rate_where_the_demos_teaches_nothing() -> None:
    side = picture_side("act")
    assert run_values("soreach", "act", side) == run_values("soreach", "act")
    larger = run_values("soreach", "act", side + 1)
    assert larger["initial-lr"] < run_values("soreach", "act")["initial-lr"]


@pytest.mark.slow
def test_the_demos_recordings_have_the_policys_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    options = DemoOptions(policy="act", demonstrations=1, held_out=1, contributors=1)
    layout = Layout.make(tmp_path / "demo", 1, "soreach")
    _make_recordings(options, layout, Progress(Console(quiet=True), "test", ["recordings"]), 1)
    (contributor,) = layout.contributors
    made = open_recordings(f"local:{layout.recordings(contributor)}")
    side = picture_side("act")
    assert side != recordings.make_recordings.__defaults__[0]  # type: ignore[index]
    assert {shape[-2:] for shape in made.summary.cameras.values()} == {(side, side)}
