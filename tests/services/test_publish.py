"""``zk0d publish``: what it sends of which run, against a stand-in of the hub and W&B's files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.record.lines import write as note
from tests.release.hub_stand_in import HubStandIn
from tests.release.test_hub import TOKEN, make_checkpoint
from tests.report.test_report import Told
from zk0d.config.run import run_settings
from zk0d.record.events import RoundCommitted
from zk0d.record.journal import CONFIG, read_journal
from zk0d.record.outputs import run_config
from zk0d.release.wandb import figures

pytestmark = pytest.mark.slow

REPOSITORY = "lab/arm"


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    server = HubStandIn()
    yield server
    server.shutdown()
    server.server_close()


class Coordinator:
    """A coordinator's folders, and ``zk0d publish`` as its unit runs it."""

    def __init__(self, folder: Path, hub: HubStandIn) -> None:
        self.folder = folder
        self._hub = hub
        self.state = folder / "publish"
        self.credentials = folder / "credentials"
        self.credentials.mkdir()
        for name in ("hf.token", "wandb.key"):
            (self.credentials / name).write_text("\n")  # as systemd does where there is none
        (folder / "server.toml").write_text(
            f'state = "{folder}/state"\nreleases = "{folder}/releases"\n'
            f'[publish]\nstate = "{self.state}"\n'
        )

    def told(
        self,
        run: str,
        settings: Mapping[str, Any] = {},
        *,
        passed: bool = True,
        worse: bool = False,
        began: float = 0.0,
    ) -> Told:
        """A run that ended, with a checkpoint."""
        told = Told(self.folder / "state/runs" / run, run, **settings)
        config = run_config(run, run_settings(settings), began)
        told.journal.write_json(CONFIG, config)
        for number in range(4):
            told.round(number, 2.0 - 0.1 * number)
        made = make_checkpoint(
            self.folder / "releases" / run / "checkpoint_round_3", run, float(len(run))
        )
        note(
            told.journal,
            "checkpoint.written",
            round=3,
            folder=made.name,
            passed=passed,
            reasons=["it beats nothing"],
            seconds=1.0,
        )
        if worse:  # the gate says no to one that was written later
            facts = {"round": 2, "folder": "checkpoint_round_2", "passed": False}
            note(told.journal, "checkpoint.written", **facts)
        note(told.journal, "run.finished", rounds=3, reason="rounds", best_round=3)
        return told

    def publish(self) -> subprocess.CompletedProcess[str]:
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": self._hub.url,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "CREDENTIALS_DIRECTORY": str(self.credentials),
        }
        code = "import sys; from zk0d.services.main import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, "publish", "--config", str(self.folder / "server.toml")],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def sent(self, run: str) -> dict[str, Any]:
        path = self.state / f"{run}.json"
        return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture
def coordinator(tmp_path: Path, hub: HubStandIn) -> Coordinator:
    made = Coordinator(tmp_path, hub)
    (made.credentials / "hf.token").write_text(f"{TOKEN}\n")
    return made


def test_a_run_that_asks_is_pushed_once(coordinator: Coordinator, hub: HubStandIn) -> None:
    coordinator.told("1", {"hf-repo-id": REPOSITORY}, worse=True)
    coordinator.told("2")
    done = coordinator.publish()
    assert done.returncode == 0, done.stderr
    assert list(hub.repositories) == [REPOSITORY]
    assert hub.repositories[REPOSITORY].private
    there = hub.repositories[REPOSITORY]
    assert there.tags.keys() == {coordinator.sent("1")["tag"]}
    assert coordinator.sent("2") == {}
    commits = len(hub.repositories[REPOSITORY].commits)
    again = coordinator.publish()
    assert (again.returncode, "pushed" in again.stderr) == (0, False)
    assert len(hub.repositories[REPOSITORY].commits) == commits
    assert TOKEN not in done.stderr + json.dumps(coordinator.sent("1"))


@pytest.mark.parametrize(
    ("passed", "settings", "why"),
    [
        (False, {}, "did not pass the gate (it beats nothing)"),
        (True, {"checkpoint-interval": 50, "num-server-rounds": 3}, "shorter than its checkpoint"),
    ],
)
def test_a_missing_push_is_logged_once(
    coordinator: Coordinator, hub: HubStandIn, passed: bool, settings: dict[str, Any], why: str
) -> None:
    coordinator.told("1", {"hf-repo-id": REPOSITORY, **settings}, passed=passed)
    said = [coordinator.publish().stderr for _ in range(2)]
    assert [why in each for each in said] == [True, False]
    assert "releases/1/checkpoint_round_3" in said[0], "where it is"
    assert not hub.repositories


