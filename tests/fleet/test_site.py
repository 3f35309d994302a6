"""Three bare guests and the playbooks: a finished run, an upgrade within one, and away again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fleet.conftest import Playbooks, Releases, mounts
from tests.guests.environment import REPOSITORY
from tests.guests.lab import Guest, Lab

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1800)]

BOT = "/opt/zk0d/current/bin/zk0bot"
NODES = ("left", "right")
INVENTORY = """\
all:
  vars:
    ansible_connection: containers.podman.podman
    ansible_python_interpreter: /usr/bin/python3
    cuda_torch_release: {release}
    cuda_torch_backend: pypi
    cuda_torch_python: /srv/zk0d-packages/python/bin/python3.12
    lerobot_datasets: [{{name: soreach, folder: {recordings}}}]
  children:
    coordinator:
      hosts:
        hub:
          ansible_host: {lab}-hub
          zk0d_server_hosts: [hub]
          zk0d_server_settings:
            evaluation: [{{name: held-out, dataset-uri: "local:/var/lib/zk0d/recordings/soreach"}}]
    contributors:
      vars:
        zk0d_client_coordinator: hub:9443
        zk0d_client_dataset: local:/var/lib/zk0d/recordings/soreach
        zk0d_client_settings: {{limits: {{max-steps: 500}}}}
      hosts:
        left: {{ansible_host: {lab}-left}}
        right: {{ansible_host: {lab}-right}}
