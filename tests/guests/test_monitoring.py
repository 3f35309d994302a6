"""Three nodes, a real Prometheus and its alertmanager: faults raise the alerts, cures clear them.

Time is compressed: what an alert waits for is seconds here. Expressions are those that are shipped.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.guests.lab import Guest, Lab
from tests.guests.test_faults import wait_for_updates
from tests.guests.test_federation import BOT, Fleet
from tests.monitoring.tools import program
from zk0d.monitoring.export import export

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1800)]

PROGRAMS, FOLDER = "/opt/prometheus", "/srv/prometheus"
TEMPLATES = "/usr/share/prometheus/alertmanager"
WINDOW, HELD, AWAY = "60s", "5s", "30"
LONG = (
    "model-name=tiny num-server-rounds=2000 local-steps=10 batch-size=4 eval-frames=40"
    " eval-frequency=0 min-fit-clients=1 keep-rounds=3"
)
#: The host's own disk, which all guests have.
NOT_OURS = {"Zk0dDiskFilling", "Zk0dDiskFull"}
_POISONED = """\
import math, sys
from zk0d.learner.contributor import Contributor
from zk0d.services.main import main
honest = Contributor._train
def poisoned(self, task, payload, control):
    reply, update = honest(self, task, payload, control)
    figures = reply.figures.model_copy(update={"policy_loss": math.nan})
    assert math.isnan(figures.policy_loss) and not math.isnan(reply.figures.policy_loss)
    return reply.model_copy(update={"figures": figures}), update
Contributor._train = poisoned
sys.argv = ["zk0d", "learner"]
main()
"""


def compressed(rules: str) -> str:
    """The same rules with seconds in the place of minutes and hours."""
    content = yaml.safe_load(rules)
    for group in content["groups"]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"\[\d+[smhd]\]", f"[{WINDOW}]", rule["expr"])
            if "for" in rule:
                rule["for"] = HELD
            if rule.get("alert") == "Zk0dNodeLost":
                rule["expr"] = rule["expr"].replace("> 600", f"> {AWAY}")
    return str(yaml.safe_dump(content, sort_keys=False))


def _templates() -> Path:
    """Debian's alertmanager reads its templates from a fixed place."""
    return Path(program("prometheus-alertmanager")).parents[1] / "share/prometheus/alertmanager"


class Watched(Fleet):
    """A fleet of three nodes whose coordinator runs Prometheus and alertmanager."""

    def __init__(self, lab: Lab, recordings: Path, programs: Path) -> None:
        self._programs = programs
        super().__init__(lab, recordings)
        third = self._contributor("third")
        third.run([BOT, "client", "start"])
        self.nodes.append(third)
        for node in self.nodes:
            self._open(node)

    def _machine(self, name: str, role: str) -> Guest:
        if role == "server":
            whole = {**self._mounts, self._programs: PROGRAMS, _templates(): TEMPLATES}
            plain, self._mounts = self._mounts, whole
            try:
                return super()._machine(name, role)
            finally:
                self._mounts = plain
        return super()._machine(name, role)

    @staticmethod
    def _open(node: Guest) -> None:
        """Let the coordinator read this node's metrics, as docs/units.md says."""
        node.run("printf '\\n[metrics]\\nhost = \"0.0.0.0\"\\n' >> /etc/zk0d/client.toml")
        for unit in ("zk0d-client", "zk0d-client-superexec"):
            node.write(
                f"/etc/systemd/system/{unit}.service.d/prometheus.conf",
                "[Service]\nIPAddressAllow=any\n",
            )
        node.systemctl("daemon-reload")
        node.systemctl("restart", "zk0d-client", "zk0d-client-superexec")

    def watch(self, folder: Path) -> None:
        """Start Prometheus and alertmanager in the coordinator's guest."""
        export(folder)
        for path in (folder / "rules").iterdir():
            self.hub.write(f"{FOLDER}/rules/{path.name}", compressed(path.read_text()))
        jobs = [
            {
                "job_name": "zk0d-server",
                "static_configs": [{"targets": ["127.0.0.1:9470", "127.0.0.1:9471"]}],
            },
            {
                "job_name": "zk0d-client",
                "static_configs": [
                    {
                        "targets": [f"{node.address}:{port}" for port in (9472, 9473)],
                        "labels": {"node": node.name},
                    }
                    for node in self.nodes
                ],
            },
        ]
        config = {
            "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
            "rule_files": ["rules/*.yml"],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]},
            "scrape_configs": jobs,
        }
        self.hub.write(f"{FOLDER}/prometheus.yml", yaml.safe_dump(config))
        self.hub.write(
            f"{FOLDER}/alertmanager.yml",
            "route: {receiver: nobody, group_wait: 1s}\nreceivers: [{name: nobody}]\n",
        )
        for name, *arguments in (
            (
                "prometheus-alertmanager",
                f"--config.file={FOLDER}/alertmanager.yml",
                f"--storage.path={FOLDER}/alertmanager",
                "--cluster.listen-address=",
            ),
            (
                "prometheus",
                f"--config.file={FOLDER}/prometheus.yml",
                f"--storage.tsdb.path={FOLDER}/data",
                "--web.listen-address=127.0.0.1:9090",
            ),
        ):
            self.hub.run(["systemd-run", f"--unit={name}", f"{PROGRAMS}/{name}", *arguments])
        self.hub.wait_until("curl -fs http://127.0.0.1:9090/-/ready", 60)
        self.hub.wait_until("curl -fs http://127.0.0.1:9093/-/ready", 60)

    def alerts(self) -> set[tuple[str, str]]:
        """What alertmanager has now: alerts with the nodes that they are about."""
        said = self.hub.run("curl -fs 'http://127.0.0.1:9093/api/v2/alerts?active=true'")
        return {
            (labels["alertname"], labels.get("node", ""))
            for labels in (alert["labels"] for alert in json.loads(said.stdout))
            if labels["alertname"] not in NOT_OURS
        }

    def wait_for_alerts(self, *wanted: tuple[str, str], seconds: float = 400) -> float:
        began = time.monotonic()
        self.hub.wait_until(
            lambda: set(wanted) <= self.alerts(), seconds, f"{wanted}, not only {self.alerts()}"
        )
        return time.monotonic() - began

    def wait_for_quiet(self, seconds: float = 400) -> float:
        began = time.monotonic()
        try:
            self.hub.wait_until(lambda: not self.alerts(), seconds, "no alert")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; there are {self.alerts()}") from None
        return time.monotonic() - began

    def targets_up(self) -> int:
        said = self.hub.run(
            "curl -fsG http://127.0.0.1:9090/api/v1/query --data-urlencode 'query=sum(up)'"
        )
        result = json.loads(said.stdout)["data"]["result"]
        return int(result[0]["value"][1]) if result else 0


