"""A coordinator and two contributors as the project's own units on real systemd."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.lab import Guest, Lab, install_units

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

HUB_STAND_IN = Path(__file__).parents[1] / "release/hub_stand_in.py"
BOT = "/opt/zk0d/current/bin/zk0bot"
NODES = ("left", "right")
START_SECONDS = 180
RUN = "model-name=tiny num-server-rounds=3 local-steps={} batch-size=8 eval-frames=40"


class Fleet:
    """The guests, and what an operator does with them."""

    def __init__(self, lab: Lab, recordings: Path) -> None:
        self._mounts = {recordings: "/srv/recordings"}
        self._lab = lab
        self._make_coordinator()
        self.nodes = self._join()
        # A start waits until torch is loaded, which takes a busy machine long.
        self.hub.run([BOT, "server", "start"], timeout=START_SECONDS)
        self._start()

    def _make_coordinator(self) -> None:
        self.hub = self._machine("hub", "server")
        self.hub.write(
            "/etc/zk0d/server.toml",
            # The tiny policy's weights would fit into messages.
            "[transfer]\nmessage-kib = 0\n"
            "[[evaluation]]\nname = 'held-out'\ndataset-uri = 'local:/srv/recordings'\n",
        )
        self.hub.run([BOT, "server", "init", "--host", "hub"])
        self.invite = self.hub.run([BOT, "server", "invite"]).stdout.strip()

    def _join(self) -> list[Guest]:
        return [self._contributor(name) for name in NODES]

    def _start(self) -> None:
        for node in self.nodes:
            node.run([BOT, "client", "start"], timeout=START_SECONDS)

    def close(self) -> None:
        for guest in (self.hub, *self.nodes):
            self._lab.remove(guest)

    def _machine(self, name: str, role: str) -> Guest:
        guest = self._lab.guest(name, mounts=self._mounts)
        install_units(guest)
        return guest

    def _contributor(self, name: str) -> Guest:
        node = self._machine(name, "client")
        self._let_in(node, "--name", name)
        return node

    def _let_in(self, node: Guest, *options: str) -> None:
        join = [BOT, "client", "join", self.invite, *options]
        asked = node.run([*join, "--dataset", "local:/srv/recordings"]).stdout
        self.hub.write("/tmp/request", asked)
        self.hub.run([BOT, "node", "approve", "/tmp/request", "--yes"])

    def status(self, guest: Guest, unit: str) -> str:
        return guest.unit_state(unit).get("StatusText", "")

    def wait_for(self, guest: Guest, unit: str, words: str, seconds: float = 90) -> float:
        """Wait until a service's status has these words; how long it took."""
        began = time.monotonic()
        guest.wait_until(lambda: words in self.status(guest, unit), seconds, f"'{words}' of {unit}")
        return time.monotonic() - began

    def wait_online(self, seconds: float = 180) -> None:
        for node in self.nodes:
            self.wait_for(node, "zk0d-client", "online;", seconds)

    def start_run(self, steps: int = 20) -> str:
        return self.hub.run([BOT, "run", "-c", RUN.format(steps)]).stdout.strip()

    def journal(self, run: str) -> list[dict[str, object]]:
        path = f"/var/lib/zk0d/server/runs/{run}/journal.jsonl"
        text = self.hub.run(["cat", path], check=False).stdout
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    def kinds(self, run: str) -> list[object]:
        return [line["kind"] for line in self.journal(run)]

    def wait_for_end(self, run: str, seconds: float = 240) -> None:
        self.hub.wait_until(
            lambda: {"run.finished", "run.failed"} & set(self.kinds(run)), seconds, "the run's end"
        )
        assert "run.finished" in self.kinds(run), self.journal(run)[-1]


