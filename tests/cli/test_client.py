"""What a contributor types, where there is no systemd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hostile, processes
from tests.cli.test_cli import BIN, typed
from zk0d.config.machine import ClientSettings
from zk0d.daemon.line import LineBook
from zk0d.daemon.own_rounds import OwnRound, RoundBook
from zk0d.errors import ConfigError, UsageError
from zk0d.machine import recordings, units
from zk0d.machine.certificates import make_certificates
from zk0d.machine.hold import read_hold
from zk0d.machine.setup import set_up_client
from zk0d.machine.state import STATE, write_json
from zk0d.record.events import RoundCommitted
from zk0d.record.state import RunState

SETTINGS = """\
# of the left bench
name = "left"

[coordinator]  # theirs
address = "hub:9443"

[supernode]
state = "{state}"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(units, "has_systemd", lambda: False)
    state = tmp_path / "state"
    state.mkdir()
    (tmp_path / "client.toml").write_text(SETTINGS.format(state=state))
    return tmp_path


def settings(folder: Path) -> ClientSettings:
    return ClientSettings.load(folder / "client.toml")


def test_a_folder_is_written_to_the_settings_and_the_rest_is_kept(folder: Path) -> None:
    data = folder / "my recordings"
    data.mkdir()
    recordings.choose([str(data)], folder)
    assert settings(folder).dataset_uri == f"local:{data}"
    text = (folder / "client.toml").read_text()
    assert "# of the left bench" in text
    assert "[coordinator]  # theirs" in text
    recordings.choose(["somebody/something"], folder)
    assert settings(folder).dataset_uri == "hf:somebody/something"
    assert (folder / "client.toml").read_text().count("dataset-uri") == 1
    recordings.choose([], folder)
    assert settings(folder).dataset_uri == "hf:somebody/something"


def test_several_datasets_are_tables_and_one_that_was_there_keeps_its_own(folder: Path) -> None:
    data = folder / "cube"
    data.mkdir()
    assert recordings.choose([str(data), "me/cup"], folder)
    assert [each.uri for each in settings(folder).lent] == [f"local:{data}", "hf:me/cup"]
    assert not recordings.choose([], folder)
    assert not recordings.choose([str(data), "me/cup"], folder)
    path = folder / "client.toml"
    weighted = path.read_text().replace('"hf:me/cup"', '"me/cup"\nweight = 2.0  # rare')
    path.write_text(weighted)
    assert recordings.choose(["me/cup", "me/box"], folder)
    assert [(each.uri, each.weight) for each in settings(folder).lent] == [
        ("me/cup", 2.0),
        ("hf:me/box", 1.0),
    ]
    assert settings(folder).coordinator.address == "hub:9443"
    recordings.choose([str(data)], folder)
    assert [each.uri for each in settings(folder).lent] == [f"local:{data}"]


def test_a_second_dataset_takes_the_place_of_dataset_uri(folder: Path) -> None:
    recordings.choose(["me/cup"], folder)
    recordings.choose(["me/cup", "me/box"], folder)
    assert settings(folder).dataset_uri is None
    assert [each.uri for each in settings(folder).lent] == ["hf:me/cup", "hf:me/box"]
    assert "# of the left bench" in (folder / "client.toml").read_text()


def test_a_missing_dataset_is_named_and_nothing_is_written(folder: Path) -> None:
    before = (folder / "client.toml").read_text()
    with pytest.raises(ConfigError, match="there is no folder /nothing"):
        recordings.choose(["/nothing"], folder)
    with pytest.raises(ConfigError, match=r"there is no folder .*/a/b/c"):
        recordings.choose(["a/b/c"], folder)
    with pytest.raises(UsageError, match="is not a dataset address"):
        recordings.choose(["hf:a/b/c"], folder)
    assert (folder / "client.toml").read_text() == before


def test_without_a_terminal_there_is_no_question(folder: Path) -> None:
    with pytest.raises(UsageError, match="no dataset is named"):
        recordings.choose([], folder)
    said = typed("zk0bot", "client", "start", "--folder", str(folder), stdin=subprocess.DEVNULL)
    assert said.returncode == 64
    assert "zk0bot client start FOLDER" in said.stderr


