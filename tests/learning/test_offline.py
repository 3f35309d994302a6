"""Opening recordings asks no network and writes nothing, however incomplete they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from lerobot.datasets import LeRobotDataset
from typer.testing import CliRunner

from tests.learning import damage
from tests.learning.damage import fingerprint
from tests.learning.test_convert import write_v21
from tests.services.fake_hub import FakeHub
from zk0d.cli.main import app
from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.doctor import recordings as doctor
from zk0d.doctor.finding import Host
from zk0d.errors import DataError, ExitCode, UnavailableError, Zk0dError
from zk0d.learner.contributor import Contributor
from zk0d.learner.evaluator import CoordinatorEvaluator
from zk0d.learning.convert import convert
from zk0d.learning.recordings import open_recordings

ZK0BOT = Path(sys.executable).parent / "zk0bot"


@pytest.fixture
def hub(
    recordings_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A hub that has a whole dataset of the name that LeRobot gives to a local folder."""
    with FakeHub() as made:
        made.repositories["datasets/local/dataset"] = recordings_folder
        made.tags["datasets/local/dataset"] = ["v3.0"]
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield made


def two_episodes_away(folder: Path) -> None:
    gone = (2, 3)
    for table in (damage.data_table(folder), damage.episodes_table(folder)):
        damage.change_rows(
            table, lambda rows: [row for row in rows if row["episode_index"] not in gone]
        )
    damage.change_info(folder, lambda info: info.update(total_episodes=4))


def no_metadata_of_episodes(folder: Path) -> None:
    shutil.rmtree(folder / "meta" / "episodes")


def no_rows(folder: Path) -> None:
    damage.change_rows(damage.data_table(folder), lambda rows: None or rows.clear())


def no_table(folder: Path) -> None:
    damage.data_table(folder).unlink()


def no_video(folder: Path) -> None:
    damage.first_video(folder).unlink()


def an_episode_of_no_length(folder: Path) -> None:
    damage.change_rows(
        damage.episodes_table(folder),
        lambda rows: rows[5].update(length=0, dataset_to_index=rows[5]["dataset_from_index"]),
    )
    damage.change_rows(
        damage.data_table(folder), lambda rows: [r for r in rows if r["episode_index"] != 5]
    )


def more_episodes_than_there_are(folder: Path) -> None:
    damage.change_info(folder, lambda info: info.update(total_episodes=7))


INCOMPLETE = [
    two_episodes_away,
    no_metadata_of_episodes,
    no_rows,
    no_table,
    no_video,
    an_episode_of_no_length,
    more_episodes_than_there_are,
]


@pytest.mark.parametrize("incomplete", INCOMPLETE)
def test_what_a_folder_lacks_is_not_fetched(
    hub: FakeHub, copied_recordings: Path, incomplete: Callable[[Path], Any]
) -> None:
    incomplete(copied_recordings)
    before = fingerprint(copied_recordings)
    with pytest.raises(DataError) as error:
        open_recordings(f"local:{copied_recordings}")
    assert error.value.exit_code == ExitCode(69)
    assert "\n" not in error.value.message
    assert not hub.asked
    assert fingerprint(copied_recordings) == before


def test_lerobot_would_ask_the_hub(hub: FakeHub, copied_recordings: Path) -> None:
    """The stand-in is one: LeRobot's own class asks it, and replaces the owner's files."""
    two_episodes_away(copied_recordings)
    before = fingerprint(copied_recordings)
    LeRobotDataset("local/dataset", root=copied_recordings)
    assert hub.asked
    assert fingerprint(copied_recordings) != before


@pytest.mark.parametrize(
    "words",
    [
        ["data", "check"],
        ["data", "check", "--videos"],
        ["data", "stats"],
        pytest.param(["data", "split"], marks=pytest.mark.slow),
        ["train"],
        ["simulate"],
        ["compare"],
    ],
    ids=" ".join,
)
def test_every_verb(
    hub: FakeHub, copied_recordings: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied_recordings.parent)
    two_episodes_away(copied_recordings)
    before = fingerprint(copied_recordings)
    more = ["parts"] if words[-1] == "split" else []
    said = CliRunner().invoke(app, [*words, "./dataset", *more])
    if words[:2] == ["data", "check"]:
        assert said.exit_code == ExitCode.UNAVAILABLE
        assert "has episode 4 where episode 2 must be" in said.stdout
    else:
        assert isinstance(said.exception, DataError), said.exception
        assert "has episode 4 where episode 2 must be" in said.exception.message
    assert not hub.asked
    assert fingerprint(copied_recordings) == before
    assert [path.name for path in copied_recordings.parent.iterdir()] == ["dataset"]


