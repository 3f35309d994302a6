"""get-zk0bot.sh on bare machines: nothing of zk0d is in these guests before it runs.

Most releases hold a stand-in for zk0d with the project's own units; the last test installs zk0d
itself and takes part in a round.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.guests.lab import Guest, Lab, install_units
from tests.guests.test_federation import recordings_of
from tests.setup.releases import find_uv, make_key, make_release, write_sums

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[2]
UNITS = REPOSITORY / "systemd"
STAND_IN = Path(__file__).with_name("stand_in.py")
INTERPRETER = "/opt/python"
VERSIONS = {"0.1.0": True, "0.2.0": True, "0.3.0": False}  #: and whether it gets healthy
SITE = "server { listen 127.0.0.1:8080; root /srv/releases; }\n"
#: What every boot or login writes, and what a package manager would, too.
NOT_COMPARED = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/srv", "/opt/python", "/var/log/journal"),
    *("/var/lib/systemd", "/var/lib/nginx", "/var/log/nginx", "/etc/machine-id"),
)
SETTINGS = "/etc/zk0d/client.toml"


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three signed releases, as a web server would have them."""
    root = tmp_path_factory.mktemp("releases")
    root.chmod(0o755)  # for nginx
    key = make_key(tmp_path_factory.mktemp("key"))
    units = {
        f"share/zk0d/systemd/{path.relative_to(UNITS)}": path.read_text()
        for path in UNITS.rglob("*.*")
        if path.is_file()
    }
    for version, healthy in VERSIONS.items():
        program = f"VERSION = {version!r}\nHEALTHY = {healthy}\n{STAND_IN.read_text()}"
        folder = make_release(
            root / f"zk0d-{version}",
            version,
            program=program,
            files=units,
            key=key,
            url="http://127.0.0.1:8080/zk0d-{version}",
        )
        (folder / "uv").unlink()
        shutil.copy(find_uv().resolve(), folder / "uv")
        write_sums(folder, key)
    return root


