"""A coordinator, two contributors and an outsider who tries what outsiders try."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

import pytest

from tests.guests.conftest import ATTACKS
from tests.guests.lab import Guest
from tests.guests.test_federation import BOT, Fleet, fleet  # noqa: F401

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

PYTHON = "/opt/zk0d/current/bin/python"
#: Paths that are not for nodes; as they are, without a client's tidying.
NOT_FOR_NODES = (
    "/v1/control/list-nodes",
    "/v1/control/start-run",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "//v1/control/start-run",
    "/v1/runtime/pull-task",
    "/docs",
    "/openapi.json",
    "/health",
    "/zk0d/v1/",
    "/",
)
MANY = """
import socket, time
held, refused = [], 0
for _ in range(10000):
    try:
        one = socket.create_connection(("hub", 9443), timeout=0.5)
        held.append(one)
    except OSError:
        refused += 1
    if len(held) > 900:
        held.pop(0).close()
print("tried 10000, refused", refused)
"""
SLOW = """
import socket, ssl, sys, time
trust = ssl.create_default_context(cafile="/etc/zk0d/tls/ca.crt")
raw = socket.create_connection(("hub", 9443), timeout=90)
link = trust.wrap_socket(raw, server_hostname="hub")
link.sendall(sys.argv[1].encode().decode("unicode_escape").encode())
began = time.monotonic()
try:
    link.recv(100)
except OSError:
    pass
print(int(time.monotonic() - began))
"""
#: A node's request, signed once and sent twice.
TWICE = """
import base64, httpx
from pathlib import Path
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from zk0d.machine.keys import load_private_key
key = load_private_key(Path("/etc/zk0d/node.key"))
public, at = public_key_to_bytes(key.public_key()), now().isoformat()
headers = {
    "content-type": "application/protobuf",
    "flwr-public-key": base64.b64encode(public).decode(),
    "flwr-timestamp": at,
    "flwr-signature": base64.b64encode(sign_message(key, at.encode())).decode(),
}
body = RegisterNodeFleetRequest(public_key=public).SerializeToString()
for _ in range(2):
    answer = httpx.post(
        "https://hub:9443/v1/fleet/register-node",
        headers=headers, content=body, verify="/etc/zk0d/tls/ca.crt",
    )
    print(answer.status_code, answer.text.strip())
"""
#: Each stops in the middle.
UNFINISHED = {
    "header": r"POST /v1/fleet/x HTTP/1.1\r\nHost: hub",
    "body": r"GET /zk0d/v1/nodes/x HTTP/1.1\r\nHost: hub\r\nContent-Length: 9\r\n\r\nx",
}


@pytest.fixture(scope="module")
def outsider(fleet: Fleet) -> Iterator[Guest]:  # noqa: F811
    """A machine with zk0d and the invite, which nobody let in."""
    guest = fleet._machine("outsider", "client")
    guest.run([BOT, "client", "join", fleet.invite, "--name", "outsider"])
    yield guest
    fleet._lab.remove(guest)


@pytest.fixture
def told(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What the operator or the attacker reads; a row of the table."""
    said: list[str] = []
    yield said
    for line in said:
        pytestconfig.stash[ATTACKS].append((request.node.name.removeprefix("test_"), line.strip()))


def curl(guest: Guest, path: str, *more: str) -> str:
    ask = [
        *("curl", "-s", "--path-as-is", "--cacert", "/etc/zk0d/tls/ca.crt", "-o", "/dev/null"),
        *("--max-time", "20", "-w", "%{http_code}", "-X", "POST", *more),
    ]
    return guest.run([*ask, f"https://hub:9443{path}"], check=False).stdout


def test_an_unregistered_key(fleet: Fleet, outsider: Guest, told: list[str]) -> None:  # noqa: F811
    fleet.wait_online()
    outsider.run([BOT, "client", "start", "/srv/recordings"])
    told.append(_status_with(fleet, outsider, "not enrolled"))
    assert "outsider" not in fleet.hub.run([BOT, "node", "list"]).stdout


def _status_with(fleet: Fleet, guest: Guest, words: str) -> str:  # noqa: F811
    fleet.wait_for(guest, "zk0d-client", words, 120)
    return fleet.status(guest, "zk0d-client")


def test_a_stolen_name(fleet: Fleet, outsider: Guest, told: list[str]) -> None:  # noqa: F811
    path = "/etc/zk0d/client.toml"
    right = outsider.read(path)
    outsider.write(path, right.replace('name = "outsider"', 'name = "left"'))
    asked = outsider.run([BOT, "node", "request"]).stdout
    outsider.write(path, right)
    fleet.hub.write("/tmp/stolen", asked)
    said = fleet.hub.run([BOT, "node", "approve", "/tmp/stolen", "--yes"], check=False)
    assert said.returncode == 64
    told.append(said.stderr.splitlines()[-1])