@pytest.mark.slow
def test_every_service(hub: FakeHub, copied_recordings: Path) -> None:
    two_episodes_away(copied_recordings)
    before = fingerprint(copied_recordings)
    uri = f"local:{copied_recordings}"
    node = ClientSettings.parse({"name": "a", "dataset-uri": uri}, where="here")
    server = ServerSettings.parse(
        {"evaluation": [{"name": "held-out", "dataset-uri": uri}]}, where="here"
    )
    for service in (Contributor(node), CoordinatorEvaluator(server)):
        with pytest.raises(DataError, match="has episode 4 where episode 2 must be"):
            service.open()
    found = doctor.dataset_values(Host(systemd=False), uri, {})
    assert found.ok is False
    assert "has episode 4 where episode 2 must be" in found.evidence
    assert not hub.asked
    assert fingerprint(copied_recordings) == before


def test_a_former_dataset_without_a_video_is_not_fetched(
    hub: FakeHub, recordings_folder: Path, tmp_path: Path
) -> None:
    former = tmp_path / "dataset"
    write_v21(open_recordings(f"local:{recordings_folder}"), former, episodes=2)
    damage.first_video(former).unlink()
    before = fingerprint(former)
    with pytest.raises(DataError, match=r"episode_000000\.mp4 is missing"):
        convert(former, tmp_path / "new")
    assert not hub.asked
    assert fingerprint(former) == before


def test_a_hubs_dataset_is_opened_where_lerobot_keeps_it(
    hub: FakeHub, recordings_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "lerobot"
    monkeypatch.setenv("HF_LEROBOT_HOME", str(home))
    with pytest.raises(UnavailableError, match="zk0bot data fetch ann/cubes gets it"):
        open_recordings("ann/cubes")
    snapshot = home / "hub/datasets--ann--cubes/snapshots" / ("c" * 40)
    shutil.copytree(recordings_folder, snapshot)
    tag = snapshot.parents[1] / "refs" / "v3.0"
    tag.parent.mkdir()
    tag.write_text("c" * 40)
    assert open_recordings("hf:ann/cubes").layout.root == snapshot
    shutil.copytree(recordings_folder, home / "ann/cubes")
    assert open_recordings("ann/cubes").layout.root == home / "ann/cubes"
    assert not hub.asked


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ["split", "HERE", "PARTS"],
        ["check", "HERE", "--videos"],
        ["stats", "HERE"],
    ],
    ids=lambda words: words[0],
)
def test_a_cache_that_cannot_be_written_does_not_matter(
    copied_recordings: Path, tmp_path: Path, words: list[str]
) -> None:
    """Nobody can make a folder in /proc, not even root: as on a full or read-only disk."""
    environment = {**os.environ, "HF_HOME": "/proc/none", "HF_DATASETS_CACHE": "/proc/none/tables"}
    parts = tmp_path / "parts"
    meant = {"HERE": str(copied_recordings), "PARTS": str(parts)}
    said = subprocess.run(
        [str(ZK0BOT), "data", *(meant.get(word, word) for word in words)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert said.returncode == 0, said.stderr
    if words[0] == "split":
        assert sorted(path.name for path in parts.iterdir()) == ["part-0", "part-1"]


@pytest.mark.slow
def test_a_mistyped_folder_is_not_a_name_of_the_hub(
    hub: FakeHub, copied_recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied_recordings.parent
    monkeypatch.chdir(folder)
    for typed in ("dataset/typo", "./typo", f"{folder}/typo", "~/no/typo", "a/b/c", "local:typo"):
        for words in (["data", "check"], ["data", "stats"], ["train"]):
            said = CliRunner().invoke(app, [*words, typed])
            told = said.exception.message if isinstance(said.exception, Zk0dError) else said.stdout
            assert "there is no" in told or "is not a LeRobot dataset" in told, (typed, words)
            assert "hub" not in told or "hf:dataset/typo" in told
    assert not hub.asked
