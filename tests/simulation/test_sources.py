from __future__ import annotations

from pathlib import Path

import pytest

from zk0d.errors import ConfigError, DataError, UsageError
from zk0d.simulation.plan import Contributors
from zk0d.simulation.sources import Source, nodes_of, of_episodes, of_nodes


def check_nobody_trains_on_what_is_held_out(source: Source, episodes: int) -> None:
    trained = [(node.dataset_uri, e) for node in source.nodes for e in node.episodes]
    held = [(each.dataset_uri, e) for each in source.evaluation for e in each.episodes]
    assert held
    assert not set(trained) & set(held)
    assert len(set(trained) | set(held)) == len(trained) + len({*held}) == episodes


def test_one_dataset_is_split(recordings_folder: Path) -> None:
    source = of_episodes(f"local:{recordings_folder}", 2, "iid", 0.2)
    check_nobody_trains_on_what_is_held_out(source, 6)
    assert [node.name for node in source.nodes] == ["contributor-0", "contributor-1"]
    assert source.evaluation[0].simulator == "soreach"


def test_a_contributor_for_each_dataset(recordings_folder: Path, copied_recordings: Path) -> None:
    uris = [f"local:{recordings_folder}", f"local:{copied_recordings}"]
    source = of_nodes(nodes_of(uris), 0.2)
    check_nobody_trains_on_what_is_held_out(source, 12)
    assert [node.name for node in source.nodes] == ["recordings", "dataset"]
    assert [each.name for each in source.evaluation] == ["recordings", "dataset"]


def test_two_datasets_of_one_name(recordings_folder: Path) -> None:
    source = of_nodes(nodes_of([f"local:{recordings_folder}"] * 2), 0.2)
    assert [node.name for node in source.nodes] == ["recordings", "recordings-x2"]


def test_a_file_names_contributors(recordings_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "contributors.toml"
    path.write_text(
        f'[[contributor]]\nname = "ann"\ndataset-uri = "local:{recordings_folder}"\n'
        "episodes = [0, 1, 2]\n"
        f'[[contributor]]\nname = "bob"\ndataset-uri = "local:{recordings_folder}"\n'
        "episodes = [3, 4, 5]\n"
    )
    source = of_nodes(Contributors.load(path).contributor, 0.3)
    check_nobody_trains_on_what_is_held_out(source, 6)
    path.write_text('[[contributor]]\nname = "ann"\ndataset = "x"\n')
    with pytest.raises(ConfigError, match="dataset"):
        of_nodes(Contributors.load(path).contributor, 0.3)


def test_the_example_names_zk0s_twelve() -> None:
    path = Path(__file__).parents[2] / "docs" / "examples" / "zk0-contributors.toml"
    contributors = Contributors.load(path).contributor
    assert len({node.dataset_uri for node in contributors}) == 12


def test_too_little_to_hold_out(recordings_folder: Path) -> None:
    uri = f"local:{recordings_folder}"
    with pytest.raises(UsageError, match="--hold-out"):
        of_episodes(uri, 2, "iid", 1.0)
    with pytest.raises(DataError, match="too few"):
        of_episodes(uri, 2, "iid", 0.99)
