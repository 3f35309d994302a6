"""What a person sees: our sentences, each once, and nothing of the libraries beneath."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.federation.fakes import SPEC
from tests.forked import forks
from tests.learning.damage import change_info, first_video, make_dataset
from tests.learning.test_convert import write_v21
from zk0d.config.families import NEW
from zk0d.flower.simulation import log_to
from zk0d.learning.recordings import open_recordings
from zk0d.record.events import ModelReady, NodeJoined, RunFinished
from zk0d.simulation import compare
from zk0d.simulation.arms import Outcome, noticed
from zk0d.simulation.main import Options
from zk0d.simulation.sources import Source

ZK0BOT = Path(sys.executable).parent / "zk0bot"
SETTINGS = "model-name=tiny num-server-rounds=1 local-steps=2 batch-size=2 eval-frames=4"


Said = Callable[..., tuple[int, str, str]]
#: These share one process that forks.
forked = pytest.mark.xdist_group("output")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Said]:
    """How ``zk0bot`` ends and what it shows, without the seconds of its imports."""
    with forks(tmp_path_factory.mktemp("said")) as programs:

        def run(*words: object) -> tuple[int, str, str]:
            done = programs.zk0bot(*words)
            return done.returncode, done.stdout, done.stderr

        yield run


def said_by_itself(*words: object) -> tuple[int, str, str]:
    """The same of the program as a person starts it: what its imports print is seen, too."""
    done = subprocess.run([ZK0BOT, *map(str, words)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@forked
def test_a_refusal_in_a_run_appears_once(
    said: Said, recordings_folder: Path, tmp_path: Path
) -> None:
    """The evaluator refuses: its own log of it is no business of the terminal's."""
    file = tmp_path / "two.toml"
    file.write_text(
        "".join(
            f'[[contributor]]\nname = "{name}"\ndataset-uri = "local:{recordings_folder}"\n'
            f"episodes = {episodes}\ncameras = {{ top = '{camera}' }}\n"
            for name, episodes, camera in (("a", [0, 1, 2], "top"), ("b", [3, 4, 5], "wrist"))
        )
    )
    folder = tmp_path / "s"
    code, out, err = said(
        "simulate", "--file", file, "--hold-out", 0.4, "-c", SETTINGS, "--device", "cpu",
        "--folder", folder,
    )  # fmt: skip
    assert code == 69
    sentence = "does not know camera 'wrist'"
    assert err.startswith("zk0bot: ")
    assert err.count("\n") == 1
    assert (out + err).count(sentence) == 1
    assert sentence in (folder / "flower.log").read_text()


def make_torn(folder: Path) -> None:
    make_dataset(folder, (16, 17, 18))
    video = first_video(folder)
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle:] = bytes(len(content) - middle)
    video.write_bytes(content)


@pytest.mark.slow
@forked
@pytest.mark.parametrize("command", [("train",), ("simulate", "-n", 2)])
def test_recordings_that_cannot_be_used_are_told_once(
    said: Said, tmp_path: Path, command: tuple[object, ...]
) -> None:
    """Every contributor refuses, and the error gives their cause."""
    make_torn(tmp_path / "torn")
    code, out, err = said(
        *command, tmp_path / "torn", "--hold-out", 0.3, "-c", SETTINGS, "--device", "cpu",
        "--folder", tmp_path / "s",
    )  # fmt: skip
    assert code == 69
    assert err.startswith("zk0bot: 0 of ")
    assert err.count("\n") == 1
    assert err.count("frames cannot be used") == 1
    assert "frames cannot be used" not in out
    assert "node-" not in out + err


@pytest.mark.slow
@forked
def test_a_simulation_that_continues_names_the_contributor_it_lacks(
    said: Said, tmp_path: Path
) -> None:
    make_torn(tmp_path / "torn")
    whole = tmp_path / "whole"
    make_dataset(whole, (16, 17, 18))
    code, out, err = said(
        "simulate", whole, tmp_path / "torn", "--hold-out", 0.3, "-c",
        f"{SETTINGS} min-fit-clients=1", "--device", "cpu", "--folder", tmp_path / "s",
    )  # fmt: skip
    assert (code, err) == (0, "")
    (line,) = (line for line in out.splitlines() if "frames cannot be used" in line)
    assert "torn: local:" in line


def test_a_comparison_tells_what_its_trainings_notice_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(arms: object, log: Path, done: Callable[[Outcome], None]) -> list[Outcome]:
        for title in ("federated", "in one place"):
            done(Outcome(title, 0, 1, 1.0, None, 0, (), 0, 0, 0, 1.0, ("a notice of [both]",)))
        return []

    monkeypatch.setattr(compare, "run_arms", train)
    monkeypatch.setattr(compare, "source_of", lambda *_: Source([], []))
    monkeypatch.setattr(compare, "arms_of", lambda *_: [])
    monkeypatch.setattr(compare, "report", lambda *_: None)
    shown = io.StringIO()
    compare.compare(Options(folder=tmp_path / "c"), [0], 0, Console(file=shown))
    assert shown.getvalue().count("notice: a notice of [both]\n") == 1