class Machine:
    """A bare guest that has an interpreter and sees the releases, by path and by HTTP."""

    def __init__(self, guest: Guest, *, interpreter: bool = True) -> None:
        self.guest = guest
        guest.run(["rm", "-df", "/opt/zk0d"])
        if interpreter:
            self._give_interpreter(guest)
        guest.write("/etc/nginx/conf.d/releases.conf", SITE)

    @staticmethod
    def _give_interpreter(guest: Guest) -> None:
        # The distribution's Python is older; this stands for one that a person installed. It was
        # built for another folder, so an environment must not take the link's place for its home.
        guest.run(f"echo {INTERPRETER}/lib >/etc/ld.so.conf.d/python.conf && ldconfig")
        guest.write(
            "/usr/local/bin/python3.12", f'#!/bin/sh\nexec {INTERPRETER}/bin/python3.12 "$@"\n'
        )
        guest.run(["chmod", "755", "/usr/local/bin/python3.12"])

    def serve(self) -> None:
        self.guest.run("nginx")
        self.guest.wait_until("curl -fsS http://127.0.0.1:8080/zk0d-0.1.0/SHA256SUMS", 20)

    def install(
        self, version: str, *arguments: str, check: bool = True, user: str = "root", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """As a person would, with the script of that version piped into bash."""
        script = f"/srv/releases/zk0d-{version}/get-zk0bot.sh"
        settings = [f"{name}={value}" for name, value in env.items()]
        words = ["env", *settings, "sh", "-c", f'bash -s -- "$@" <{script}', "sh", *arguments]
        return self.guest.run(words, check=check, user=user, timeout=300)

    def tree(self) -> list[str]:
        """Every path with its kind, mode, owner and what is in it."""
        pruned = " -o ".join(f"-path {path}" for path in NOT_COMPARED)
        return self.guest.run(
            f"find / -xdev \\( {pruned} \\) -prune -o ! -name '*-' ! -name .pwd.lock"
            " -printf '%p %y %m %u %l ' \\( -type f -exec sha256sum {} \\; -o -printf '\\n' \\)"
            " | sed -E 's/ {2,}.*//' | sort",
            timeout=300,
        ).stdout.splitlines()

    def service(self) -> dict[str, str]:
        return self.guest.unit_state("zk0d-client.service")

    def version(self) -> str:
        return self.guest.run(["zk0bot", "version"]).stdout.strip()


@pytest.fixture
def machine(guests: Callable[..., Guest], releases: Path) -> Machine:
    return bare(guests, releases)


def bare(guests: Callable[..., Guest], releases: Path, **options: bool) -> Machine:
    mounts = {Path(sys.base_prefix): INTERPRETER, releases: "/srv/releases"}
    made = Machine(guests("bare", environment=False, mounts=mounts, **options))
    made.serve()
    return made


def changes(before: list[str], after: list[str]) -> set[str]:
    return {line.split(" ")[0] for line in set(before) ^ set(after)}


JOIN = ("--role", "client", "--invite", "zk0d-invite-1:abc")


def test_smoke_install_again_upgrade_and_uninstall(machine: Machine) -> None:
    guest = machine.guest
    before = machine.tree()
    dry = machine.install("0.1.0", *JOIN, "--dry-run")
    assert "would run: " in dry.stderr
    assert changes(before, machine.tree()) == set()

    done = machine.install("0.1.0", *JOIN)
    assert "a request, from the invite zk0d-invite-1:abc" in done.stdout
    assert "Runs: zk0d-client.target" in done.stderr
    assert machine.version() == "0.1.0"
    first = machine.service()
    assert (first["ActiveState"], first["StatusText"]) == ("active", "stand-in 0.1.0")
    pid = int(first["MainPID"])
    assert guest.run(f"stat -c %U /proc/{pid}").stdout == "zk0d-node\n"
    assert guest.run("stat -c %a /var/log/zk0d-install.log").stdout == "600\n"
    assert "zk0d-invite" not in guest.read("/var/log/zk0d-install.log")

    drop_in = "/etc/systemd/system/zk0d-client.service.d/mine.conf"
    guest.write(drop_in, "[Service]\nEnvironment=MINE=1\n")
    guest.write(SETTINGS, guest.read(SETTINGS) + "# mine\n")
    again = machine.install("0.1.0", *JOIN)
    assert "0.1.0 is installed: nothing to do" in again.stderr
    assert int(machine.service()["MainPID"]) == pid, "nothing was restarted"

    machine.install("0.2.0", *JOIN)
    assert machine.service()["StatusText"] == "stand-in 0.2.0"
    assert "MINE=1" in machine.service()["Environment"]
    assert guest.read(SETTINGS).endswith("# mine\n")

    failed = machine.install("0.3.0", *JOIN, check=False)
    assert failed.returncode == 81
    assert "0.2.0 is in use again and healthy" in failed.stderr, failed.stderr
    assert machine.version() == "0.2.0"
    assert machine.service()["StatusText"] == "stand-in 0.2.0"

    machine.install("0.2.0", "--rollback")
    assert machine.service()["StatusText"] == "stand-in 0.1.0"

    machine.install("0.2.0", "--uninstall")
    left = changes(before, machine.tree())
    assert SETTINGS in left
    kept = ("/etc/zk0d", "/var/lib/zk0d", "/var/cache/zk0d", drop_in, str(Path(drop_in).parent))
    users = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow")
    assert {path for path in left if not path.startswith(kept)} <= set(users)
    machine.install("0.2.0", "--no-start")
    guest.run(["rm", "-r", str(Path(drop_in).parent)])
    machine.install("0.2.0", "--uninstall", "--purge", "--yes")
    assert changes(before, machine.tree()) == set()


STAGE = "/var/cache/zk0d-install"
LOG = "/var/log/zk0d-install.log"
POINTS = {
    "while it downloads": f"ls {STAGE}/*/*.part",
    "when all is checked": f"grep -q 'zk0d-release install' {LOG}",
    "in the environment": "test -e /opt/zk0d/0.1.0/pyvenv.cfg",
    "at the switch": "test -e /opt/zk0d/.switching -o -L /opt/zk0d/current",
    "at the settings": f"grep -q 'zk0bot client join' {LOG}",
}


def test_killed_anywhere_it_resumes(machine: Machine) -> None:
    guest = machine.guest
    script = "/srv/releases/zk0d-0.1.0/get-zk0bot.sh"
    for point, condition in POINTS.items():
        guest.run(
            f"rm -f {LOG}; systemd-run --quiet --collect --unit=install --setenv=HOME=/root"
            f" bash {script} --from http://127.0.0.1:8080/zk0d-0.1.0 {' '.join(JOIN)};"
            f" until {condition} >/dev/null 2>&1; do"
            "   systemctl is-active --quiet install || exit 9; done;"
            " systemctl kill --signal=KILL --kill-whom=all install",
            timeout=60,
        )
        guest.wait_until("! systemctl is-active --quiet install", 20, f"killed {point}")
        assert "Next:" not in guest.read(LOG), f"it was over before it was killed {point}"
        machine.install("0.1.0", *JOIN)
        assert machine.version() == "0.1.0", point
        guest.wait_until("systemctl is-active zk0d-client.service", 30, point)
        machine.install("0.1.0", "--uninstall", "--purge", "--yes")
        assert guest.run("ls -A /opt").stdout == "python\n", point


def test_without_systemd(guests: Callable[..., Guest], releases: Path) -> None:
    machine = bare(guests, releases, systemd=False)
    before = machine.tree()
    done = machine.install("0.1.0", *JOIN)
    assert "systemd: no" in done.stderr
    assert ", a container" in done.stderr
    assert "zk0bot client start, which runs in the foreground" in done.stderr
    assert machine.version() == "0.1.0"
    machine.install("0.2.0", *JOIN)
    assert machine.version() == "0.2.0"
    machine.install("0.2.0", "--uninstall", "--purge", "--yes")
    assert changes(before, machine.tree()) == set()


def test_without_root(machine: Machine) -> None:
    guest = machine.guest
    # A login would start this; guests have no logind.
    guest.run(
        "useradd --create-home --shell /bin/bash ann && id=$(id -u ann) &&"
        " install -d -m 0700 -o ann -g ann /run/user/$id &&"
        " systemd-run --quiet --unit=anns-systemd --uid=ann --gid=ann --property=Delegate=yes"
        " --setenv=XDG_RUNTIME_DIR=/run/user/$id --setenv=HOME=/home/ann"
        " /lib/systemd/systemd --user"
    )
    number = guest.run("id -u ann").stdout.strip()
    env: dict[str, Any] = {"HOME": "/home/ann", "XDG_RUNTIME_DIR": f"/run/user/{number}"}
    words = ["env", *(f"{name}={value}" for name, value in env.items()), "systemctl", "--user"]
    guest.wait_until(
        lambda: not guest.run([*words, "show-environment"], check=False, user="ann").returncode
    )
    before = machine.tree()
    assert machine.install("0.1.0", *JOIN, check=False, user="ann", **env).returncode == 27

    done = machine.install("0.1.0", "--user", *JOIN, user="ann", **env)
    assert "systemd: user" in done.stderr
    assert "enable-linger ann" in done.stderr

    def status() -> str:
        show = [*words, "show", "zk0d-client.service", "--property=StatusText", "--value"]
        return guest.run(show, user="ann").stdout.strip()

    guest.wait_until(lambda: status() == "stand-in 0.1.0", 30)
    machine.install("0.2.0", "--user", *JOIN, user="ann", **env)
    assert status() == "stand-in 0.2.0"
    failed = machine.install("0.3.0", "--user", *JOIN, check=False, user="ann", **env)
    assert failed.returncode == 81
    assert status() == "stand-in 0.2.0"
    outside = {path for path in changes(before, machine.tree()) if not path.startswith("/home/ann")}
    assert outside == set()
    machine.install("0.2.0", "--user", "--uninstall", "--purge", "--yes", user="ann", **env)
    left = changes(before, machine.tree())
    assert left <= {"/home/ann/.config", "/home/ann/.config/systemd"}, left


# --- zk0d itself ----------------------------------------------------------------------------------

BOT = "/opt/zk0d/current/bin/zk0bot"
RUN = "model-name=tiny num-server-rounds=1 local-steps=5 batch-size=8 min-fit-clients=1"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release that ``make release`` makes here, signed."""
    root = tmp_path_factory.mktemp("release")
    env = {"RELEASE_KEY": str(make_key(root)), "PYTHON": sys.executable}
    env["PATH"] = f"{find_uv().parent}:{os.environ['PATH']}"
    make = [REPOSITORY / ".ci/make-release", root / "zk0d"]
    processes.run(make, check=True, env={**os.environ, **env}, timeout=300)
    return root / "zk0d"


@pytest.fixture
def hub(lab: Lab, recordings_folder: Path, tmp_path: Path) -> Iterator[Guest]:
    guest = start_hub(lab, recordings_of(recordings_folder, tmp_path))
    yield guest
    lab.remove(guest)


def start_hub(lab: Lab, recordings: Path) -> Guest:
    """A coordinator, from the environment that all other guests share."""
    guest = lab.guest("hub", mounts={recordings: "/srv/recordings"})
    install_units(guest)
    guest.write(
        "/etc/zk0d/server.toml",
        "[[evaluation]]\nname = 'held-out'\ndataset-uri = 'local:/srv/recordings'\n",
    )
    guest.run([BOT, "server", "init", "--host", "hub"])
    guest.run([BOT, "server", "start"])
    return guest


def test_installed_it_takes_part_in_a_round(
    guests: Callable[..., Guest], hub: Guest, release: Path, tmp_path: Path
) -> None:
    """The packages come from uv's cache of this host, which must have them (``make venv``)."""
    cache = subprocess.run(
        [find_uv(), "cache", "dir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    node = guests(
        "node",
        environment=False,
        mounts={
            Path(sys.base_prefix): INTERPRETER,
            release: "/srv/release",
            Path(cache): "/srv/uv-cache",
            find_uv().resolve(): "/usr/local/bin/uv",
            tmp_path / "recordings": "/srv/recordings",
        },
    )
    Machine(node)
    # uv writes locks into its cache; nothing of that reaches the host.
    node.run(
        "mkdir -p /run/uv/upper /run/uv/work /var/cache/uv && mount -t overlay overlay -o"
        " lowerdir=/srv/uv-cache,upperdir=/run/uv/upper,workdir=/run/uv/work /var/cache/uv"
    )
    invite = hub.run([BOT, "server", "invite"]).stdout.strip()
    # Not the copies that every change of an account leaves.
    listed = "find /usr /etc ! -name '*-' ! -name .pwd.lock | sort"
    before = node.run(listed).stdout
    asked = node.run(
        [
            *("env", "UV_CACHE_DIR=/var/cache/uv", "UV_OFFLINE=1", "bash"),
            *("/srv/release/get-zk0bot.sh", "--role", "client", "--invite", invite),
            *("--name", "bare", "--dataset", "/srv/recordings"),
        ],
        timeout=600,
    )
    hub.write("/tmp/request", asked.stdout)
    hub.run([BOT, "node", "approve", "/tmp/request", "--yes"])
    node.run(["zk0bot", "client", "wait-online", "--timeout", "3m"], timeout=200)
    run = hub.run([BOT, "run", "-c", RUN]).stdout.strip()
    journal = f"/var/lib/zk0d/server/runs/{run}/journal.jsonl"
    hub.wait_until(f"grep -E 'run.(finished|failed)' {journal}", 240, "the run's end")
    ended = hub.read(journal)
    assert '"kind":"run.finished"' in ended.replace(" ", "")
    assert '"node":"bare"' in ended.replace(" ", "")
    node.run(["zk0bot", "status"])
    completes = ". /usr/share/bash-completion/completions/zk0bot && complete -p zk0bot"
    assert "-F" in node.run(["bash", "-c", completes]).stdout
    typed = "COMP_WORDS='zk0bot sta' COMP_CWORD=1 _ZK0BOT_COMPLETE=complete_bash zk0bot"
    assert node.run(["bash", "-c", typed]).stdout.split() == ["status"]
    uninstall = ["bash", "/srv/release/get-zk0bot.sh", "--uninstall", "--purge", "--yes"]
    node.run(uninstall, timeout=300)
    assert node.run(listed).stdout == before