@pytest.fixture(scope="module")
def watched(
    lab: Lab, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("monitoring")
    programs = folder / "programs"
    programs.mkdir()
    for name in ("prometheus", "prometheus-alertmanager"):
        shutil.copy(program(name), programs)
    recordings = folder / "recordings"
    shutil.copytree(recordings_folder, recordings)
    for path in recordings.rglob("*"):
        path.chmod(path.stat().st_mode | 0o044)
    made = Watched(lab, recordings, programs)
    made.wait_online(240)
    made.watch(folder / "files")
    made.hub.wait_until(lambda: made.targets_up() == 8, 120, "eight targets")
    yield made
    made.close()


@pytest.fixture(scope="module")
def run(watched: Watched) -> str:
    """A run in which all three nodes take part, with nothing to complain about."""
    number = watched.hub.run([BOT, "run", "-c", LONG]).stdout.strip()
    wait_for_updates(watched, number, {node.name for node in watched.nodes}, time.time())
    watched.wait_for_quiet()
    return number


def test_a_poisoned_node_raises_alerts(
    watched: Watched, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    node = watched.nodes[0]
    drop_in = "/etc/systemd/system/zk0d-learner.service.d/poisoned.conf"
    node.write("/srv/poisoned.py", _POISONED)
    node.write(
        drop_in, "[Service]\nExecStart=\nExecStart=/opt/zk0d/current/bin/python /srv/poisoned.py\n"
    )
    node.systemctl("daemon-reload")
    node.systemctl("restart", "zk0d-learner")
    fired = watched.wait_for_alerts(("Zk0dUpdateNotFinite", node.name))
    node.run(["rm", drop_in])
    node.systemctl("daemon-reload")
    node.systemctl("restart", "zk0d-learner")
    cleared = watched.wait_for_quiet()
    with capsys.disabled():
        print(f"\npoisoned: fires after {fired:.0f} s, clears {cleared:.0f} s after the cure")


def test_a_killed_node_and_a_node_without_network_raise_alerts(
    watched: Watched, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, cut, killed = watched.nodes
    cut.cut()
    killed.kill()
    fired = watched.wait_for_alerts(
        *(
            (alert, node.name)
            for alert in ("Zk0dNodeLost", "Zk0dTargetDown")
            for node in (cut, killed)
        )
    )
    names = {node for _, node in watched.alerts()}
    assert watched.nodes[0].name not in names, "the one that is well is in no alert"
    cut.heal()
    killed.start(180)
    wait_for_updates(watched, run, {node.name for node in watched.nodes}, time.time())
    cleared = watched.wait_for_quiet()
    with capsys.disabled():
        print(f"\nkilled, cut off: fire after {fired:.0f} s, clear {cleared:.0f} s after return")
    assert "run.failed" not in watched.kinds(run)


def test_top_shows_it_all_from_prometheus(watched: Watched, run: str) -> None:
    said = watched.hub.run(
        ["env", "COLUMNS=120", BOT, "top", "--once", "--prometheus", "http://127.0.0.1:9090"]
    ).stdout
    for node in watched.nodes:
        assert re.search(rf"^{node.name} +online", said, re.MULTILINE), said
    own = watched.hub.run(["env", "COLUMNS=120", BOT, "top", "--once"]).stdout
    assert f"run {run}" in own
    assert "does not answer" not in own