def test_a_coordinator_with_another_authority(fleet: Fleet, told: list[str]) -> None:  # noqa: F811
    """Somebody stands between a node and its coordinator."""
    node = fleet.nodes[0]
    right = node.read("/etc/zk0d/tls/ca.crt")
    node.run([BOT, "server", "init", "--host", "hub", "--folder", "/tmp/other"])
    node.write("/etc/zk0d/tls/ca.crt", node.read("/tmp/other/tls/ca.crt"))
    node.systemctl("restart", "zk0d-client")
    node.wait_until(lambda: "our CA did not sign" in fleet.status(node, "zk0d-client"), 90)
    told.append(fleet.status(node, "zk0d-client"))
    node.write("/etc/zk0d/tls/ca.crt", right)
    node.systemctl("restart", "zk0d-client")
    fleet.wait_online(180)


def test_a_certificate_that_has_expired(fleet: Fleet, told: list[str]) -> None:  # noqa: F811
    node, hub = fleet.nodes[0], fleet.hub
    old = (
        "import datetime; from pathlib import Path; from zk0d.machine.certificates import renew\n"
        "then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=800)\n"
        "renew(Path('/etc/zk0d/tls'), force=True, now=then)"
    )
    hub.run([PYTHON, "-c", old])
    hub.systemctl("restart", "zk0d-gateway")
    node.systemctl("restart", "zk0d-client")
    node.wait_until(lambda: "has expired" in fleet.status(node, "zk0d-client"), 90)
    told.append(fleet.status(node, "zk0d-client"))
    assert "renewed" in hub.run([BOT, "server", "renew"]).stdout
    fleet.wait_online(180)


def test_no_tls(outsider: Guest, told: list[str]) -> None:
    said = outsider.run("curl -s -X POST http://hub:9443/v1/fleet/x").stdout
    assert "400" in said
    told.append("400 The plain HTTP request was sent to HTTPS port")


@pytest.mark.parametrize("path", NOT_FOR_NODES)
def test_a_path_that_is_not_for_nodes(outsider: Guest, told: list[str], path: str) -> None:
    status = curl(outsider, path)
    assert status in ("403", "400"), status
    told.append(f"{path}: {status}")


def test_an_oversized_body(outsider: Guest, told: list[str]) -> None:
    outsider.run("head -c 70000000 /dev/zero >/tmp/large")
    status = curl(outsider, "/v1/fleet/push-object", "--data-binary", "@/tmp/large")
    assert status == "413"
    told.append("413 Request Entity Too Large")


def test_a_request_that_never_ends(outsider: Guest, told: list[str]) -> None:
    seconds = int(outsider.run([PYTHON, "-c", SLOW, UNFINISHED["header"]], timeout=90).stdout)
    assert 5 <= seconds < 30
    told.append(f"the connection is closed after {seconds} s")
    seconds = int(outsider.run([PYTHON, "-c", SLOW, UNFINISHED["body"]], timeout=90).stdout)
    assert 5 <= seconds < 60
    told.append(f"with a body, after {seconds} s")


def test_ten_thousand_connections(fleet: Fleet, outsider: Guest, told: list[str]) -> None:  # noqa: F811
    """The coordinator answers others meanwhile, and afterwards."""
    outsider.run(f"nohup {PYTHON} -c {shlex.quote(MANY)} >/tmp/many 2>&1 &")
    node = fleet.nodes[0]
    for _ in range(3):
        assert curl(node, "/v1/control/x") == "403"
    outsider.wait_until("grep tried /tmp/many", 240)
    assert curl(node, "/v1/control/x") == "403"
    fleet.wait_online()
    told.append("others are answered meanwhile")


@pytest.mark.parametrize("user", ["nobody", "zk0d-gateway", "zk0d-app"])
def test_another_user_of_the_coordinator(
    fleet: Fleet,  # noqa: F811
    told: list[str],
    user: str,
) -> None:
    """The gateway's own workers, too, if somebody took them over."""
    hub = fleet.hub
    said = hub.run(
        "curl -s --cacert /etc/zk0d/tls/ca.crt -X POST -w '%{http_code}'"
        " https://localhost:8000/v1/control/list-nodes",
        user=user,
    ).stdout
    assert said.endswith("403")
    for secret in ("control.secret", "superexec.secret", "tls/ca.key", "tls/server.key"):
        assert hub.run(["cat", f"/etc/zk0d/{secret}"], check=False, user=user).returncode
    told.append(f"{user}: {said.removesuffix('403')}")


