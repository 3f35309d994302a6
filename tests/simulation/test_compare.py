from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from zk0d.simulation.arms import difference, merged_statistics
from zk0d.simulation.compare import FEDERATED, compare, in_one_place, spread
from zk0d.simulation.main import Options
from zk0d.simulation.plan import VirtualNode


def test_a_difference_beyond_the_spread_is_not_noise() -> None:
    found = difference([1.0, 1.1, 1.2], [2.0, 2.1, 2.2])
    assert found.mean == pytest.approx(-1.0)
    assert not found.is_noise
    # By hand: differences 0, 1, 2; deviation 1; t(2) = 4.303; 4.303 / sqrt(3).
    noise = difference([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert noise.half_width == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert noise.is_noise
    assert noise.sentence().endswith("noise")


def test_seeds_that_agree_are_not_certain() -> None:
    """Three times 0.97 against three times 1.00, of 20 episodes: t alone would be certain."""
    assert difference([0.97] * 3, [1.0] * 3, rollouts=20).is_noise
    assert not difference([0.5] * 3, [1.0] * 3, rollouts=100).is_noise


def test_one_seed_says_nothing_of_a_loss() -> None:
    assert difference([1.0], [9.0]).is_noise
    assert not difference([0.1], [0.9], rollouts=100).is_noise


def test_spread() -> None:
    assert spread([0.5]) == "0.500"
    assert spread([0.0, 1.0], 2) == "0.50 ± 0.71"


def test_one_place_has_everything(recordings_folder: Path, tmp_path: Path) -> None:
    uri = f"local:{recordings_folder}"
    nodes = [
        VirtualNode(name="a", dataset_uri=uri, episodes=[0, 3]),
        VirtualNode(name="b", dataset_uri=uri, episodes=[1]),
    ]
    assert in_one_place(nodes, tmp_path).episodes == [0, 1, 3]
    together = merged_statistics(nodes).features["action"]
    whole = merged_statistics([nodes[0].model_copy(update={"episodes": [0, 1, 3]})])
    assert together.count == whole.features["action"].count
    assert together.mean == pytest.approx(whole.features["action"].mean)


@pytest.mark.slow
def test_several_datasets_are_put_in_one_place(
    recordings_folder: Path, copied_recordings: Path, tmp_path: Path
) -> None:
    from zk0d.learning.recordings import open_recordings

    nodes = [
        VirtualNode(name="a", dataset_uri=f"local:{recordings_folder}", episodes=[0, 1]),
        VirtualNode(name="b", dataset_uri=f"local:{copied_recordings}", episodes=[5]),
    ]
    made = in_one_place(nodes, tmp_path)
    assert made.episodes == [0, 1, 11]
    assert len(open_recordings(made.dataset_uri).episodes) == 12


@pytest.mark.slow
@pytest.mark.long
def test_compare(tmp_path: Path, recordings_folder: Path) -> None:
    options = Options(
        datasets=(str(recordings_folder),),
        contributors=2,
        hold_out=0.2,
        tiny=True,
        overrides=(
            ("num-server-rounds", 1),
            ("local-steps", 3),
        ),
        device="cpu",
        folder=tmp_path / "c",
    )
    folder = compare(options, [0, 1], 2, Console(quiet=True))
    found = json.loads((folder / "compare.json").read_text())
    assert "Student's t" in found["test"]
    outcomes = found["outcomes"]
    assert [o["title"] for o in outcomes[:4]] == [
        FEDERATED,
        "in one place",
        "contributor-0 alone",
        "contributor-1 alone",
    ]
    assert {o["steps"] for o in outcomes} == {3}
    assert {o["rollouts"] for o in outcomes} == {2}
    # The same first weights, evaluated alike: round 0 is the same for all of a seed.
    for seed in (0, 1):
        first = {o["losses"][0][1] for o in outcomes if o["seed"] == seed}
        assert len(first) == 1
    assert len({o["loss"] for o in outcomes}) == 8
    assert (folder / "compare.png").stat().st_size > 5000
    assert "federated − this" in (folder / "compare.md").read_text()
