"""What differs on Debian 13: systemd 257, and a Python of the distribution that is new enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import override

import pytest

from tests.guests.image import TRIXIE, ensure_image
from tests.guests.lab import Guest, Lab, install_units
from tests.guests.test_federation import Fleet, recordings_of
from tests.guests.test_installer import JOIN, Machine, changes
from tests.guests.test_installer import releases as releases

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def trixie(image: str) -> str:
    """The image; ``image`` has skipped where guests cannot be."""
    del image
    return ensure_image(TRIXIE)


def test_the_installer_takes_the_distributions_python(
    guests: Callable[..., Guest],
    releases: Path,
    trixie: str,
) -> None:
    mounts = {releases: "/srv/releases"}
    guest = guests("trixie", environment=False, mounts=mounts, image=trixie)
    machine = Machine(guest, interpreter=False)
    machine.serve()
    before = machine.tree()
    done = machine.install("0.1.0", *JOIN)
    assert "debian 13" in done.stderr
    assert machine.version() == "0.1.0"
    assert machine.service()["ActiveState"] == "active"
    python = guest.run("/opt/zk0d/current/bin/python -c 'import sys; print(sys.version_info[:2])'")
    assert python.stdout == "(3, 13)\n"
    machine.install("0.2.0", *JOIN)
    assert machine.service()["StatusText"] == "stand-in 0.2.0"
    machine.install("0.2.0", "--uninstall", "--purge", "--yes")
    assert changes(before, machine.tree()) == set()


class MixedFleet(Fleet):
    """The contributor on the right has Debian 13."""

    def __init__(self, lab: Lab, recordings: Path, trixie: str) -> None:
        self._trixie = trixie
        super().__init__(lab, recordings)

    @override
    def _machine(self, name: str, role: str) -> Guest:
        image = self._trixie if name == "right" else None
        guest = self._lab.guest(name, mounts=self._mounts, image=image)
        install_units(guest)
        return guest


@pytest.fixture
def fleet(lab: Lab, recordings_folder: Path, tmp_path: Path, trixie: str) -> Iterator[MixedFleet]:
    made = MixedFleet(lab, recordings_of(recordings_folder, tmp_path), trixie)
    yield made
    made.close()


def test_a_contributor_takes_part(fleet: MixedFleet) -> None:
    fleet.wait_online()
    run = fleet.start_run()
    fleet.wait_for_end(run)
    committed = [line for line in fleet.journal(run) if line["kind"] == "round.committed"]
    assert [line["round"] for line in committed] == [0, 1, 2, 3]
    names = {node["node"] for node in committed[-1]["nodes"]}  # type: ignore[attr-defined]
    assert names == {"left", "right"}
    said = fleet.nodes[1].run("systemctl --failed --no-legend --plain").stdout
    assert said == ""