def test_the_network_half_reads_recordings(fleet: Fleet, told: list[str]) -> None:  # noqa: F811
    node = fleet.nodes[0]
    node.run([BOT, "client", "start", "/srv/recordings"])
    node.wait_until(lambda: fleet.status(node, "zk0d-client"), 60)
    fleet.wait_online(180)
    for unit, user in (("zk0d-client", "zk0d-node"), ("zk0d-client-superexec", "zk0d-app")):
        pid = node.unit_state(unit)["MainPID"]
        said = node.run(
            f"nsenter -t {pid} -m setpriv --reuid {user} --regid {user} --clear-groups"
            " cat /srv/recordings/meta/info.json",
            check=False,
        )
        assert said.returncode, "the recordings can be read"
        told.append(f"{unit}: {said.stderr}")
    learner = node.unit_state("zk0d-learner")["MainPID"]
    assert node.run(f"nsenter -t {learner} -m cat /srv/recordings/meta/info.json").stdout


def test_the_learner_reaches_out(fleet: Fleet, told: list[str]) -> None:  # noqa: F811
    node = fleet.nodes[0]
    learner = node.unit_state("zk0d-learner")["MainPID"]
    said = node.run(
        f"nsenter -t {learner} -n curl -sS --max-time 5 -k https://{fleet.hub.address}:9443/",
        check=False,
    )
    assert said.returncode
    told.append(said.stderr)


@pytest.mark.parametrize("user", ["nobody", "zk0d-node", "zk0d-fetch"])
def test_another_user_speaks_to_the_learner(
    fleet: Fleet,  # noqa: F811
    told: list[str],
    user: str,
) -> None:
    said = fleet.nodes[0].run(
        "curl -sS --unix-socket /run/zk0d/learner.sock http://l/v1/status", check=False, user=user
    )
    assert said.returncode
    told.append(f"{user}: {said.stderr}")


def test_a_message_that_the_learner_does_not_know(fleet: Fleet, told: list[str]) -> None:  # noqa: F811
    ask = "curl -sS --unix-socket /run/zk0d/learner.sock -X POST --data-binary @- http://l/v1/tasks"
    node = fleet.nodes[0]
    for kind, body in (("shell", "id"), ("train", "not a message"), ("../../etc/passwd", "x")):
        said = node.run(f"printf %s {shlex.quote(body)} | {ask}/{kind}", user="zk0d-app").stdout
        assert '"event": "error"' in said or "Not Found" in said, said
        told.append(f"{kind}: {said}")
    node.wait_until(lambda: "ready" in fleet.status(node, "zk0d-learner"), 60)


