"""A contributor without root: one unit of the user's own systemd, with a read-only home."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.lab import Guest, Lab
from tests.guests.test_federation import recordings_of
from tests.guests.test_installer import BOT, RUN, start_hub

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

UNIT = Path(__file__).parents[2] / "systemd/user/zk0d-client.service"
SHIELD = UNIT.with_name("zk0d-client.service.d") / "10-home.conf"
HOME, SETTINGS, UNITS = "/home/ann", "/home/ann/.config/zk0d", "/home/ann/.config/systemd/user"
type Done = subprocess.CompletedProcess[str]


class Ann:
    """A user of a guest with a systemd of her own, and zk0d in her home."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        guest.run(
            "useradd --create-home --shell /bin/bash ann && id=$(id -u ann) &&"
            " install -d -m 0700 -o ann -g ann /run/user/$id &&"
            " systemd-run --quiet --unit=anns-systemd --uid=ann --gid=ann --property=Delegate=yes"
            f" --setenv=XDG_RUNTIME_DIR=/run/user/$id --setenv=HOME={HOME}"
            " /lib/systemd/systemd --user"
        )
        number = guest.run("id -u ann").stdout.strip()
        self._env = ["env", f"HOME={HOME}", f"XDG_RUNTIME_DIR=/run/user/{number}"]
        guest.wait_until(lambda: not self.ctl("show-environment", check=False).returncode, 60)
        for path, target in ((UNIT, UNIT.name), (SHIELD, f"{SHIELD.parent.name}/{SHIELD.name}")):
            guest.write(f"{UNITS}/{target}", path.read_text(), owner="ann:ann")
        guest.run(
            f"mkdir -p {HOME}/.local/share && ln -s /opt/zk0d {HOME}/.local/share/zk0d &&"
            f" chown -R ann:ann {HOME}"
        )

    def run(self, *words: str, check: bool = True, timeout: float = 120) -> Done:
        return self.guest.run([*self._env, *words], user="ann", check=check, timeout=timeout)

    def ctl(self, *words: str, check: bool = True) -> Done:
        return self.run("systemctl", "--user", *words, check=check)

    def shows(self, name: str) -> str:
        said = self.ctl("show", UNIT.name, f"--property={name}", "--value")
        return str(said.stdout.strip())


@pytest.fixture
def hub(lab: Lab, recordings_folder: Path, tmp_path: Path) -> Iterator[Guest]:
    guest = start_hub(lab, recordings_of(recordings_folder, tmp_path))
    yield guest
    lab.remove(guest)


def test_a_user_takes_part_and_the_home_is_read_only(lab: Lab, hub: Guest, tmp_path: Path) -> None:
    node = lab.guest("node", mounts={tmp_path / "recordings": "/srv/recordings"})
    ann = Ann(node)
    invite = hub.run([BOT, "server", "invite"]).stdout.strip()
    join = (BOT, "client", "join", invite, "--name", "ann", "--folder", SETTINGS)
    asked = ann.run(*join, "--dataset", "local:/srv/recordings").stdout
    hub.write("/tmp/request", asked)
    hub.run([BOT, "node", "approve", "/tmp/request", "--yes"])
    # A machine's own services make the folder in which systemd 252 sets namespaces up. A guest has
    # no such service, and a user's systemd may not make the folder.
    node.run("systemd-run --quiet --wait --property=PrivateTmp=yes true")
    ann.ctl("daemon-reload")
    ann.ctl("start", "--no-block", UNIT.name)
    wait = (BOT, "client", "wait-online", "--timeout", "4m", "--folder", SETTINGS)
    assert "online" in ann.run(*wait, timeout=280).stdout, ann.shows("StatusText")
    pid = ann.shows("MainPID")
    for place in (HOME, "/srv", "/usr"):
        write = f"nsenter --target {pid} --mount touch {place}/written"
        refused = node.run(write, check=False)
        assert refused.returncode != 0
        assert "Read-only file system" in refused.stderr, place
    for place in (SETTINGS, f"{HOME}/.cache/zk0d"):
        node.run(f"nsenter --target {pid} --mount touch {place}/written")
    status = node.read(f"/proc/{pid}/status")
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    run = hub.run([BOT, "run", "-c", RUN]).stdout.strip()
    journal = f"/var/lib/zk0d/server/runs/{run}/journal.jsonl"
    hub.wait_until(f"grep -E 'run.(finished|failed)' {journal}", 240, "the run's end")
    ended = hub.read(journal).replace(" ", "")
    assert '"kind":"run.finished"' in ended
    assert '"node":"ann"' in ended
