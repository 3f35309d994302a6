"""A coordinator changes its CA while a real SuperLink, gateway and SuperNodes run."""

from __future__ import annotations

import json
import ssl
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.processes import wait_until
from tests.services.lab import Lab, lab, nginx, zk0bot
from zk0d.config.machine import AUTHORITIES_KEY
from zk0d.machine import audit, certificates
from zk0d.machine.authorities import Authorities
from zk0d.machine.keys import fingerprint
from zk0d.machine.state import STATE, read_json
from zk0d.machine.successor import Successor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(nginx() is None, reason="nginx is not here"),
    pytest.mark.xdist_group("rollover"),  # each test goes on where the one before it ended
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, recordings_folder: Path) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("hub"), recordings_folder) as made:
        made.start("superlink", "superlink", "--config", str(made.server_toml))
        made.start_gateway()
        for name in ("left", "late"):
            settings = made.add_node(name)
            # A busy machine starts a SuperNode slowly.
            patient = "[supernode]\nzombie-seconds = 600\n"
            settings.write_text(settings.read_text().replace("[supernode]\n", patient))
            start(made, name)
        for name in ("left", "late"):
            made.wait_for_status(name, "online; no run is under way", 400)
        yield made


def start(hub: Lab, name: str) -> None:
    hub.start(name, "supernode", "--config", str(hub.root / name / "client.toml"))


def stop(hub: Lab, name: str) -> None:
    service = hub.services.pop(name)
    service.child.stop(20)
    service.told.close()


def renew_ca(hub: Lab, *words: str) -> tuple[int, str]:
    done = zk0bot("server", "renew-ca", *words, "--folder", str(hub.root))
    return done.returncode, done.stdout + done.stderr


def trusted(hub: Lab, name: str) -> Authorities:
    home = hub.root / name
    return Authorities.read(home / "tls/ca.crt", home / "supernode")


def trusts_alone(hub: Lab, name: str, ca: str) -> bool:
    """Whether a node's service and its SuperNode know one CA."""
    started = hub.root / name / "supernode/ca.crt"
    return trusted(hub, name).pem == ca == started.read_text()


def wait_for(hub: Lab, what: str, done: Callable[[], object]) -> None:
    children = [running.child for running in hub.services.values()]
    wait_until(lambda: bool(done()), what, 400.0, children, interval=0.5)


def test_a_stranger_names_no_ca(hub: Lab) -> None:
    """The coordinator's own page says it, over its own TLS; another key signed it."""
    stranger, _ = certificates.authority(
        certificates.make_certificates(hub.root / "stranger", ["hub"]).ca.parent
    )
    _, made = certificates.make_authority()
    named = hub.root / "tls/ca.next.json"
    present = hub.certificates.ca.read_text()
    named.write_text(json.dumps(Successor.of(made, present, stranger).to_json()))
    said = hub.root / "left.log"
    wait_for(hub, "the refusal", lambda: "a next CA that is refused" in said.read_text())
    assert trusted(hub, "left").pem == present
    named.unlink()


def test_nodes_drop_a_next_ca_that_is_taken_back(hub: Lab) -> None:
    present = hub.certificates.ca.read_text()
    code, said = renew_ca(hub, "--begin")
    assert code == 0, said
    wait_for(hub, "left's word", lambda: "node left: has the next CA" in renew_ca(hub)[1])
    assert trusted(hub, "left").pem == hub.certificates.ca.read_text() != present
    code, said = renew_ca(hub, "--cancel")
    assert code == 0, said
    assert hub.certificates.ca.read_text() == present
    for name in ("left", "late"):
        wait_for(hub, f"{name}'s CA", partial(trusts_alone, hub, name, present))
        hub.wait_for_status(name, "online; no run is under way", 400)
    assert "it took the next one back" in (hub.root / "left.log").read_text()
    assert "no change of the CA is under way" in renew_ca(hub, "--cancel")[1]


def test_a_running_node_gets_the_next_ca_and_says_so(hub: Lab) -> None:
    before = hub.child_of("left", "zk0d.flower.supernode").pid
    stop(hub, "late")
    wait_for(
        hub,
        "the end of late",
        lambda: any(
            line["kind"] == "node.offline" and line["node"] == "late"
            for line in audit.read(hub.root / "superlink")
        ),
    )
    code, said = renew_ca(hub, "--begin")
    assert code == 0, said
    wait_for(hub, "left's word", lambda: "node left: has the next CA" in renew_ca(hub)[1])
    assert "node late: does not have it yet" in renew_ca(hub)[1]
    hub.wait_for_status("left", "online; no run is under way", 400)
    assert hub.child_of("left", "zk0d.flower.supernode").pid != before, "it was started with both"
    both = hub.certificates.ca.read_text()
    assert trusted(hub, "left").pem == both
    told = tomllib.loads((hub.root / "left/supernode/node.toml").read_text())
    assert told[AUTHORITIES_KEY] == both
    assert (hub.root / "left/tls/ca.crt").read_text() != both, "root's file is root's"


def test_who_has_it_is_kept_over_a_restart(hub: Lab) -> None:
    hub.restart_superlink()
    hub.wait_for_status("superlink", "1 of 2 nodes online")
    assert "node left: has the next CA" in renew_ca(hub)[1]


def test_the_end_waits_for_a_node_that_was_online(hub: Lab) -> None:
    code, said = renew_ca(hub, "--finish")
    assert code != 0
    assert "the next CA is not on late yet, which would be cut off" in said


def test_a_node_works_on_with_the_next_ca_alone(hub: Lab) -> None:
    old = ssl.create_default_context(cafile=str(hub.root / "late/tls/ca.crt"))
    key = fingerprint(hub.root / "left/node.pub")
    page = f"https://127.0.0.1:{hub.gateway}/zk0d/v1/nodes/{key}"
    assert httpx.get(page, verify=old).json()["online"]
    code, said = renew_ca(hub, "--finish", "--force")
    assert code == 0, said
    assert "after a restart: zk0bot server stop, then start" in said
    gateway = hub.others.pop()
    hub.restart_superlink(meanwhile=gateway.stop)
    hub.start_gateway()
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(page, verify=old)
    alone = hub.certificates.ca.read_text()
    wait_for(hub, "the old CA's end", lambda: trusted(hub, "left").pem == alone)
    new = ssl.create_default_context(cadata=alone)
    wait_for(
        hub,
        "left online",
        lambda: (
            (hub.root / "left/supernode/ca.crt").read_text() == alone
            and httpx.get(page, verify=new).json()["online"]
        ),
    )
    told = tomllib.loads((hub.root / "left/supernode/node.toml").read_text())
    assert told[AUTHORITIES_KEY] == alone
    hub.wait_for_status("left", "online; no run is under way", 400)


def test_a_node_that_missed_it_is_told_what_to_do(hub: Lab) -> None:
    start(hub, "late")
    hub.wait_for_status(
        "late", "shows a certificate that our CA did not sign; nothing is sent", 400
    )
    state = hub.root / "late/supernode" / STATE
    wait_for(hub, "the advice", lambda: "zk0bot client join INVITE" in read_json(state)["todo"])
    invite = zk0bot("server", "invite", "--folder", str(hub.root)).stdout.strip()
    done = zk0bot("client", "join", invite, "--folder", str(hub.root / "late"))
    assert done.returncode == 0, done.stderr
    stop(hub, "late")
    start(hub, "late")
    hub.wait_for_status("late", "online; no run is under way", 400)