def test_secrets_are_nowhere_but_in_their_files(fleet: Fleet, told: list[str]) -> None:  # noqa: F811
    """Not in arguments or environments, nor in any log, status or report."""
    looked = 0
    for guest, names in (
        (fleet.hub, ("control.secret", "superexec.secret", "tls/server.key", "tls/link.key")),
        (fleet.nodes[0], ("node.key", "superexec.secret")),
    ):
        for name in names:
            lines = guest.read(f"/etc/zk0d/{name}").strip().splitlines()
            canary = lines[len(lines) // 2]  # of a key file a line of its middle
            assert len(canary) > 30
            guest.write("/tmp/canary", canary, 0o600)
            for where in (
                "journalctl --no-pager -o verbose",
                "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ",
                f"{BOT} status --json",
                f"{BOT} status",
                f"{BOT} config show {'server' if guest is fleet.hub else 'client'}",
                "systemctl show 'zk0d-*'",
                "find /var/lib/zk0d /var/log /run/zk0d -type f -size -20M -exec cat {} +",
            ):
                found = guest.run(f"({where}) 2>/dev/null | grep -acF -f /tmp/canary", check=False)
                assert found.stdout.strip() == "0", f"{name} by {where}"
                looked += 1
            guest.run("rm /tmp/canary")
    told.append(f"{looked} places looked into")


def test_a_stolen_copy_of_a_sealed_key(fleet: Fleet, told: list[str]) -> None:  # noqa: F811
    node, other = fleet.nodes[1], fleet.nodes[0]
    asked = node.run([BOT, "node", "request"]).stdout.splitlines()[:4]
    node.run([BOT, "node", "seal"])
    assert node.run("ls /etc/zk0d | grep node").stdout.split() == ["node.key.cred", "node.pub"]
    fleet.wait_online(180)
    assert node.run([BOT, "node", "request"]).stdout.splitlines()[:4] == asked
    copy = node.run("base64 -w0 /etc/zk0d/node.key.cred").stdout
    other.run(f"echo {copy} | base64 -d >/tmp/stolen.cred")
    other.run("systemd-creds setup")  # it has a key of its own
    said = other.run("systemd-creds --name=node.key decrypt /tmp/stolen.cred -", check=False)
    assert said.returncode
    told.append(said.stderr.splitlines()[-1])
    found = json.loads(node.run([BOT, "doctor", "--json"], check=False, timeout=180).stdout)
    by_rule = {finding["rule"]: finding for finding in found["findings"]}
    assert "sealed for this machine" in by_rule["client.key"]["evidence"]
    assert by_rule["client.secrets"]["ok"], by_rule["client.secrets"]


def test_a_key_that_was_changed(fleet: Fleet, told: list[str]) -> None:  # noqa: F811
    """Both keys are valid for a while; afterwards the old one, stolen meanwhile, is no use."""
    node, hub = fleet.nodes[1], fleet.hub
    old = node.read("/etc/zk0d/node.pub")
    node.run([BOT, "node", "keygen", "--next"])
    hub.write("/tmp/next", node.run([BOT, "node", "request", "--next"]).stdout)
    hub.run([BOT, "node", "approve", "--rotate", "/tmp/next", "--yes"])
    assert len(hub.run([BOT, "node", "list"]).stdout.splitlines()) == 3
    node.run([BOT, "node", "switch"])
    assert node.read("/etc/zk0d/node.pub") != old
    fleet.wait_for(node, "zk0d-client", "online;", 180)
    hub.run([BOT, "node", "rotate", "right"])
    assert len(hub.run([BOT, "node", "list"]).stdout.splitlines()) == 2
    hub.wait_until(lambda: "2 of 2 nodes online" in fleet.status(hub, "zk0d-server"), 60)
    told.append(fleet.status(hub, "zk0d-server"))


def test_a_replayed_request(fleet: Fleet, told: list[str]) -> None:  # noqa: F811
    said = fleet.nodes[0].run([PYTHON, "-c", TWICE]).stdout.splitlines()
    assert not said[0].startswith("401"), said
    assert said[1] == "401 this request was seen before"
    told.append(said[1])
    assert "came a second time: refused" in fleet.hub.journal("zk0d-server")


def test_an_edited_audit_log(fleet: Fleet, told: list[str]) -> None:  # noqa: F811
    hub, log = fleet.hub, "/var/lib/zk0d/superlink/audit.jsonl"
    assert "nothing wrong" in hub.run([BOT, "audit", "verify"]).stdout
    shown = hub.run([BOT, "audit", "show"]).stdout
    for kind in ("node.approved", "node.admitted", "node.online"):
        assert kind in shown
    assert hub.run(f"stat -c '%U %a' {log}").stdout.strip() == "zk0d-link 640"
    hub.run(f"cp -p {log} /tmp/kept && sed -i '2s/left/evil/;2s/right/evil/' {log}")
    said = hub.run([BOT, "audit", "verify"], check=False)
    assert said.returncode == 1
    told.append(said.stderr)
    hub.run(f"cp -p /tmp/kept {log}")
    assert "nothing wrong" in hub.run([BOT, "audit", "verify"]).stdout


def test_the_doctor_finds_nothing_wrong(fleet: Fleet) -> None:  # noqa: F811
    for guest in (fleet.hub, fleet.nodes[0]):
        said = guest.run([BOT, "doctor", "--json"], check=False, timeout=180)
        found = json.loads(said.stdout)["findings"]
        wrong = [finding for finding in found if finding["ok"] is False]
        # Here are no base models, and a container's clock is its host's.
        assert {finding["rule"].split(".")[-1] for finding in wrong} <= {"models", "clock"}, wrong
        assert len([finding for finding in found if finding["ok"]]) > 10


def test_a_node_that_was_removed(fleet: Fleet, told: list[str]) -> None:  # noqa: F811
    """Last: it is cut off within a minute."""
    node = fleet.nodes[1]
    fleet.hub.run([BOT, "node", "remove", "right"])
    seconds = fleet.wait_for(node, "zk0d-client", "not enrolled", 90)
    assert seconds < 60
    told.append(f"after {seconds:.0f} s: {fleet.status(node, 'zk0d-client')}")


@pytest.fixture(scope="module", autouse=True)
def _recordings_are_everybodys(fleet: Fleet) -> None:  # noqa: F811
    """What hides them is the unit, not the file's mode."""
    mode = fleet.nodes[0].run("stat -c %a /srv/recordings/meta/info.json").stdout.strip()
    assert int(mode[-1]) & 4
