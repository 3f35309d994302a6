"""Which checkpoint is a run's best and the latest release, and what ``start-from`` finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.release.test_gate import summary
from zk0d.errors import ConfigError
from zk0d.release.checkpoint import METRICS, Releases, accept, name_of
from zk0d.release.gate import Verdict, judge


class Shelf:
    """The folder of releases, and runs whose checkpoints come to it as an evaluator writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.releases = Releases(folder)

    def put(self, run: str, *losses: float) -> Verdict:
        """A checkpoint of the last of these rounds."""
        told = summary(*losses, run=run, spread=0.02)
        verdict = judge(told, self.releases.rival(run))
        made = self.releases.checkpoint(run, told.round)
        made.mkdir(parents=True, exist_ok=True)
        gate = {"passed": verdict.passed, "reasons": verdict.reasons}
        content = {"gate": gate, "summary": told.model_dump(mode="json")}
        (made / METRICS).write_text(json.dumps(content))
        (made / "model.safetensors").touch()
        (made / "README.md").touch()
        self.releases.settle(made, verdict)
        return verdict

    def named(self, start_from: str) -> str:
        folder = self.releases.find(start_from)
        return name_of(folder) if folder else ""


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_rounds_of_one_run_do_not_fail_against_each_other(shelf: Shelf) -> None:
    """The last round is written first, and the better one lies within the spread of it."""
    assert shelf.put("7", 1.5, 1.0, 1.005).passed
    assert shelf.named("latest") == "7/2"
    assert shelf.put("7", 1.5, 1.0).passed
    assert shelf.named("latest") == shelf.named("7") == "7/1"
    assert shelf.put("7", 1.5, 1.0, 1.005, 1.2).passed, "it beats the baseline"
    assert shelf.named("latest") == shelf.named("7") == "7/1", "and is not the run's best"


def test_every_candidate_of_a_run_must_beat_the_release_before_the_run(shelf: Shelf) -> None:
    assert shelf.put("6", 1.5, 1.0).passed
    assert shelf.put("7", 1.5, 0.9).passed
    said = shelf.put("7", 1.5, 0.9, 0.99)
    assert not said.passed
    assert "beats the last release (run 6, round 1) by less" in " ".join(said.reasons)
    assert shelf.put("8", 1.5, 0.7).passed
    said = shelf.put("7", 1.5, 0.9, 0.99, 0.8)
    assert "the last release (run 8, round 1)" in " ".join(said.reasons)
    assert not said.passed, "a resumed run meets what came meanwhile"


def test_any_checkpoint_that_passed_can_be_started_from(shelf: Shelf) -> None:
    assert shelf.named("latest-or-base") == "", "the base model"
    shelf.put("7", 1.5, 1.0)
    shelf.put("7", 1.5, 1.0, 1.1)
    shelf.put("7", 1.5, 1.0, 1.1, 1.6)
    for name in ("7", "7/1", "latest", "latest-or-base"):
        assert shelf.named(name) == "7/1"
    assert shelf.named("7/2") == "7/2"
    for name in ("7/3", "7/4", "7/x", "8", "8/1"):
        with pytest.raises(ConfigError, match=f"there is no release '{name}'"):
            shelf.named(name)
    accept(shelf.releases.checkpoint("7", 3), "because", shelf.releases)
    assert shelf.named("7/3") == shelf.named("latest") == "7/3"


def test_what_a_later_run_must_beat_is_not_deleted(shelf: Shelf) -> None:
    shelf.put("6", 1.5, 1.0)
    shelf.put("7", 1.5, 0.8)
    for round_ in range(2, 5):
        shelf.put("6", 1.5, *[1.0] * round_)
    shelf.releases.prune("6", keep=1)
    kept = sorted(path.name for path in (shelf.folder / "6").glob("checkpoint_round_*"))
    assert kept == ["checkpoint_round_1", "checkpoint_round_4"]