"""
#: Folders whose files a machine has before zk0d and shall have after it.
SYSTEM = "/etc /usr /opt /root /home /srv /var/lib /var/cache"
#: What is no part of zk0d: packages that the roles had apt install, and what systemd and apt keep.
NOT_OURS = re.compile(
    r"^/(etc/(\.pwd|passwd|group|shadow|gshadow|subuid|subgid|ld\.so|alternatives|rc\d|init\.d|default|"
    r"systemd/system/[^/]*\.wants|apt|python3|ssl|mailcap|pci|ansible)"
    r"|usr/(share|lib|bin|sbin|local/lib/python|local/share)|var/(lib/(apt|dpkg|systemd|private|pci|ucf|python)"
    r"|cache/(apt|ldconfig|debconf|man|private))|root/(\.ansible|\.cache)|home/|srv/zk0d-packages)"
)


class Hosts:
    def __init__(self, lab: Lab) -> None:
        self.hub, *self.nodes = (
            lab.guest(name, mounts=mounts(), environment=False) for name in ("hub", *NODES)
        )
        for guest in self.all:
            guest.run("ldconfig && apt-get update -qq", timeout=180)

    @property
    def all(self) -> list[Guest]:
        return [self.hub, *self.nodes]

    def files(self) -> dict[str, set[str]]:
        listed = f"find {SYSTEM} -xdev \\( -type f -o -type l -o -type d \\) 2>/dev/null"
        return {
            guest.name: {
                line for line in guest.run(listed).stdout.splitlines() if not NOT_OURS.match(line)
            }
            for guest in self.all
        }


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Hosts:
    return Hosts(lab)


@pytest.fixture(scope="module")
def before(hosts: Hosts) -> dict[str, set[str]]:
    return hosts.files()


@pytest.fixture(scope="module")
def recordings(recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(recordings_folder, tmp_path_factory.mktemp("fleet") / "soreach"))


@pytest.fixture(scope="module")
def playbooks(
    lab: Lab,
    hosts: Hosts,
    releases: Releases,
    recordings: Path,
    before: dict[str, set[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Playbooks:
    for guest in hosts.all:
        releases.give(guest, "0.1.0")
    inventory = INVENTORY.format(
        lab=lab.name, release=releases.release("0.1.0"), recordings=recordings
    )
    return Playbooks(tmp_path_factory.mktemp("inventory"), inventory)


def changed(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """By host, what the recap counts as changed."""
    recap = done.stdout[done.stdout.index("PLAY RECAP") :]
    return {host: int(count) for host, count in re.findall(r"^(\S+) .*changed=(\d+)", recap, re.M)}


def journal(hub: Guest, run: str) -> list[dict[str, object]]:
    path = f"/var/lib/zk0d/server/runs/{run}/journal.jsonl"
    text = hub.run(["cat", path], check=False).stdout
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def kinds(hub: Guest, run: str) -> list[object]:
    return [line["kind"] for line in journal(hub, run)]


def committed(hub: Guest, run: str) -> list[object]:
    return [line["round"] for line in journal(hub, run) if line["kind"] == "round.committed"]


def test_check_mode_works_from_nothing(playbooks: Playbooks, hosts: Hosts) -> None:
    there = hosts.files()
    playbooks.run("site.yml", "--check")
    assert hosts.files() == there


def test_a_playbook_cut_off_in_the_middle_can_be_repeated(
    playbooks: Playbooks, hosts: Hosts
) -> None:
    """Ansible is killed while it sets up the coordinator; the test after this repeats it."""
    with playbooks.started("site.yml"):
        hosts.hub.wait_until(
            "test -L /opt/zk0d/current", 300, "the coordinator's version is in use"
        )
    assert hosts.hub.run("ls /opt/zk0d").stdout.split() == ["0.1.0", "current"]
    assert hosts.hub.run("test -e /etc/zk0d/server.toml", check=False).returncode != 0


def test_from_bare_machines_to_a_finished_run(playbooks: Playbooks, hosts: Hosts) -> None:
    playbooks.run("site.yml")
    for unit in ("zk0d-gateway", "zk0d-server", "zk0d-evaluator"):
        assert hosts.hub.unit_state(f"{unit}.service")["ActiveState"] == "active"
    for node in hosts.nodes:
        process = node.unit_state("zk0d-client.service")["MainPID"]
        command = node.run(["cat", f"/proc/{process}/cmdline"]).stdout
        assert "zk0d\0supernode" in command
        assert "zk0d_build_info" in node.run("curl -s http://127.0.0.1:9472/metrics").stdout
        assert node.read("/etc/zk0d/client.toml").count("max-steps = 500") == 1
    said = json.loads(hosts.hub.run([BOT, "status", "--json"], check=False).stdout)
    assert {node["name"] for node in said["nodes"] if node["online"]} == set(NODES)
    settings = "model-name=tiny num-server-rounds=3 local-steps=20 batch-size=8 eval-frames=40"
    run = hosts.hub.run([BOT, "run", "-c", settings]).stdout.strip()
    hosts.hub.wait_until(lambda: "run.finished" in kinds(hosts.hub, run), 300, "the run's end")
    assert committed(hosts.hub, run) == [0, 1, 2, 3], "0 is the baseline"


def test_a_second_run_changes_nothing(playbooks: Playbooks) -> None:
    assert set(changed(playbooks.run("site.yml")).values()) == {0}


def test_an_upgrade_within_a_run_loses_no_round(
    playbooks: Playbooks, hosts: Hosts, releases: Releases
) -> None:
    for guest in hosts.all:
        releases.give(guest, "0.1.1")
    settings = "model-name=tiny num-server-rounds=8 local-steps=40 batch-size=8 eval-frames=40"
    run = hosts.hub.run([BOT, "run", "-c", settings]).stdout.strip()
    hosts.hub.wait_until(lambda: "round.committed" in kinds(hosts.hub, run), 240, "a round")
    playbooks.run("upgrade.yml", "-e", f"cuda_torch_release={releases.release('0.1.1')}")
    for guest in hosts.all:
        assert "0.1.1" in guest.run([BOT, "version"]).stdout
    hosts.hub.wait_until(lambda: "run.finished" in kinds(hosts.hub, run), 600, "the run's end")
    assert committed(hosts.hub, run) == list(range(9))


def test_a_version_that_does_not_run_is_rolled_back(
    playbooks: Playbooks, hosts: Hosts, releases: Releases
) -> None:
    node = hosts.nodes[0]
    releases.give(node, "0.1.2")
    node.run(
        "printf 'raise SystemExit(70)\\n' >"
        " /opt/zk0d/0.1.2/lib/python3.12/site-packages/zk0d/services/supernode.py"
    )
    release = releases.release("0.1.2")
    done = playbooks.run(
        "upgrade.yml",
        *("-e", f"cuda_torch_release={release}", "-e", "zk0d_client_health_timeout=40"),
        *("--limit", "left"),
        check=False,
    )
    assert done.returncode != 0
    assert "0.1.1 is in use again and healthy" in done.stdout
    assert "0.1.1" in node.run([BOT, "version"]).stdout
    node.run([BOT, "client", "wait-online", "--timeout", "2m"], timeout=150)


def test_a_host_that_is_lost_in_the_middle_of_a_batch(
    playbooks: Playbooks, hosts: Hosts, releases: Releases
) -> None:
    """The second contributor loses its power while the first is upgraded."""
    left, right = hosts.nodes
    for guest in hosts.all:
        releases.give(guest, "0.1.3")
    upgrade = ("upgrade.yml", "-e", f"cuda_torch_release={releases.release('0.1.3')}")
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(playbooks.run, *upgrade, check=False)
        left.wait_until(
            "readlink /opt/zk0d/current | grep -q 0.1.3", 300, "the first's new version"
        )
        right.kill()
        said = done.result()
    assert said.returncode != 0
    assert re.search(r"^right .*(unreachable=1|failed=1)", said.stdout, re.M), said.stdout[-2000:]
    for guest in (hosts.hub, left):
        assert "0.1.3" in guest.run([BOT, "version"]).stdout
    right.start(120)
    assert "0.1.1" in right.run([BOT, "version"]).stdout, "it was not changed"
    # Repeated, it changes that one host alone.
    again = changed(playbooks.run(*upgrade))
    assert (again["hub"], again["left"]) == (0, 0)
    assert again["right"] > 0
    assert "0.1.3" in right.run([BOT, "version"]).stdout


def test_a_new_coordinator_from_a_backup(
    playbooks: Playbooks, hosts: Hosts, lab: Lab, releases: Releases, tmp_path: Path
) -> None:
    """As docs/fleet.md says it: a backup of what runs, another machine, the run goes on there."""
    old = hosts.hub
    in_use = old.run("basename $(readlink /opt/zk0d/current)").stdout.strip()
    settings = "model-name=tiny num-server-rounds=200 local-steps=10 batch-size=8 eval-frames=40"
    run = old.run([BOT, "run", "-c", settings]).stdout.strip()
    old.wait_until(lambda: len(committed(old, run)) > 2, 400, "two rounds")
    backup, restore, leaves_out = commands_of_the_docs()
    old.run(backup)
    kept = committed(old, run)
    old.copy_out("/root/zk0d-backup.tar.gz", tmp_path)
    authority = old.read("/etc/zk0d/tls/ca.crt")
    audit = old.read("/var/lib/zk0d/superlink/audit.jsonl").splitlines()
    old.kill()
    lab.remove(old)

    hub = hosts.hub = lab.guest("hub", mounts=mounts(), environment=False)
    # Other people's accounts have the numbers there that zk0d's users had on the old machine.
    hub.run("for n in 1 2 3; do useradd --system --no-create-home person$n; done")
    hub.run("ldconfig && apt-get update -qq", timeout=180)
    releases.give(hub, in_use)
    version = ("-e", f"cuda_torch_release={releases.release(in_use)}")
    playbooks.run("site.yml", *version, "--limit", "hub")
    assert hub.read("/etc/zk0d/tls/ca.crt") != authority, "it is another machine"
    hub.copy_in(tmp_path / "zk0d-backup.tar.gz", "/root/")
    hub.run(restore, timeout=180)
    hub.run(["rm", "/root/zk0d-backup.tar.gz"])
    assert hub.read("/etc/zk0d/tls/ca.crt") == authority
    assert leaves_out == "/var/lib/zk0d/server/flower"
    owners = hub.run("stat -c '%n %U' /var/lib/zk0d/server/* /etc/zk0d/*").stdout
    assert "person" not in owners
    for node in hosts.nodes:
        node.run([BOT, "client", "wait-online", "--timeout", "4m"], timeout=260)
    # The interrupted run goes on by itself, with what is committed as it was.
    hub.wait_until(lambda: len(committed(hub, run)) > len(kept) + 1, 600, "a round of the same run")
    assert committed(hub, run) == list(range(len(committed(hub, run))))
    assert "run.resumed" in kinds(hub, run)
    assert hub.read("/var/lib/zk0d/superlink/audit.jsonl").splitlines()[: len(audit)] == audit
    hub.run([BOT, "audit", "verify"])
    hub.run([BOT, "stop", run])
    hub.wait_until("systemctl show -p StatusText zk0d-server | grep -q 'was stopped at round'", 120)
    assert set(changed(playbooks.run("site.yml", *version)).values()) == {0}


def commands_of_the_docs() -> tuple[str, str, str]:
    """From docs/fleet.md: the backup's command, those of the new machine, and what is left out."""
    page = (REPOSITORY / "docs/fleet.md").read_text()
    chapter = page[page.index("## The coordinator from a backup") :]
    backup, restore = re.findall(r"```sh\n(.*?)```", chapter, re.S)[:2]
    (excluded,) = re.findall(r"--exclude=(\S+)", backup)
    prefix = "export PATH=/opt/zk0d/current/bin:$PATH; set -e; cd /root\n"
    return prefix + backup, prefix + restore, excluded


def test_uninstall_leaves_the_hosts_own_files(
    playbooks: Playbooks, hosts: Hosts, before: dict[str, set[str]]
) -> None:
    playbooks.run("uninstall.yml")
    for guest in hosts.all:
        assert guest.run("ls /etc/zk0d").stdout, "keys and settings stay"
    playbooks.run("uninstall.yml", "-e", "purge=true")
    after = hosts.files()
    for guest in hosts.all:
        left = sorted(after[guest.name] - before[guest.name])
        assert left == [], guest.name
        assert "zk0d" not in guest.read("/etc/passwd") + guest.read("/etc/group")
        assert guest.run("systemctl list-units --all --no-legend 'zk0d*'").stdout == ""