def test_a_path_for_systemd_is_quoted() -> None:
    assert recordings._quoted(Path('/home/a b/100%:"x"')) == '"/home/a b/100%%\\:\\"x\\""'


@pytest.mark.slow
def test_pause_and_resume(folder: Path) -> None:
    said = typed("zk0bot", "client", "pause", "--for", "2h", "--folder", str(folder))
    assert said.returncode == 0, said.stderr
    hold = read_hold(folder / "state")
    assert hold is not None
    assert hold.until is not None
    assert 7100 < hold.until - time.time() <= 7200
    assert "takes part again" in typed("zk0bot", "client", "resume", "--folder", str(folder)).stdout
    assert read_hold(folder / "state") is None
    assert "neither" in typed("zk0bot", "client", "resume", "--folder", str(folder)).stdout


@pytest.mark.parametrize("text", ["2", "h", "0h", "-1h", "2 weeks"])
def test_a_wrong_duration_is_refused(folder: Path, text: str) -> None:
    said = typed("zk0bot", "client", "pause", f"--for={text}", "--folder", str(folder))
    assert said.returncode == 64
    assert "is not a duration" in said.stderr


@pytest.mark.slow
def test_waiting_gives_up_with_the_nodes_own_status(folder: Path) -> None:
    state = {"online": False, "left": False, "status": "waiting for the coordinator"}
    write_json(folder / "state" / STATE, state)
    for verb in ("wait-online", "drain"):
        said = typed("zk0bot", "client", verb, "--timeout", "1s", "--folder", str(folder))
        assert said.returncode == 75
        assert "after 1s (waiting for the coordinator)" in said.stderr


@pytest.mark.slow
def test_status_of_a_host_without_services(folder: Path) -> None:
    said = typed("zk0bot", "status", "--json", "--folder", str(folder))
    assert said.returncode == 1
    content = json.loads(said.stdout)
    assert content["schema_version"] == 1
    assert content["todo"] == ["no service of this client runs: start it with zk0bot client start"]
    assert set(content) == {
        *("schema_version", "host", "ok", "services", "run", "nodes", "node", "line", "todo"),
        *("trained", "contributors", "next_ca"),
    }
    (folder / "client.toml").write_text('name = "a"\n[cordinator]\n')
    said = typed("zk0bot", "status", "--json", "--folder", str(folder))
    assert said.returncode == 1
    assert "did you mean 'coordinator'" in json.loads(said.stdout)["todo"][0]
    empty = typed("zk0bot", "status", "--folder", "/nothing")
    assert empty.returncode == 69
    assert "no zk0d runs on this host" in empty.stderr


@pytest.mark.slow
def test_status_shows_what_this_node_trained(folder: Path) -> None:
    with (folder / "client.toml").open("a") as toml:
        toml.write(f'[superexec]\nstate = "{folder / "app"}"\n')
    for number, loss in ((1, 2.0), (2, None), (3, 0.5)):
        RoundBook(folder / "app").add(
            OwnRound(
                run="7",
                round=number,
                steps=40,
                train_loss=0.6,
                holdout_loss=loss,
                seconds=1400.0,
                joules=1.2e6,
            )
        )
    said = typed("zk0bot", "status", "--folder", str(folder)).stdout.splitlines()
    assert "trained: 3 rounds, 70 min, 1 kWh today" in said
    held_out = "shared policy on your held-out episodes: 2.0000 after round 0, 0.5000 after round 2"
    assert f"  {held_out}" in said
    trained = json.loads(typed("zk0bot", "status", "--json", "--folder", str(folder)).stdout)[
        "trained"
    ]
    assert [each["holdout_loss"] for each in trained["rounds"]] == [2.0, None, 0.5]
    assert trained["today"] == {"rounds": 3, "seconds": 4200.0, "joules": 3.6e6}


