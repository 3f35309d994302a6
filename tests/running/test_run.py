"""What the shared federation's runs do, and what nobody can have it do.

These start runs of their own, so they come after the tests that look at the first one's metrics.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_files
from safetensors.numpy import load_file

from tests.processes import wait_until
from tests.record.lines import read_lines
from tests.running.conftest import FIRST_RUN, OWN_RUN, ROUNDS, Ran
from tests.running.lab import TINY, finished, flwr_run, zk0bot_run
from zk0d.config.run import RunSettings
from zk0d.demo.federation import Federation
from zk0d.errors import Zk0dError
from zk0d.flower.bundle import CLIENT_APP, SERVER_APP, bundle_toml
from zk0d.flower.control import COMPLETED, Control
from zk0d.record.journal import TRY_NOW, committed_rounds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.xdist_group("running")]


def test_zk0bot_run_trains_on_real_processes(first_run: Ran) -> None:
    committed = [line for line in read_lines(first_run.folder) if line["kind"] == "round.committed"]
    assert [line["round"] for line in committed] == list(range(ROUNDS + 1))
    kept = committed_rounds(first_run.folder)
    assert kept == [0, 1, 2, 3], "the last ones are kept, and the first for nodes that come late"
    assert [node["node"] for node in committed[-1]["nodes"]] == ["contributor-a", "contributor-b"]
    assert committed[-1]["evaluation"]["loss"] < committed[0]["evaluation"]["loss"]
    assert [dataset["name"] for dataset in committed[0]["evaluation"]["datasets"]] == ["a", "b"]


def test_nodes_evaluate_the_last_rounds_weights_on_their_own_episodes(first_run: Ran) -> None:
    """By a message of Flower's that trains nothing; the weights come as a round's do."""
    lines = list(read_lines(first_run.folder))
    committed = [line for line in lines if line["kind"] == "round.committed"]
    first = {node["node"]: node for node in committed[1]["nodes"]}
    measured = [line for line in lines if line["kind"] == "node.measured"]
    assert {line["node"] for line in measured} == {"contributor-a", "contributor-b"}
    for line in measured:
        assert line["round"] == ROUNDS
        assert line["mark"] == first[line["node"]]["holdout_mark"]
        assert line["loss"] < first[line["node"]]["holdout_loss"]
    written = [line for line in lines if line["kind"] == "checkpoint.written"]
    assert written
    for line in written:
        assert "nodes" not in " ".join(line["reasons"]), "the coordinator's own decide"
    assert not (first_run.folder / "transfer.json").exists(), "no capability outlives it"


def test_a_run_has_its_own_settings_and_then_those_of_server_toml(first_run: Ran) -> None:
    started = next(line for line in read_lines(first_run.folder) if line["kind"] == "run.started")
    expected = {**RunSettings().to_flat(), **OWN_RUN, **TINY, **FIRST_RUN}
    assert expected["keep-rounds"] != OWN_RUN["keep-rounds"]
    assert started["settings"] == expected


def test_nodes_train_adapters_and_send_nothing_else(running: Federation) -> None:
    run_id = zk0bot_run(running, **{"adapter": "lora", "adapter-rank": 4, "initial-lr": 1e-2})
    assert finished(running, run_id).outcome == COMPLETED
    folder = running.layout.runs / str(run_id)
    committed = [line for line in read_lines(folder) if line["kind"] == "round.committed"]
    assert committed[-1]["evaluation"]["loss"] < committed[0]["evaluation"]["loss"]
    names = load_file(folder / "rounds" / "00002" / "global.safetensors")
    assert all(name.endswith(".lora_B.default.weight") for name in names)
    # A byte a value and a scale for each tensor; without a wish for them no variates travel.
    values = sum(each.size for each in names.values())
    assert {len(line["nodes"]) for line in committed[1:]} == {2}
    for line in committed[1:]:
        for node in line["nodes"]:
            assert values < node["bytes_up"] < 1.25 * values
    (checkpoint,) = running.layout.coordinator.rglob(f"{run_id}/checkpoint_round_2")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in (checkpoint / "adapter").iterdir()
    }


def test_no_token_is_on_a_command_line(first_run: Ran) -> None:
    apps = [line for line in first_run.commands if "zk0d.flower.apps" in line]
    assert {line.split("zk0d.flower.apps ")[1].split()[0] for line in apps} == {
        "serverapp",
        "clientapp",
    }
    assert not [line for line in apps if "--token " in line or "--token=" in line]
    assert not [
        line for line in first_run.commands if "flwr-clientapp" in line or "flwr-serverapp" in line
    ]


def test_without_the_control_secret_no_run_starts(running: Federation, tmp_path: Path) -> None:
    """Any other user of the coordinator, a worker of its gateway included."""
    before = len(running.control.runs())
    said = flwr_run(running.control.address, running.certificates.ca, tmp_path)
    assert "403" in said.stdout + said.stderr
    wrong = tmp_path / "wrong.secret"
    wrong.write_text("f" * 64)
    with (
        Control(running.control.address, running.certificates.ca, wrong) as control,
        pytest.raises(Zk0dError, match="this is not its control secret; run zk0bot on"),
    ):
        control.nodes()
    assert len(running.control.runs()) == before


def test_a_bundles_code_never_runs(running: Federation, tmp_path: Path) -> None:
    """Neither in a known place nor through a task type that Flower would start for it."""
    proof = tmp_path / "it-ran"
    code = (
        f"import socket, subprocess\nopen({str(proof)!r}, 'w').close()\n"
        f"subprocess.run(['touch', {str(proof)!r}])\n"
        "socket.create_server(('127.0.0.1', 0))\napp = None\n"
    )
    alien = bundle_toml().replace('fab-include = ["pyproject.toml"]', 'fab-include = ["*.*"]')
    for ours in (SERVER_APP, CLIENT_APP):
        alien = alien.replace(ours, "alien:app")
    # And a way to run while it is installed, or in the place of modules that we import.
    alien += '\n[build-system]\nrequires = []\nbuild-backend = "alien"\nbackend-path = ["."]\n'
    names = ("alien.py", "setup.py", "sitecustomize.py", "conftest.py", "zk0d/__init__.py")
    bundle, _ = build_fab_from_files(
        {"pyproject.toml": alien.encode(), **dict.fromkeys(names, code.encode())}
    )
    assert all(name.encode() in bundle for name in names)
    settings = RunSettings.parse({**TINY, "num-server-rounds": 1}, where="test")
    run_id = running.control.start_run(settings, bundle)
    assert finished(running, run_id).outcome == COMPLETED, "the installed apps ran in its place"
    assert committed_rounds(running.layout.runs / str(run_id)) == [0, 1]
    assert not proof.exists()
    for name in ("superexec", "contributor-a-superexec"):
        said = (running.layout.logs / f"{name}.log").read_text()
        assert "this run's bundle brings code (alien.py, alien:app" in said
        assert "none of it runs, the installed app does" in said
    server = (running.layout.logs / "superexec.log").read_text()
    assert server.count("bundle brings code") == 1, "not of our own bundle"


def test_a_failed_run_says_why(running: Federation) -> None:
    settings = RunSettings.parse({**TINY, "model-name": "nothing"}, where="test")
    run_id = running.start_run(settings)
    state = finished(running, run_id)
    with pytest.raises(Zk0dError, match="'nothing' is not known here"):
        running.raise_if_failed(state)
    last = list(read_lines(running.layout.runs / str(run_id)))[-1]
    assert last["kind"] == "run.failed"
    assert last["reason"] == "model_unavailable"


@pytest.mark.long
def test_a_run_waits_while_the_disk_is_full_and_keeps_committed_rounds(
    running: Federation,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    runs = running.layout.runs
    runs.mkdir(exist_ok=True)  # it comes with the first run, which may be this one
    size = 1_400_000  # two committed rounds of the tiny policy and not three
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(runs)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        settings = RunSettings.parse(
            {**TINY, "num-server-rounds": 6, "keep-rounds": 9}, where="test"
        )
        run_id = running.start_run(settings)
        folder = runs / str(run_id)

        def told(kind: str) -> list[dict[str, Any]]:
            return [line for line in read_lines(folder) if line["kind"] == kind]

        wait_until(lambda: bool(told("run.waiting")), "a full disk", 180, running.children)
        assert {line["reason"] for line in told("run.waiting")} == {"disk_full"}
        assert "No space left on device" in told("run.waiting")[0]["message"]
        kept = committed_rounds(folder)
        assert kept == list(range(len(kept)))
        assert kept, "what was committed is there"
        subprocess.run(["mount", "-o", "remount,size=64m", str(runs)], check=True)
        (folder / TRY_NOW).touch()
        assert finished(running, run_id).outcome == COMPLETED
        assert [line["round"] for line in told("round.committed")] == list(range(7))
        assert committed_rounds(folder) == list(range(7))
        assert not list((folder / "rounds").glob(".*")), "and nothing half-written"
    finally:
        subprocess.run(["umount", str(runs)], check=True)


@pytest.mark.long
def test_the_nodes_work_after_all_that(running: Federation) -> None:
    run_id = zk0bot_run(running, **{"num-server-rounds": 1})
    assert finished(running, run_id).outcome == COMPLETED
