"""What matters at a run's end is checked before its first round, by every door a run comes in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.federation.fakes import FakeEvaluator, FakeGrid, FakeNode
from tests.record.lines import read_lines
from tests.services.test_autorun import Coordinator
from zk0d.cli import run as run_verb
from zk0d.cli.main import app
from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings, run_settings
from zk0d.errors import ConfigError
from zk0d.federation.run import Run
from zk0d.machine import units
from zk0d.record.journal import Journal
from zk0d.services.autorun import LOOK_SECONDS, Autorun

#: Settings, the key that is named, and a part of the sentence.
WRONG = [
    ({"hf-repo-id": "arm"}, "hf-repo-id", "write it as user/name"),
    ({"hf-repo-id": "lab/my arm"}, "hf-repo-id", "the hub does not take this name"),
    ({"hf-repo-id": "lab/arm--2"}, "hf-repo-id", "the hub does not take this name"),
    ({"hf-repo-id": "lab/" + "x" * 100}, "hf-repo-id", "maximum length is 96"),
    ({"hf-repo-id": "https://huggingface.co/lab/arm"}, "hf-repo-id", "write it as user/name"),
    ({"hf-public": True}, "hf-public", "hf-public needs hf-repo-id"),
    ({"model-name": "/home/ann/base"}, "model-name", "map a name to it under [models]"),
    ({"model-name": "~/base"}, "model-name", "map a name to it under [models]"),
    (
        {"hf-repo-id": "lab/arm", "checkpoint-interval": 50, "num-server-rounds": 20},
        "checkpoint-interval",
        "the run has fewer rounds than 50 (20)",
    ),
    ({"hf-repo-id": "lab/arm", "eval-frequency": 0}, "eval-frequency", "passed the gate"),
    ({"wandb-project": "a/b"}, "wandb-project", "is not a project name of W&B"),
]
#: The same, of what the coordinator lacks.
LACKING = [
    ("hf.token", {"hf-repo-id": "lab/arm"}, "hf-repo-id", "there is no token of the hub"),
    (
        "evaluation",
        {"hf-repo-id": "lab/arm", "evaluate-on-nodes": False},
        "hf-repo-id",
        "add an [[evaluation]] table",
    ),
    ("wandb", {"wandb-project": "arms"}, "wandb-project", "pip install 'zk0d[wandb]'"),
]
RIGHT = {
    "hf-repo-id": "lab/arm",
    "hf-public": True,
    "checkpoint-interval": 10,
    "wandb-project": "our arms",
}


class Site:
    """A coordinator's settings, with what a run's end needs but for what is left out."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.lacks = ""
        self.sent: list[RunSettings] = []
        self.nodes = FakeGrid([FakeNode("left"), FakeNode("right")])
        (folder / "hf.token").write_text("hf_of_the_test\n")
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        monkeypatch.setattr(
            "zk0d.config.machine.find_spec", lambda name: None if self.lacks == name else True
        )
        monkeypatch.setattr(units, "CONFIG_FOLDER", folder)
        monkeypatch.setattr(run_verb, "control", self._never)

    def without(self, what: str) -> None:
        self.lacks = what
        if what == "hf.token":
            (self.folder / what).write_text("\n")  # as systemd has it where there is none

    def settings(self, run: dict[str, Any] | None = None) -> ServerSettings:
        self.write(run or {})
        return ServerSettings.load(self.folder / "server.toml")

    def write(self, run: dict[str, Any]) -> None:
        tables = [
            f'state = "{self.folder}"\n[publish]\nhf-token = "{self.folder}/hf.token"',
            '[[evaluation]]\nname = "held-out"\ndataset-uri = "local:/held-out"',
            "[autorun]\n[autorun.run]",
            *(f"{key} = {json.dumps(value)}" for key, value in run.items()),
        ]
        if self.lacks == "evaluation":
            del tables[1]
        (self.folder / "server.toml").write_text("\n".join(tables))

    def _never(self, *_: object) -> Any:
        raise AssertionError("the SuperLink was asked for a run")


def typed(site: Site, *words: str) -> str:
    said = CliRunner().invoke(app, list(words))
    assert isinstance(said.exception, ConfigError), said.output
    return said.exception.message


def by_zk0bot_run(site: Site, run: dict[str, Any]) -> str:
    site.write({})
    words = (f"{key}={json.dumps(value)}" for key, value in run.items())
    return typed(
        site, "run", "--folder", str(site.folder), *(f"--config='{word}'" for word in words)
    )


def by_config_check(site: Site, run: dict[str, Any]) -> str:
    site.write(run)
    said = typed(site, "config", "check", "server", "--folder", str(site.folder))
    assert "'autorun.run." in said
    return said.replace("autorun.run.", "")


def by_autorun(site: Site, run: dict[str, Any]) -> str:
    settings = site.settings(run)
    coordinator, now = Coordinator(), [0.0]
    assert settings.autorun is not None
    autorun = Autorun(
        settings.autorun,
        coordinator,
        lambda: now[0],
        lambda: settings.check_autorun("server.toml"),
    )
    for _ in range(20):
        now[0] += LOOK_SECONDS
        said = autorun.look(online=2)
    assert coordinator.started == []
    assert "'autorun.run." in said
    return said.replace("autorun.run.", "")