def test_a_training_that_is_compared_keeps_its_models_notice() -> None:
    ready = ModelReady(spec=SPEC.model_copy(update={"model_name": NEW}))
    joined = NodeJoined(node="left", notices=("node left: a notice",))
    model, recordings = noticed([ready, joined, RunFinished()])
    assert "resnet18 of random" in model
    assert recordings == "node left: a notice"


@pytest.mark.slow
@pytest.mark.long
def test_converting_shows_the_copys_folder_and_nothing_else(
    recordings_folder: Path, tmp_path: Path
) -> None:
    former = tmp_path / "former"
    write_v21(open_recordings(f"local:{recordings_folder}"), former, episodes=2)
    assert said_by_itself("data", "convert", former) == (0, f"{former}-v3.0\n", "")


@pytest.mark.slow
@forked
@pytest.mark.parametrize("policy", ["smolvla", pytest.param("act", marks=pytest.mark.long)])
def test_training_shows_no_library(said: Said, tmp_path: Path, policy: str) -> None:
    """A policy of a folder is loaded: bars and prints of LeRobot and transformers stay away."""
    make_dataset(tmp_path / "d", (16, 17, 18))
    settings, more = f"{SETTINGS} policy={policy}", ("--hold-out", 0.3, "--device", "cpu")
    code, _, err = said_by_itself(
        "train", tmp_path / "d", "-c", settings, *more, "--folder", tmp_path / "a"
    )
    assert (code, err) == (0, "")
    settings = settings.replace("model-name=tiny", "model-name=mine")
    model = f"mine={tmp_path / 'a' / 'checkpoint'}"
    code, out, err = said(
        "train", tmp_path / "d", "--model", model, "-c", settings, *more, "--folder", tmp_path / "b"
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    ours = ("zk0d train", "[", "checkpoint ", "run ")
    assert all(line.startswith(ours) for line in lines), lines


def test_what_libraries_log_and_warn_goes_to_the_simulations_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        log_to(tmp_path / name)
        logging.warning("a library at the root, %s", name)
        logging.getLogger("lerobot.datasets").warning("of LeRobot, %s", name)
        warnings.warn(f"a warning, {name}", stacklevel=1)
    log_to(tmp_path / "third")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
    for name, other in (("first", "second"), ("second", "first")):
        text = (tmp_path / name).read_text()
        for part in ("a library at the root", "of LeRobot"):
            assert f"{part}, {name}" in text
            assert f"{part}, {other}" not in text


@pytest.mark.parametrize(
    ("splits", "told"),
    [
        ({"train": "0:3"}, ""),
        (None, ""),
        ({}, ""),
        ({"train": "0:2", "val": "2:3"}, "(train 0:2, val 2:3) are ignored: all 3 episodes"),
        ({"train": "0:2"}, "(train 0:2) are ignored"),
        ({"test": "0:3"}, "(test 0:3) are ignored"),
        ([1], ""),
    ],
)
def test_a_notice_names_splits_that_are_ignored(tmp_path: Path, splits: object, told: str) -> None:
    make_dataset(tmp_path / "d", (3, 3, 3), pictures="image")
    change_info(tmp_path / "d", lambda info: info.update(splits=splits))
    notices = open_recordings(f"local:{tmp_path / 'd'}").notices
    assert bool(notices) is bool(told)
    assert all(told in notice for notice in notices)


@pytest.mark.slow
@forked
def test_an_instruction_that_is_cut_is_counted(said: Said, tmp_path: Path) -> None:
    """Two tasks, of which one is longer than the policy reads: it trains, and says so."""
    make_dataset(tmp_path / "d", (16, 17, 18), tasks=("touch it", "touch the red block " * 9))
    words = ("train", tmp_path / "d", "--hold-out", 0.3, "--device", "cpu")
    code, out, err = said(*words, "-c", SETTINGS, "--folder", tmp_path / "a")
    assert (code, err) == (0, "")
    assert out.count("1 of 2 instructions are longer than the 24 tokens") == 1
    assert "touch the red block" not in out, "counts only"
    (joined,) = [
        line
        for line in map(json.loads, (tmp_path / "a/runs/1/journal.jsonl").read_text().splitlines())
        if line["kind"] == "node.joined"
    ]
    assert "1 of 2 instructions" in joined["notices"][0]
    code, out, _ = said(*words, "-c", f"{SETTINGS} policy=act", "--folder", tmp_path / "b")
    assert code == 0
    assert "instructions" not in out, "ACT reads none"