@pytest.fixture(scope="module")
def fleet(
    lab: Lab, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    made = Fleet(lab, recordings_of(recordings_folder, tmp_path_factory.mktemp("fleet")))
    yield made
    made.close()


def recordings_of(source: Path, folder: Path) -> Path:
    """A copy that a learner, who is another user, may read: LeRobot's videos are their owner's."""
    copy = Path(shutil.copytree(source, folder / "recordings"))
    for path in copy.rglob("*"):
        path.chmod(path.stat().st_mode | 0o044)
    return copy


def kill_process(guest: Guest, words: str, signal: str = "KILL") -> None:
    """Send a signal to the newest process with these words on its command line."""
    # In brackets, so that the shell that looks does not find itself.
    pattern = shlex.quote(f"[{words[0]}]{words[1:]}")
    guest.wait_until(f"pkill -{signal} -n -f -- {pattern}", 60)


def test_three_rounds_from_units_alone(fleet: Fleet) -> None:
    fleet.wait_online()
    run = fleet.start_run()
    fleet.wait_for_end(run)
    rounds = [line["round"] for line in fleet.journal(run) if line["kind"] == "round.committed"]
    assert rounds == [0, 1, 2, 3]
    fleet.wait_for(fleet.hub, "zk0d-server", "finished, round 3/3, loss")
    for guest in (fleet.hub, *fleet.nodes):
        said = guest.run([BOT, "status", "--json"])
        services = json.loads(said.stdout)["services"]
        states = {service["name"]: service["state"] for service in services}
        assert states.pop("zk0d-gpu-power", "active (exited)") == "active (exited)"
        assert set(states.values()) == {"active (running)"}
        assert not any(service["todo"] for service in services)
        assert len(states) == 4


def test_weights_and_updates_travelled_by_the_gateway(fleet: Fleet) -> None:
    said = fleet.hub.run("journalctl -t zk0d_gateway -o cat -q --no-pager").stdout
    requests = [line.split('"') for line in said.splitlines() if "/zk0d/v1/" in line]
    for words, status in (("GET /zk0d/v1/down/", "200"), ("PUT /zk0d/v1/up/", "201")):
        answers = {end.split()[0] for _, asked, end, *_ in requests if asked.startswith(words)}
        assert answers == {status}, words
    left = fleet.hub.run("find /var/lib/zk0d/transfer -type f").stdout
    assert left == "", "nothing stays after the run"


def test_a_runs_results_are_reported_and_sent(fleet: Fleet) -> None:
    """Its report by itself; its checkpoint to a stand-in of the hub, by a user of its own."""
    hub = fleet.hub
    hub.copy_in(HUB_STAND_IN, "/root/hub_stand_in.py")
    hub.run(
        "systemd-run --quiet --unit=hub-stand-in /opt/zk0d/current/bin/python -c"
        " \"import sys; sys.path.insert(0, '/root'); import hub_stand_in, signal;"
        ' print(hub_stand_in.HubStandIn(8099).url, flush=True); signal.pause()"'
    )
    hub.write("/etc/zk0d/hf.token", "hf_of_the_test\n")
    hub.run(["chmod", "600", "/etc/zk0d/hf.token"])
    hub.write(
        "/etc/systemd/system/zk0d-publish.service.d/stand-in.conf",
        "[Service]\nEnvironment=HF_ENDPOINT=http://127.0.0.1:8099 HF_HUB_DISABLE_XET=1\n",
    )
    hub.run(["systemctl", "daemon-reload"])
    fleet.wait_online()
    wanted = " initial-lr=0.003 warmup-steps=1 hf-repo-id=lab/arm wandb-project=zk0d"
    run = hub.run([BOT, "run", "-c", RUN.format(40) + wanted]).stdout.strip()
    fleet.wait_for_end(run)
    hub.wait_until(f"test -s /var/lib/zk0d/server/runs/{run}/report/policy_loss.png", 120)

    hub.run(["systemctl", "start", "zk0d-publish"], timeout=120)
    sent = json.loads(hub.read(f"/var/lib/zk0d/publish/{run}.json"))
    assert sent["tag"] == f"fl-run-{run}-round-3", sent
    assert sent["wandb_lines"] > 3
    assert "pushed to http://127.0.0.1:8099" in hub.run("journalctl -u zk0d-publish").stdout
    checkpoint = f"/var/lib/zk0d/releases/{run}/checkpoint_round_3"
    for path, allowed in (
        (f"{checkpoint}/model.safetensors", True),
        (f"/var/lib/zk0d/server/runs/{run}/journal.jsonl", True),
        ("/var/lib/zk0d/superlink/audit.jsonl", False),
        ("/var/cache/zk0d/evaluator", False),
        ("/etc/zk0d/hf.token", False),
    ):
        read = hub.run(["head", "-c1", path], check=False, user="zk0d-publish")
        # A folder that may be read answers that it is one.
        readable = read.returncode == 0 or "Is a directory" in read.stderr
        assert readable is allowed, path
    written = hub.run(["touch", f"{checkpoint}/mine"], check=False, user="zk0d-publish")
    assert written.returncode != 0
    hub.run(["systemctl", "stop", "hub-stand-in"])  # a later test looks for processes left over


def test_the_gateway_is_the_only_way_in(fleet: Fleet) -> None:
    node = fleet.nodes[0]
    for port in (8000, 9480, 9470, 9471):
        assert node.run(
            f"curl -ks --max-time 3 https://hub:{port}/ http://hub:{port}/", check=False
        ).returncode
    ask = "curl -s --cacert /etc/zk0d/tls/ca.crt -o /dev/null -w '%{http_code}' -X POST"
    assert node.run(f"{ask} https://hub:9443/v1/control/list-nodes").stdout == "403"


def test_the_learner_has_no_network_and_the_node_no_recordings_owner(fleet: Fleet) -> None:
    node = fleet.nodes[0]
    learner = node.unit_state("zk0d-learner")["MainPID"]
    links = node.run(f"nsenter -t {learner} -n ip -o link").stdout
    assert "eth0" not in links
    for unit in ("zk0d-client", "zk0d-client-superexec", "zk0d-learner"):
        pid = node.unit_state(unit)["MainPID"]
        assert node.run(f"stat -c %U /proc/{pid}").stdout.strip() != "root"


def test_the_journal_has_fields(fleet: Fleet) -> None:
    said = fleet.hub.run("journalctl --no-pager -o cat ZK0D_ROUND=3 SYSLOG_IDENTIFIER=zk0d").stdout
    assert "round 3 is committed, policy loss" in said
    assert fleet.hub.run("journalctl -p err -u zk0d-server -o cat -q --no-pager").stdout == ""


def test_a_pause_survives_a_reboot_and_ends_after_its_time(fleet: Fleet) -> None:
    node = fleet.nodes[0]
    node.run([BOT, "client", "pause", "--for", "45s"])
    fleet.wait_for(node, "zk0d-client", "paused until", 30)
    node.restart()
    fleet.wait_for(node, "zk0d-client", "paused until", 60)
    said = node.run([BOT, "status", "--json"], check=False)
    assert json.loads(said.stdout)["node"]["held"] == "pause"
    online = node.run([BOT, "client", "wait-online", "--timeout", "3m"], timeout=200)
    assert online.stdout.strip() == "online"


def test_a_drain_lasts_until_it_is_ended_or_the_next_boot(fleet: Fleet) -> None:
    node = fleet.nodes[0]
    fleet.wait_online()
    node.run([BOT, "client", "drain", "--timeout", "60s"], timeout=90)
    assert "drained" in fleet.status(node, "zk0d-client")
    node.run([BOT, "client", "resume"])
    fleet.wait_for(node, "zk0d-client", "online;")
    node.run([BOT, "client", "drain", "--timeout", "60s"], timeout=90)
    node.restart()
    fleet.wait_for(node, "zk0d-client", "online;")


def test_recordings_in_a_closed_home(fleet: Fleet) -> None:
    node = fleet.nodes[0]
    node.run(
        "mkdir -p /home/ann && cp -r /srv/recordings '/home/ann/my recordings'"
        " && chmod -R go-rwx /home/ann"
    )
    start = [BOT, "client", "start", "/home/ann/my recordings"]
    refused = node.run(start, check=False)
    assert refused.returncode == 78
    assert "the user zk0d-learner cannot read it; allow it: setfacl -R -m" in refused.stderr
    assert "local:/srv/recordings" in node.read("/etc/zk0d/client.toml"), "nothing was changed"
    node.run("chmod -R a+rX '/home/ann/my recordings'")  # the home itself stays closed
    node.run(start)
    assert 'dataset-uri = "local:/home/ann/my recordings"' in node.read("/etc/zk0d/client.toml")
    online = node.run([BOT, "client", "wait-online", "--timeout", "2m"], timeout=150)
    assert online.stdout.strip() == "online"
    learner = node.unit_state("zk0d-learner")["MainPID"]
    assert node.run(f"ls /proc/{learner}/root/home/ann").stdout.split("\n")[0] == "my recordings"
    status = json.loads(node.run([BOT, "status", "--json"]).stdout)
    assert status["ok"]
    node.run([BOT, "client", "start", "/srv/recordings"])
    drop_in = "/etc/systemd/system/zk0d-learner.service.d/50-recordings.conf"
    assert node.run(["test", "-e", drop_in], check=False).returncode, "it is taken back"
    fleet.wait_online()


def test_an_invite_with_a_token_lets_one_node_in(fleet: Fleet) -> None:
    """By the units' own users and rights; a second node waits for the operator."""
    said = fleet.hub.run([BOT, "server", "invite", "--for", "1h", "--uses", "1"]).stdout
    (invite,) = [word for word in said.split() if word.startswith("zk0d-invite-1:")]
    for name, words in (("late", "online;"), ("later", "is not enrolled")):
        node = fleet._machine(name, "client")
        join = [BOT, "client", "join", invite, "--name", name]
        node.run([*join, "--dataset", "local:/srv/recordings"])
        node.run([BOT, "client", "start"], timeout=START_SECONDS)
        fleet.wait_for(node, "zk0d-client", words, 180)
        node.run([BOT, "client", "stop"])
        fleet._lab.remove(node)
    assert fleet.hub.run(["ls", "/etc/zk0d/roster.d"]).stdout.split().count("late.pub") == 1
    assert "later.pub" not in fleet.hub.run(["ls", "/etc/zk0d/roster.d"]).stdout
    fleet.hub.run("rm /etc/zk0d/roster.d/late.pub")


def test_a_wrong_setting_is_named_and_not_retried(fleet: Fleet) -> None:
    node = fleet.nodes[0]
    right = node.read("/etc/zk0d/client.toml")
    node.write("/etc/zk0d/client.toml", right + "\n[supernode]\nprot = 1\n")
    node.systemctl("restart", "zk0d-client", check=False)
    node.wait_until(lambda: node.unit_state("zk0d-client")["ActiveState"] == "failed", 30)
    state = node.unit_state("zk0d-client")
    assert state["ExecMainStatus"] == "78"
    assert state["NRestarts"] == "0"
    assert "unknown key 'supernode.prot' (did you mean 'port'?)" in node.journal("zk0d-client")
    said = node.run([BOT, "status"], check=False)
    assert said.returncode == 1
    assert "what to do: zk0d-client: journalctl -u zk0d-client says why" in said.stdout
    node.write("/etc/zk0d/client.toml", right)
    node.systemctl("restart", "zk0d-client")
    fleet.wait_online(180)


def test_a_stop_is_quick_and_leaves_no_process(fleet: Fleet) -> None:
    """Last: it stops the services."""
    for guest, role in ((fleet.nodes[0], "client"), (fleet.hub, "server")):
        began = time.monotonic()
        guest.run([BOT, role, "stop"])
        assert time.monotonic() - began < 25
        left = guest.run("pgrep -af '[z]k0d|[f]lower'", check=False).stdout
        assert left == ""