@pytest.mark.slow
def test_status_shows_what_the_line_moved_and_that_it_rests(folder: Path) -> None:
    lent = (
        f'[superexec]\nstate = "{folder / "app"}"\n'
        '[limits]\nbytes-per-day = "2 GB"\nmetered = true\n'
    )
    with (folder / "client.toml").open("a") as toml:
        toml.write(lent)
    LineBook(folder / "app").add(down=1_500_000_000, up=500_000_000)
    said = typed("zk0bot", "status", "--folder", str(folder)).stdout.splitlines()
    assert "line: 1.5 GB down, 500 MB up today, of 2 GB a day" in said
    spent = "until midnight (2 GB of the day's 2 GB are spent; limits.bytes-per-day)"
    assert f"  rests {spent}" in said
    line = json.loads(typed("zk0bot", "status", "--json", "--folder", str(folder)).stdout)["line"]
    assert list(line["days"].values()) == [{"down": 1_500_000_000, "up": 500_000_000}]
    assert (line["bytes_per_day"], line["rests"]) == (2_000_000_000, spent)
    (folder / "client.toml").write_text("name = ")
    broken = typed("zk0bot", "status", "--json", "--folder", str(folder))
    assert json.loads(broken.stdout)["line"] is None


def test_status_shows_how_much_the_nodes_agree(folder: Path) -> None:
    state = folder / "superlink"
    state.mkdir()
    (folder / "client.toml").unlink()
    (folder / "server.toml").write_text(f'[superlink]\nstate = "{state}"\n')
    run = RunState(run="7", last=RoundCommitted(round=3, agreement=0.625))
    nodes = [
        {"name": "left", "online": True, "policy_loss": 0.5, "agreement": 0.75},
        {"name": "right", "online": False, "policy_loss": None, "agreement": None},
    ]
    write_json(state / STATE, {"run": run.status(), "nodes": nodes})
    said = typed("zk0bot", "status", "--folder", str(folder)).stdout.splitlines()
    assert "  agreement of the last round's updates 0.62" in said
    assert "node left: online, training loss 0.5000, agreement 0.75" in said
    assert "node right: offline" in said


@pytest.fixture
def started(
    folder: Path, recordings_folder: Path, tmp_path: Path
) -> Iterator[subprocess.Popen[str]]:
    (folder / "client.toml").unlink()
    ca = make_certificates(tmp_path / "tls", ["127.0.0.1"]).ca.read_bytes()
    quiet = {"metrics": {"enabled": False}, "supernode": {"presence-interval": 1.0}}
    set_up_client(folder, "left", "127.0.0.1:9", ca, quiet)
    with processes.started(
        [
            str(BIN / "zk0bot"),
            *("client", "start", f"local:{recordings_folder}", "--folder", str(folder)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=hostile.environment(tmp_path / "packages"),
    ) as process:
        yield process


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(
    os.path.isdir("/run/systemd/system"), reason="systemd runs here: start would enable units"
)
def test_without_systemd_the_services_run_in_the_foreground(
    folder: Path, started: subprocess.Popen[str]
) -> None:
    def look() -> dict[str, dict[str, object]]:
        assert started.poll() is None, started.communicate()
        said = typed("zk0bot", "client", "status", "--json", "--folder", str(folder))
        return {service["name"]: service for service in json.loads(said.stdout)["services"]}

    def wait_for(name: str, words: str) -> dict[str, object]:
        deadline = time.monotonic() + 90
        while words not in str(look().get(name, {}).get("status")):
            assert time.monotonic() < deadline, look()
        return look()[name]

    wait_for("supernode", "(connection refused); it will connect by itself")
    wait_for("learner", "ready, waiting for a round")
    # Three services, and what two of them supervise; the SuperNode ends and is started again.
    assert hostile.assert_right_below(started.pid) >= 4
    # One that dies is started again.
    pid = int(
        subprocess.run(
            ["pgrep", "-f", f"zk0d learner --config {folder}"], capture_output=True, text=True
        ).stdout.split()[0]
    )
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 90
    while look()["learner"]["restarts"] != 1:
        assert time.monotonic() < deadline
    wait_for("learner", "ready, waiting for a round")
    stopped = typed("zk0bot", "client", "stop", "--folder", str(folder))
    assert stopped.returncode == 0, stopped.stderr
    output, _ = started.communicate(timeout=30)
    assert started.returncode == 0
    assert "supernode        | " in output
    assert "learner          | " in output
    left = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True).stdout
    assert left == ""
