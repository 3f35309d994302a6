from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.simulation.policies import halves, of_both, trained
from zk0d.cli.main import app
from zk0d.config.names import POLICY_PARTS
from zk0d.errors import ConfigError, DataError, UnavailableError, UsageError
from zk0d.release.checkpoint import PROVENANCE
from zk0d.release.personal import PERSONAL

runner = CliRunner()


@pytest.fixture
def late(shared_folder: Path) -> Path:
    right, _ = halves(shared_folder)
    return trained(shared_folder / "late", right, 80, of_both(shared_folder))


@pytest.mark.parametrize("verb", [["compare", "FOLDER"], ["tune"]])
def test_wrong_words(verb: list[str], late: Path, tmp_path: Path, shared_folder: Path) -> None:
    words = ["policy", *(word.replace("FOLDER", str(late)) for word in verb)]
    mine = ["--dataset", str(halves(shared_folder)[1]), "--device", "cpu"]

    def refused(*more: str) -> BaseException | None:
        return runner.invoke(app, [*words, *more]).exception

    for name in ("/nothing", "7/30"):
        assert isinstance(error := refused(name), UnavailableError)
        assert f"release '{name}' is not in" in str(error)
    assert isinstance(error := refused(str(tmp_path), *mine), UsageError)
    assert "holds no policy" in str(error)
    assert isinstance(error := refused(str(late), "--folder", str(tmp_path)), UsageError)
    assert "no dataset is named" in str(error)
    more = ("--camera", "top=x", "--folder", str(tmp_path))
    assert isinstance(error := refused(str(late), *more), UsageError)
    assert "--camera goes with --dataset" in str(error)
    assert isinstance(error := refused(str(late), *mine), DataError)
    assert "--hold-out" in str(error)
    missing = ("--dataset", str(tmp_path / "none"))
    assert isinstance(refused(str(late), *missing), DataError)
    assert list(tmp_path.iterdir()) == []


def test_tune_refuses_what_cannot_be_meant(late: Path, tmp_path: Path, shared_folder: Path) -> None:
    _, left = halves(shared_folder)
    words = ["policy", "tune", str(late), "--dataset", str(left)]
    assert "--steps" in runner.invoke(app, [*words, "--steps", "0"]).output
    assert "--pull" in runner.invoke(app, [*words, "--pull", "-1"]).output
    done = runner.invoke(app, [*words, "--learning-rate", "2"])
    assert isinstance(done.exception, UsageError)
    assert "--learning-rate" in str(done.exception)
    done = runner.invoke(app, [*words, "--output", str(left / "own")])
    assert isinstance(done.exception, UsageError)
    assert "lies in the recordings" in str(done.exception)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    done = runner.invoke(app, [*words, "--output", str(tmp_path / "full")])
    assert isinstance(done.exception, UsageError)
    assert "--output" in str(done.exception)


def test_a_release_with_another_lerobot_is_refused(tmp_path: Path, shared_folder: Path) -> None:
    (tmp_path / PROVENANCE).write_text(json.dumps({"versions": {"lerobot": "0.1.0"}}))
    for part in POLICY_PARTS:
        (tmp_path / part).write_text("{}")
    done = runner.invoke(app, ["policy", "tune", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    assert "LeRobot 0.1.0" in str(done.exception)


def test_compare_takes_a_second_policy_or_trains_one(late: Path, shared_folder: Path) -> None:
    mine = ["--dataset", str(halves(shared_folder)[1]), "--hold-out", "0.5", "--device", "cpu"]
    for words in ([], [str(late), "--alone", "3"]):
        done = runner.invoke(app, ["policy", "compare", str(late), *words, *mine])
        assert isinstance(done.exception, UsageError)
        assert "--alone STEPS" in str(done.exception)
    done = runner.invoke(app, ["policy", "compare", str(late), "--alone", "3", *mine])
    assert isinstance(done.exception, ConfigError), "it was not trained by a run"
    assert "does not say how it was trained" in str(done.exception)


def test_a_release_that_was_pulled_goes_by_its_name(
    late: Path, shared_folder: Path, write: Callable[[str, str], Path]
) -> None:
    right, _ = halves(shared_folder)
    home = write("client.toml", 'name = "ann"\n').parent
    write("client.toml", f'name = "ann"\npolicies = "{home}/policies"\n')
    (home / "policies").mkdir()
    (home / "policies" / "latest").symlink_to(late)
    mine = ["--dataset", str(right), "--hold-out", "0.5", "--device", "cpu", "--frames", "12"]
    words = ["policy", "compare", "latest", str(late), *mine, "--rollouts", "0"]
    done = runner.invoke(app, [*words, "--folder", str(home)])
    assert done.exit_code == 0, done.output
    assert f"the difference between latest and {late} is within the spread" in done.output


@pytest.mark.slow
def test_a_policy_is_tuned_and_compared_with_its_release(
    late: Path, tmp_path: Path, shared_folder: Path
) -> None:
    _, left = halves(shared_folder)
    mine = ["--dataset", str(left), "--hold-out", "0.5", "--device", "cpu", "--frames", "96"]
    own = tmp_path / "own"
    how = ["--steps", "40", "--learning-rate", "1e-3", "--output", str(own)]
    done = runner.invoke(app, ["policy", "tune", str(late), *mine, *how])
    assert done.exit_code == 0, done.output
    assert "The tuned policy is better than" in done.output
    assert f"checkpoint  {own}" in done.output
    assert (own / PERSONAL).is_file()

    words = ["policy", "compare", str(own), str(late), *mine, "--rollouts", "0"]
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"For your recordings {own} is better than {late} by" in done.output
    found = json.loads(runner.invoke(app, [*words, "--json"]).stdout)
    assert (found["measure"], found["better"]) == ("loss", str(own))
    assert found["second_minus_first"]["low"] > 0

    words = ["policy", "tune", str(late), *mine, "--json"]
    how = ["--steps", "4", "--learning-rate", "0.9", "--output", str(tmp_path / "worse")]
    done = runner.invoke(app, [*words, *how])
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)["kept"] is None
    assert not (tmp_path / "worse").exists()
