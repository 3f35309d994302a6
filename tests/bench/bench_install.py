"""``get-zk0bot.sh`` on a bare guest, every package in a wheelhouse: seconds from nothing to READY.

The peer is uv alone, which makes the same environment from the same wheels in another bare guest.
The release is that of ``ZK0D_RELEASE_FOLDER``; otherwise ``make release WHEELHOUSE=1`` makes one,
which takes gigabytes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.table import show
from tests.guests.environment import REPOSITORY
from tests.guests.lab import Guest, Lab, Unavailable, ensure_image
from tests.guests.test_federation import recordings_of
from tests.guests.test_installer import INTERPRETER, Machine, start_hub
from tests.setup.releases import find_uv
from zk0d.demo.recordings import make_recordings
from zk0d.simulators.task import Sector

UV = (
    "set -e; export UV_CACHE_DIR=/opt/cache; cd /srv/release;"
    " ./uv venv --quiet --python /usr/local/bin/python3.12 /opt/peer;"
    " ./uv pip install --quiet --python /opt/peer/bin/python --compile-bytecode"
    " --link-mode hardlink --no-index --find-links wheelhouse"
    " --constraints constraints.txt zk0d-*.whl"
)
SERVICES = "zk0d-client zk0d-client-superexec zk0d-learner"


def main() -> None:
    """Print the table."""
    try:
        image = ensure_image()
    except Unavailable as error:
        print(f"install: {error}")
        return
    with tempfile.TemporaryDirectory(prefix="zk0d-") as name, Lab(image) as lab:
        folder = Path(name)
        folder.chmod(0o755)
        rows = _measure(lab, folder, _release(folder))
    show("a bare guest, from a folder with a wheelhouse", ("", "seconds", "of uv alone"), rows)


def _release(folder: Path) -> Path:
    if there := os.environ.get("ZK0D_RELEASE_FOLDER"):
        return Path(there).resolve()
    env = {"WHEELHOUSE": "1", "PYTHON": sys.executable}
    env["PATH"] = f"{find_uv().parent}:{os.environ['PATH']}"
    make = [REPOSITORY / ".ci/make-release", folder / "zk0d"]
    subprocess.run(make, env={**os.environ, **env}, check=True)
    return folder / "zk0d"


def _measure(lab: Lab, folder: Path, release: Path) -> list[tuple[str, str, str]]:
    with contextlib.redirect_stdout(None):
        make_recordings(folder / "soreach", Sector(0, 2), 6, first_seed=7)
    recordings = recordings_of(folder / "soreach", folder)
    hub = start_hub(lab, recordings)
    invite = hub.run(["/opt/zk0d/current/bin/zk0bot", "server", "invite"]).stdout.strip()
    mounts = {
        Path(sys.base_prefix): INTERPRETER,
        release: "/srv/release",
        recordings: "/srv/recordings",
    }
    # Once before, so that no variant is the first to read the wheels from the disk.
    subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=release, check=True)
    peer = _bare(lab, "peer", mounts)
    alone = _seconds(lambda: peer.run(UV, timeout=1500))
    lab.remove(peer)

    node = _bare(lab, "node", mounts)
    install = ["bash", "/srv/release/get-zk0bot.sh", "--from", "/srv/release", "--invite", invite]
    began = time.perf_counter()
    asked = node.run([*install, "--dataset", "/srv/recordings"], timeout=1500)
    installed = time.perf_counter() - began
    hub.write("/tmp/request", asked.stdout)
    hub.run(["/opt/zk0d/current/bin/zk0bot", "node", "approve", "/tmp/request", "--yes"])
    ready = f"test $(systemctl is-active {SERVICES} | grep -cx active) = 3"
    node.wait_until(ready, 300, "three services that are READY")
    till_ready = time.perf_counter() - began
    node.run(["zk0bot", "client", "wait-online", "--timeout", "3m"], timeout=200)
    online = time.perf_counter() - began
    again = _seconds(lambda: node.run([*install, "--dataset", "/srv/recordings"], timeout=300))
    return [
        (what, f"{seconds:.0f} s", f"{seconds / alone:.2f}")
        for what, seconds in (
            ("uv alone", alone),
            ("get-zk0bot.sh, to its end", installed),
            ("… to READY of all services", till_ready),
            ("… to online, approved meanwhile", online),
            ("the same again", again),
        )
    ]


def _bare(lab: Lab, name: str, mounts: dict[Path, str]) -> Guest:
    guest = lab.guest(name, mounts=mounts, environment=False)
    Machine(guest)
    return guest


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