def by_flower(site: Site, run: dict[str, Any]) -> str:
    """A run that the SuperLink was given by another program: the ServerApp refuses it."""
    journal = Journal(site.folder / "runs" / "1", "1")
    grid = site.nodes
    asked = Run(
        grid,
        run_settings(run),
        site.settings(),
        journal,
        FakeEvaluator(),
        clock=grid.clock,
        sleep=grid.sleep,
    )
    with pytest.raises(ConfigError) as caught:
        asked.run()
    lines = list(read_lines(journal.folder))
    assert [line["kind"] for line in lines] == ["run.started", "run.failed"]
    assert (lines[-1]["reason"], lines[-1]["message"]) == ("config_error", caught.value.message)
    return caught.value.message


DOORS = [by_zk0bot_run, by_config_check, by_autorun, by_flower]
Door = Callable[[Site, dict[str, Any]], str]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("run", "key", "says"), WRONG)
def test_a_wrong_value_is_refused(
    site: Site, door: Door, run: dict[str, Any], key: str, says: str
) -> None:
    said = door(site, run)
    assert f"'{key}' is wrong: " in said
    assert says in said


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("lacks", "run", "key", "says"), LACKING)
def test_a_need_of_the_runs_end_that_is_missing_is_named(
    site: Site, door: Door, lacks: str, run: dict[str, Any], key: str, says: str
) -> None:
    site.without(lacks)
    said = door(site, run)
    assert f"'{key}' is wrong: " in said
    assert says in said
    if lacks == "hf.token":
        assert f"{site.folder}/hf.token (publish.hf-token)" in said


def test_right_settings_pass(site: Site) -> None:
    settings = site.settings(RIGHT)
    settings.check_autorun("server.toml")
    settings.check_run(run_settings(RIGHT), "run settings")
    site.settings().check_run(RunSettings(), "run settings")
    said = CliRunner().invoke(app, ["config", "check", "server", "--folder", str(site.folder)])
    assert said.exit_code == 0
    (site.folder / "hf.token").unlink()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("huggingface_hub.get_token", lambda: "hf_of_a_login")
        settings.check_autorun("server.toml")


def test_a_resumed_run_is_not_stopped_by_the_check(site: Site) -> None:
    """Its rounds are worth more than a token that is not there any more."""
    site.without("hf.token")
    grid = site.nodes
    run = {"hf-repo-id": "lab/arm", "num-server-rounds": 2, "max-update-ratio": 0.0}

    def made(resumed_by: str) -> Run:
        return Run(
            grid,
            run_settings({**run, "local-steps": 4}),
            site.settings(),
            Journal(site.folder / "runs" / "1", "1"),
            FakeEvaluator(),
            resumed_by=resumed_by,
            clock=grid.clock,
            sleep=grid.sleep,
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ServerSettings, "check_run", lambda *_: None)
        stopped = made("")
        patched.setattr(stopped, "_train_rounds", lambda: None)
        stopped.run()
    made("2").run()
    kinds = [line["kind"] for line in read_lines(site.folder / "runs" / "1")]
    assert kinds[-1] == "run.finished"


@pytest.mark.parametrize("verb", ["demo", "simulate", "train", "compare"])
@pytest.mark.parametrize("setting", ["hf-repo-id=lab/arm", "wandb-project=arms", "hf-public=true"])
def test_commands_that_send_nothing_refuse_these_settings(
    verb: str, setting: str, recordings_folder: Path, tmp_path: Path
) -> None:
    words = [verb, *([str(recordings_folder)] if verb == "train" else []), "-c", setting]
    said = CliRunner().invoke(app, [*words, "--folder", str(tmp_path / "x")])
    assert isinstance(said.exception, ConfigError), said.output
    key = setting.partition("=")[0]
    assert f"'{key}' is wrong: a " in said.exception.message
    assert "sends nothing out" in said.exception.message
    assert not list(tmp_path.rglob("*.safetensors"))


NAMES = ["zk0d", "our arms", *(f"a{letter}b" for letter in "/#%:?\\"), "x" * 128, "x" * 129]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_wandb_accepts_the_project_names(name: str) -> None:
    wandb = pytest.importorskip("wandb")
    ours = RunSettings.parse({"wandb-project": name}, where="test")
    try:
        wandb.Settings(project=name)
        taken = True
    except Exception:
        taken = False
    try:
        ours.check_end("run settings")
        assert taken
    except ConfigError:
        assert not taken


def test_a_run_is_held_against_the_coordinators_own_settings(site: Site) -> None:
    """By themselves these would be refused: the usual deadline is an hour."""
    site.write({})
    with (site.folder / "server.toml").open("a") as file:
        file.write("\n[run]\nround-deadline = 7200.0\n")
    asked = ["run", "--folder", str(site.folder), "--config=round-minutes=61"]
    said = CliRunner().invoke(app, asked)
    assert isinstance(said.exception, AssertionError), said.output
    assert "the SuperLink was asked for a run" in str(said.exception)
    said = CliRunner().invoke(app, [*asked, "--config=round-deadline=600"])
    assert isinstance(said.exception, ConfigError)
    assert "leaves no time to send an update" in said.exception.message
