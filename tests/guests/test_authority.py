"""The coordinator changes its CA under a run, with real units on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.lab import Guest, Lab
from tests.guests.test_clock import wait_for_both
from tests.guests.test_faults import LONG, RECOVERED_SECONDS, committed
from tests.guests.test_federation import BOT, Fleet, recordings_of

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

OFFERED = "/etc/zk0d/tls/ca.crt"


@pytest.fixture(scope="module")
def fleet(
    lab: Lab, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    made = Fleet(lab, recordings_of(recordings_folder, tmp_path_factory.mktemp("authority")))
    made.wait_online()
    yield made
    made.close()


def renew_ca(fleet: Fleet, *words: str) -> str:
    return fleet.hub.run([BOT, "server", "renew-ca", *words], timeout=120).stdout


def wait_for_all(fleet: Fleet, words: str) -> None:
    fleet.hub.wait_until(
        lambda: all(f"node {node.name}: {words}" in renew_ca(fleet) for node in fleet.nodes),
        RECOVERED_SECONDS,
        f"both nodes: {words}",
    )


def shown_is_trusted(node: Guest, ca: str) -> bool:
    """Whether the gateway shows ``node`` a certificate that this CA signed."""
    node.write("/tmp/ca.pem", ca)
    asked = "curl -s -o /dev/null --max-time 10 --cacert /tmp/ca.pem https://hub:9443/"
    return node.run(asked, check=False).returncode == 0


def test_a_run_outlives_a_change_of_the_ca(fleet: Fleet) -> None:
    run = fleet.hub.run([BOT, "run", "-c", LONG]).stdout.strip()
    wait_for_both(fleet, run)
    old = fleet.hub.read(OFFERED)
    renew_ca(fleet, "--begin")
    wait_for_all(fleet, "has the next CA")
    wait_for_both(fleet, run)
    before = committed(fleet, run)
    renew_ca(fleet, "--finish")
    wait_for_both(fleet, run)
    new = fleet.hub.read(OFFERED)
    assert new not in old
    assert shown_is_trusted(fleet.nodes[0], new)
    assert not shown_is_trusted(fleet.nodes[0], old)
    for node in fleet.nodes:
        node.restart()
    wait_for_both(fleet, run)
    lines = committed(fleet, run)
    assert lines[: len(before)] == before
    assert [line["round"] for line in lines] == list(range(len(lines)))
    assert "run.failed" not in fleet.kinds(run)
    fleet.hub.run([BOT, "stop", run])
    fleet.wait_for(fleet.hub, "zk0d-server", f"run {run} was stopped at round", 120)


def test_a_next_ca_that_is_taken_back_cuts_no_node_off(fleet: Fleet) -> None:
    present = fleet.hub.read(OFFERED)
    renew_ca(fleet, "--begin")
    wait_for_all(fleet, "has the next CA")
    renew_ca(fleet, "--cancel")
    assert fleet.hub.read(OFFERED) == present
    for node in fleet.nodes:
        node.restart()
    fleet.wait_online()
    run = fleet.start_run()
    fleet.wait_for_end(run)
