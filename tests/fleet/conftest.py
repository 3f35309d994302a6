"""Bare guests for Ansible: what it copies to them, and how it reaches them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import processes
from tests.guests.conftest import pytest_runtest_makereport as pytest_runtest_makereport
from tests.guests.environment import REPOSITORY, make_version, shared_mounts
from tests.guests.lab import Guest, Lab, Unavailable, ensure_image
from tests.guests.podman import CONFIGURATION
from tests.setup.releases import make_release

LAB = pytest.StashKey[Lab]()
ANSIBLE = REPOSITORY / "ansible"
VERSIONS = ("0.1.0", "0.1.1")


def ansible_environment() -> dict[str, str]:
    """For Ansible and Molecule: this environment's programs, and podman as the guests have it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "CONTAINERS_CONF": str(CONFIGURATION),
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
        "PY_COLORS": "0",
        "ANSIBLE_HOST_KEY_CHECKING": "0",
        "LC_ALL": "C.UTF-8",
    }


class Releases:
    """Folders of releases on this machine, and each one installed, ready to be copied to a guest.

    A guest then finds a version installed and takes it: the packages' 5 GB are mounted, not copied.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def release(self, version: str) -> Path:
        folder = self._folder / f"zk0d-{version}"
        if not folder.exists():
            make_release(folder, version)
            shutil.copy(REPOSITORY / "systemd/zk0d-release", folder)
        return folder

    def installed(self, version: str) -> Path:
        """The version as it lies in /opt/zk0d, with the marker that zk0d-release leaves."""
        folder = self._folder / "installed" / version
        if not folder.exists():
            make_version(folder, version)
            release = self.release(version)
            files = (release / f"zk0d-{version}-py3-none-any.whl", release / "constraints.txt")
            hashes = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()} " for f in files)
            (folder / ".zk0d-complete").write_text(f"{hashes}pypi\n")
        return folder

    def give(self, guest: Guest, *versions: str) -> None:
        for version in versions:
            guest.run(["mkdir", "-p", f"/opt/zk0d/{version}"])
            guest.copy_in(self.installed(version), f"/opt/zk0d/{version}")


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    return Releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="session")
def image() -> str:
    try:
        return ensure_image()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def lab(image: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    with Lab(image) as opened:
        yield opened


class Playbooks:
    """ansible-playbook with an inventory of guests."""

    def __init__(self, folder: Path, inventory: str) -> None:
        self._inventory = folder / "hosts.yml"
        self._inventory.write_text(inventory)

    def _command(self, playbook: str, *more: str) -> list[str]:
        return ["ansible-playbook", "-i", str(self._inventory), playbook, *more]

    def run(
        self, playbook: str, *more: str, check: bool = True, timeout: float = 1500
    ) -> subprocess.CompletedProcess[str]:
        return run_ansible(self._command(playbook, *more), ANSIBLE, check=check, timeout=timeout)

    @contextmanager
    def started(self, playbook: str) -> Iterator[None]:
        """Runs meanwhile, and is killed with all its children at the end."""
        with (
            open(os.devnull, "wb") as nothing,
            processes.started(
                self._command(playbook),
                cwd=ANSIBLE,
                env=ansible_environment(),
                stdout=nothing,
                stderr=nothing,
            ) as process,
        ):
            yield
            assert process.poll() is None, "it had ended before it was cut off"


def run_ansible(
    command: Sequence[str],
    folder: Path,
    *,
    check: bool = True,
    timeout: float = 900,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    done = processes.run(
        command,
        cwd=folder,
        env={**ansible_environment(), **(env or {})},
        text=True,
        timeout=timeout,
    )
    if check and done.returncode:
        said = f"{done.stdout}\n{done.stderr}"
        wrong = [m.start() for m in re.finditer("fatal:|FAILED!|\\[ERROR\\]|CRITICAL", said)]
        first = max(0, wrong[0] - 500) if wrong else -3000
        pytest.fail(f"{' '.join(command)}: {done.returncode}\n{said[first:][:5000]}")
    return done


def mounts() -> dict[Path, str]:
    return shared_mounts()
