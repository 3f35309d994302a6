"""``make release WHEELHOUSE=1`` as a whole, and machines without an index that install from it.

Gigabytes: 4 to fetch, about 6 in each of three guests; ``make test-air-gap`` alone runs it.
``ZK0D_RELEASE_FOLDER`` names a release with its wheelhouse that is there already.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import processes
from tests.fleet.conftest import Playbooks
from tests.guests.environment import REPOSITORY
from tests.guests.lab import Guest, Lab
from tests.guests.test_installer import INTERPRETER, Machine
from tests.setup.releases import find_uv

pytestmark = [pytest.mark.guest, pytest.mark.packages, pytest.mark.timeout(3000)]

BOT = "/opt/zk0d/current/bin/zk0bot"
#: What site.yml takes from the distribution; a site without a way out has a mirror of that.
DISTRIBUTION = "python3-venv ca-certificates pciutils nginx-light"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
INVENTORY = """\
all:
  vars:
    ansible_connection: containers.podman.podman
    ansible_python_interpreter: /usr/bin/python3
    cuda_torch_release: {release}
    cuda_torch_wheelhouse: "{{{{ cuda_torch_release }}}}/wheelhouse"
    cuda_torch_python: {interpreter}/bin/python{python}
    lerobot_datasets: [{{name: soreach, folder: {recordings}}}]
  children:
    coordinator:
      hosts:
        hub:
          ansible_host: {lab}-hub
          # Every host of a site could see it so, on a network share.
          cuda_torch_wheelhouse_on_host: true
          zk0d_server_hosts: [hub]
          zk0d_server_settings:
            evaluation: [{{name: held-out, dataset-uri: "local:/var/lib/zk0d/recordings/soreach"}}]
    contributors:
      hosts:
        left:
          ansible_host: {lab}-left
          zk0d_client_coordinator: hub:9443
          zk0d_client_dataset: local:/var/lib/zk0d/recordings/soreach
"""

type Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def print_it(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return print_it


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if there := os.environ.get("ZK0D_RELEASE_FOLDER"):
        yield Path(there).resolve()
        return
    folder = tmp_path_factory.mktemp("packages") / "zk0d"
    env = {"PYTHON": sys.executable, "WHEELHOUSE": "1"}
    env["PATH"] = f"{find_uv().parent}:{os.environ['PATH']}"
    began = time.monotonic()
    done = processes.run(
        [REPOSITORY / ".ci/make-release", folder],
        env={**os.environ, **env},
        text=True,
        timeout=2400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"made in {time.monotonic() - began:.0f} s, {size / 1e9:.2f} GB")
    yield folder
    # pytest would keep the last three.
    shutil.rmtree(folder)


def cut_off(guest: Guest) -> None:
    """No way out of the lab's network; the lab's own machines still reach each other."""
    network = guest.run("ip -o -f inet route show scope link | cut -d' ' -f1 | head -n1").stdout
    fetch = "apt-get update -qq -o APT::Update::Error-Mode=any"
    guest.run(fetch, timeout=180)
    guest.run(f"iptables -I OUTPUT ! -o lo ! -d {network.strip()} -j DROP")
    # A short timeout: packets are dropped, so nobody says no.
    blind = guest.run(
        f"{fetch} -o Acquire::http::Timeout=2 -o Acquire::https::Timeout=2 -o Acquire::Retries=0",
        check=False,
    )
    assert blind.returncode != 0, "there is a way out"


def proves(guest: Guest) -> str:
    """The version runs, and PyTorch and LeRobot are whole."""
    version = guest.run(["zk0bot", "version"], timeout=180).stdout
    guest.run(
        [
            "/opt/zk0d/current/bin/python",
            "-c",
            "import torch, lerobot, torchvision; assert torch.ones(2).sum() == 2",
        ],
        timeout=300,
    )
    return version


def test_the_release_holds_every_package(release: Path) -> None:
    lines = (release / "SHA256SUMS").read_text().splitlines()
    listed = {line[66:] for line in lines}
    wheels = {f"wheelhouse/{path.name}" for path in (release / "wheelhouse").iterdir()}
    assert wheels <= listed
    assert "uv" in listed
    names = {name.removeprefix("wheelhouse/").split("-")[0].lower() for name in wheels}
    assert {"torch", "lerobot", "flwr", "uv", "hatchling"} <= names
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=release, capture_output=True).returncode == 0
    uv = subprocess.run([release / "uv", "--version"], capture_output=True, text=True)
    assert uv.stdout.startswith("uv ")


def test_the_installer_without_an_index(lab: Lab, release: Path, say: Say) -> None:
    mounts = {Path(sys.base_prefix): INTERPRETER, release: "/srv/release"}
    guest = lab.guest("bare", mounts=mounts, environment=False)
    try:
        Machine(guest)
        cut_off(guest)
        began = time.monotonic()
        done = guest.run(
            ["bash", "/srv/release/get-zk0bot.sh", "--from", "/srv/release", "--role", "client"],
            timeout=1800,
        )
        say(f"get-zk0bot.sh --from FOLDER without an index: {time.monotonic() - began:.0f} s")
        assert "Next: zk0bot client join" in done.stderr
        assert proves(guest)
        # What was fetched for the installation alone is gone.
        assert guest.run("ls /opt/zk0d").stdout.split()[1:] == ["current"]
    finally:
        lab.remove(guest)


def test_site_without_an_index(
    lab: Lab, release: Path, recordings_folder: Path, tmp_path: Path, say: Say
) -> None:
    interpreter = {Path(sys.base_prefix): INTERPRETER}
    recordings = Path(shutil.copytree(recordings_folder, tmp_path / "soreach"))
    share = {release / "wheelhouse": str(release / "wheelhouse")}
    hub = lab.guest("hub", mounts={**interpreter, **share}, environment=False)
    left = lab.guest("left", mounts=interpreter, environment=False)
    try:
        for guest in (hub, left):
            Machine(guest)
            guest.run(
                f"apt-get update -qq && apt-get install -y -qq {DISTRIBUTION}"
                " && systemctl disable --now nginx",
                timeout=300,
            )
            cut_off(guest)
        inventory = INVENTORY.format(
            lab=lab.name,
            release=release,
            recordings=recordings,
            interpreter=INTERPRETER,
            python=PYTHON,
        )
        playbooks = Playbooks(tmp_path, inventory)
        began = time.monotonic()
        playbooks.run("site.yml", timeout=2400)
        say(f"site.yml on two hosts without an index: {time.monotonic() - began:.0f} s")
        for guest in (hub, left):
            assert proves(guest)
            assert guest.run("ls -A /opt/zk0d/releases/*/").stdout.count("wheelhouse") == 0
        run = hub.run(
            [
                BOT,
                "run",
                "-c",
                "model-name=tiny num-server-rounds=1 local-steps=5 min-fit-clients=1",
            ]
        ).stdout.strip()
        journal = f"/var/lib/zk0d/server/runs/{run}/journal.jsonl"
        hub.wait_until(f"grep -q run.finished {journal}", 300, "the run's end")
    finally:
        for guest in (hub, left):
            lab.remove(guest)