def test_a_run_under_way_is_not_sent(coordinator: Coordinator, hub: HubStandIn) -> None:
    told = coordinator.told("1", {"hf-repo-id": REPOSITORY})
    note(told.journal, "run.resumed", round=3, flower_run="8")
    assert coordinator.publish().returncode == 0
    assert not hub.repositories


def test_without_a_token_it_stays_here(coordinator: Coordinator, hub: HubStandIn) -> None:
    (coordinator.credentials / "hf.token").write_text("\n")
    coordinator.told("1", {"hf-repo-id": REPOSITORY})
    done = coordinator.publish()
    assert done.returncode == 69
    assert "there is no token of the hub, so nothing was pushed" in done.stderr
    assert "Traceback" not in done.stderr
    assert coordinator.sent("1") == {}
    (coordinator.credentials / "hf.token").write_text(TOKEN)
    assert coordinator.publish().returncode == 0
    assert REPOSITORY in hub.repositories


def test_a_refused_push_does_not_hold_up_others(coordinator: Coordinator, hub: HubStandIn) -> None:
    coordinator.told("2", {"hf-repo-id": "no-name"})
    coordinator.told("1", {"hf-repo-id": REPOSITORY})
    done = coordinator.publish()
    assert (done.returncode, "write it as user/name" in done.stderr) == (78, True)
    assert REPOSITORY in hub.repositories


def test_several_runs_to_one_repository(coordinator: Coordinator, hub: HubStandIn) -> None:
    """Each tag names its run's own weights, and the repository ends with the newest run's."""
    for run, began in (("333", 10.0), ("1", 30.0), ("22", 20.0)):
        coordinator.told(run, {"hf-repo-id": REPOSITORY}, began=began)
    done = coordinator.publish()
    assert done.returncode == 0, done.stderr
    there = hub.repositories[REPOSITORY]
    for run in ("333", "22", "1"):
        folder = coordinator.folder / "releases" / run / "checkpoint_round_3"
        found = there.snapshots[there.tags[coordinator.sent(run)["tag"]]]
        assert found["model.safetensors"] == (folder / "model.safetensors").read_bytes(), run
    assert there.files == there.snapshots[there.tags[coordinator.sent("1")["tag"]]]


def test_the_token_is_found_without_systemd(coordinator: Coordinator, hub: HubStandIn) -> None:
    """The file that ``publish.hf-token`` names."""
    (coordinator.credentials / "hf.token").unlink()
    token = coordinator.folder / "token"
    token.write_text(f"{TOKEN}\n")
    with (coordinator.folder / "server.toml").open("a") as file:
        file.write(f'hf-token = "{token}"\n')
    coordinator.told("1", {"hf-repo-id": REPOSITORY})
    done = coordinator.publish()
    assert done.returncode == 0, done.stderr
    assert REPOSITORY in hub.repositories


def test_figures_go_to_wandb_by_and_by(coordinator: Coordinator) -> None:
    """Without a key into files, which ``wandb sync`` sends; each round once."""
    pytest.importorskip("wandb")
    told = Told(coordinator.folder / "state/runs/1", "1", **{"wandb-project": "zk0d"})
    told.round(0, 2.0)
    told.round(1, 1.5)
    done = coordinator.publish()
    assert done.returncode == 0, done.stderr
    kept = coordinator.sent("1")["wandb_lines"]
    files = list(coordinator.state.glob("wandb/wandb/offline-run-*/*.wandb"))
    assert len(files) == 1
    assert b"server_eval_policy_loss" in files[0].read_bytes()
    told.round(2, 1.2)
    note(told.journal, "run.finished", rounds=2, reason="rounds", best_round=2)
    assert coordinator.publish().returncode == 0
    assert coordinator.sent("1")["wandb_lines"] == kept + 2
    texts = [path.read_bytes() for path in coordinator.state.glob("wandb/wandb/*/*.wandb")]
    assert any(b"final_eval_loss" in text for text in texts)
    shutil.rmtree(coordinator.state / "wandb")
    assert coordinator.publish().returncode == 0
    assert not (coordinator.state / "wandb").exists(), "there was nothing new"


def test_zk0s_names(tmp_path: Path) -> None:
    told = Told(tmp_path / "7")
    told.round(4, 0.5, {"left": 1.0})
    *_, committed = read_journal(tmp_path / "7")
    assert isinstance(committed, RoundCommitted)
    found = figures(committed)
    assert found["server_round"] == 4
    assert found["server_eval_loss"] == found["server_eval_policy_loss"] == 0.5
    assert found["client_left_policy_loss"] == 1.0
    assert "server_eval_success" not in found, "what was not measured is left out"
