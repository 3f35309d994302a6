"""The rounds' files: who may fetch and send what, with nginx's bytes and with our own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import started, wait_until
from tests.services.lab import Lab, lab, nginx
from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import ServerSettings
from zk0d.daemon.line import LineBook
from zk0d.errors import TryAgainError
from zk0d.federation.capability import Capability, OpenRound, OpenRounds, RoundFile, ticket
from zk0d.federation.carrier import PIECE_BYTES, Carrier
from zk0d.federation.depot import Depot
from zk0d.federation.line import CATCH_UP_SECONDS, Line
from zk0d.federation.messages import Piece, Route
from zk0d.federation.update import Payload, Streamed
from zk0d.machine.gateway import configuration
from zk0d.services import transfers
from zk0d.services.presence import Presence, PresencePage
from zk0d.services.spent import Spent
from zk0d.services.transfers import SPENT, Transfers

RUN, ROUND = "7", 3
ALICE, BOB = "a" * 64, "b" * 64
WEIGHTS = bytes(range(251)) * 12_000
BUDGET = 2 * PIECE_BYTES + 1000
needs_nginx = pytest.mark.skipif(not nginx(), reason="needs nginx (package nginx-light)")

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("transfers")]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Plane:
    """A coordinator with a round that is open, and a way to it."""

    made: Lab
    settings: ServerSettings
    transfers: Transfers
    url: str
    http: httpx.Client
    by_nginx: bool
    carried: bool  #: by nginx; else the application carries the bytes
    opened: OpenRound
    round_file: RoundFile

    @property
    def depot(self) -> Depot:
        return self.transfers.depot

    @property
    def run_folder(self) -> Path:
        return self.settings.runs / RUN

    def token(self, direction: str, key: str = ALICE, **other: Any) -> str:
        facts = {
            "run": RUN,
            "round": ROUND,
            "key": key,
            "direction": direction,
            "budget": BUDGET,
            "until": time.monotonic() + 60.0,
        }
        return self.opened.sign(Capability.model_validate({**facts, **other}))

    def put(
        self, data: bytes, token: str | None = None, *, key: str = ALICE, **how: Any
    ) -> httpx.Response:
        name = how.pop("name", sha256(data))
        token = self.token("up", key) if token is None else token
        return self.http.put(
            f"/up/{ticket(RUN, ROUND, key)}/{name}",
            content=how.pop("content", data),
            headers={"authorization": f"Bearer {token}"} if token else {},
        )

    def get(self, token: str, name: str = sha256(WEIGHTS), **headers: str) -> httpx.Response:
        bearer = {"authorization": f"Bearer {token}"} if token else {}
        return self.http.get(f"/down/{name}", headers={**bearer, **headers})

    def arrived(self) -> list[str]:
        """Every file of an update, whole or not."""
        up = self.settings.transfers.up
        return sorted(path.name for path in up.rglob("*") if path.is_file())

    def carrier(self, **how: Any) -> Carrier:
        ca = self.made.certificates.ca if self.by_nginx else None
        return Carrier(self.url, ca, **how)

    def route(self, key: str = ALICE) -> Route:
        return Route(
            down=self.token("down", key, budget=4 * len(WEIGHTS)),
            up=self.token("up", key),
            ticket=ticket(RUN, ROUND, key),
            inside=0,
        )


@contextlib.contextmanager
def plane(root: Path, *, by_nginx: bool, carries: bool = True) -> Iterator[Plane]:
    with lab(root, Path("/nothing")) as made:
        settings = ServerSettings.load(made.server_toml)
        ours = Transfers(settings, body_seconds=1.0)
        page = PresencePage(Presence(), made.presence, ours)
        try:
            url = f"http://127.0.0.1:{made.presence}/zk0d/v1"
            trust: Any = True
            if by_nginx:
                made.start_gateway(carries=carries)
                url = f"https://127.0.0.1:{made.gateway}/zk0d/v1"
                trust = ssl.create_default_context(cafile=str(made.certificates.ca))
            (settings.runs / RUN).mkdir(parents=True)
            ours.depot.publish(RUN, payload(WEIGHTS))
            round_file = RoundFile(settings.runs / RUN)
            # nginx closes a connection on which it refused a body; a request must not meet that.
            one_each = httpx.Limits(max_keepalive_connections=0)
            with httpx.Client(base_url=url, verify=trust, timeout=60, limits=one_each) as http:
                opened = open_round(round_file)
                yield Plane(
                    made,
                    settings,
                    ours,
                    url,
                    http,
                    by_nginx,
                    carries and by_nginx,
                    opened,
                    round_file,
                )
        finally:
            page.close()


def open_round(file: RoundFile) -> OpenRound:
    """The round of these tests."""
    tickets = [ticket(RUN, ROUND, key) for key in (ALICE, BOB)]
    return file.open(ROUND, {sha256(WEIGHTS): len(WEIGHTS)}, tickets)


def payload(data: bytes) -> Payload:
    """Bytes that go down, whatever they are."""
    return Streamed(None, iter([data[:1000], data[1000:]]))  # type: ignore[arg-type]


WAYS = ["without", *(pytest.param(way, marks=needs_nginx) for way in ("nginx", "through-nginx"))]


@pytest.fixture(scope="module", params=WAYS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plane]:
    by_nginx, carries = request.param != "without", request.param == "nginx"
    with plane(tmp_path_factory.mktemp("plane"), by_nginx=by_nginx, carries=carries) as made:
        yield made


@pytest.fixture
def open_plane(served: Plane) -> Iterator[Plane]:
    """The module's plane, with nothing sent."""
    yield served
    served.depot.clear(RUN, served.opened.tickets)
    wait_until(lambda: not served.arrived(), "the end of what was sent", 30)


# --- what a node of the round does ----------------------------------------------------------------


def test_weights_are_one_file_that_can_be_fetched_in_parts(open_plane: Plane) -> None:
    token = open_plane.token("down", budget=3 * len(WEIGHTS))
    whole = open_plane.get(token)
    assert (whole.status_code, whole.content) == (200, WEIGHTS)
    assert whole.headers["etag"]
    assert "x-accel-redirect" not in whole.headers
    rest = open_plane.get(token, range="bytes=1000000-")
    assert (rest.status_code, rest.content) == (206, WEIGHTS[1_000_000:])
    other = open_plane.get(open_plane.token("down", BOB))
    assert other.headers["etag"] == whole.headers["etag"], "the same file for every node"


def test_pieces_lie_where_the_server_app_reads_them(open_plane: Plane) -> None:
    data = os.urandom(PIECE_BYTES)
    assert open_plane.put(data).status_code == 201
    path = open_plane.depot.piece(ticket(RUN, ROUND, ALICE), sha256(data))
    assert path.read_bytes() == data
    assert open_plane.arrived() == [path.name], "and no half one beside it"
    if open_plane.carried:
        assert path.stat().st_mode & 0o777 == 0o660


def test_an_update_and_weights_through_the_carrier(open_plane: Plane) -> None:
    carrier, route = open_plane.carrier(), open_plane.route()
    update = os.urandom(2 * PIECE_BYTES + 1000)
    with contextlib.closing(carrier):
        down = carrier.download(Piece(sha256=sha256(WEIGHTS), size=len(WEIGHTS)), route)
        assert b"".join(down) == WEIGHTS
        pieces = carrier.upload(iter([update[:5], update[5:]]), route)
        assert [piece.size for piece in pieces] == [PIECE_BYTES, PIECE_BYTES, 1000]
        taken = open_plane.depot.take(RUN, route.ticket, pieces)
        assert b"".join(path.read_bytes() for path in taken) == update
        assert not open_plane.arrived()


def test_a_nodes_rates_hold_both_ways(
    open_plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only the rests move, so the bytes cannot have been faster."""
    now, rate = [1000.0], 300_000

    def rest(seconds: float) -> None:
        now[0] += seconds

    book = LineBook(tmp_path)
    limits = LimitsSettings(upload_rate=2 * rate, download_rate=rate)
    line = Line(limits, book, clock=lambda: now[0], sleep=rest)
    carrier, route = open_plane.carrier(line=line), open_plane.route()
    asked: list[str] = []
    real = carrier._http.stream

    def noting(method: str, url: str, **how: Any) -> Any:
        asked.append(how["headers"]["range"])
        return real(method, url, **how)

    monkeypatch.setattr(carrier._http, "stream", noting)
    update = os.urandom(PIECE_BYTES + 1000)
    with contextlib.closing(carrier):
        down = carrier.download(Piece(sha256=sha256(WEIGHTS), size=len(WEIGHTS)), route)
        assert b"".join(down) == WEIGHTS
        took = now[0] - 1000.0
        assert took == pytest.approx(len(WEIGHTS) / rate)
        assert asked[:2] == ["bytes=0-1199999", "bytes=1200000-2399999"], "no long answer waits"
        pieces = carrier.upload(iter([update]), route)
        # It rested while weights came, and may catch up a second of that.
        caught_up = now[0] - 1000.0 - took
        assert caught_up == pytest.approx(len(update) / (2 * rate) - CATCH_UP_SECONDS)
    taken = open_plane.depot.take(RUN, route.ticket, pieces)
    assert b"".join(path.read_bytes() for path in taken) == update
    line.close()
    assert (book.today().down, book.today().up) == (len(WEIGHTS), len(update))


def test_what_is_there_is_not_sent_again(
    open_plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by another process, after the first one died."""
    route, update = open_plane.route(), os.urandom(2 * PIECE_BYTES + 1000)
    open_plane.put(update[:PIECE_BYTES], route.up)
    torn = update[PIECE_BYTES : 2 * PIECE_BYTES]
    half = open_plane.depot.piece(route.ticket, sha256(torn))
    half.write_bytes(torn[: PIECE_BYTES // 2])  # as a power cut may leave it
    sent: list[str] = []
    carrier = open_plane.carrier()
    monkeypatch.setattr(
        carrier._http,
        "request",
        _noting(carrier._http.request, lambda method, path: sent.append(f"{method} {path[-6:]}")),
    )
    with contextlib.closing(carrier):
        pieces = carrier.upload(iter([update]), route)
    assert sent[1:] == [f"PUT {piece.sha256[-6:]}" for piece in pieces[1:]]
    assert half.read_bytes() == torn


def _noting(request: Any, note: Callable[[str, str], None]) -> Any:
    def noted(method: str, path: str, **how: Any) -> Any:
        note(method, path)
        return request(method, path, **how)

    return noted


class CutOnce:
    """A body that is cut once, at ``size`` bytes."""

    def __init__(self, real: Any, size: int) -> None:
        self._real, self._size, self.cuts = real, size, 0

    @contextlib.contextmanager
    def __call__(self, *args: Any, **how: Any) -> Iterator[Any]:
        with self._real(*args, **how) as answer:
            if not self.cuts:
                whole, answer.iter_raw = answer.iter_raw, lambda: self._cut(whole())
            yield answer

    def _cut(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        left = self._size
        for part in parts:
            yield part[:left]
            left -= len(part[:left])
            if not left:
                self.cuts += 1
                raise httpx.ReadError("the network is gone")


def test_a_download_that_is_cut_resumes(open_plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    carrier = open_plane.carrier(sleep=waits.append)
    cut = CutOnce(carrier._http.stream, 1_500_000)
    monkeypatch.setattr(carrier._http, "stream", cut)
    # What is left of one time, so that a second whole file would be refused.
    route = open_plane.route().model_copy(
        update={"down": open_plane.token("down", budget=2 * len(WEIGHTS) - 1_500_000)}
    )
    with contextlib.closing(carrier):
        down = carrier.download(Piece(sha256=sha256(WEIGHTS), size=len(WEIGHTS)), route)
        assert b"".join(down) == WEIGHTS
    assert (cut.cuts, len(waits)) == (1, 1)


def test_other_bytes_than_named_do_not_reach_a_learner(open_plane: Plane) -> None:
    """As a mirror could send them."""
    name = sha256(WEIGHTS)
    path = open_plane.depot.weights(RUN, name)
    path.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    try:
        with contextlib.closing(open_plane.carrier()) as carrier:
            got = bytearray()
            with pytest.raises(TryAgainError, match="are not those that the round names"):
                for part in carrier.download(
                    Piece(sha256=name, size=len(WEIGHTS)), open_plane.route()
                ):
                    got += part
            assert len(got) < len(WEIGHTS), "the learner's body never ends"
    finally:
        path.write_bytes(WEIGHTS)


# --- what is refused ------------------------------------------------------------------------------

DATA = os.urandom(1000)


def test_without_a_capability(open_plane: Plane) -> None:
    assert open_plane.put(DATA, "").status_code == 401
    assert open_plane.get("").status_code == 401
    assert open_plane.put(DATA, "nonsense").status_code == 403
    assert open_plane.get("bm9uc2Vuc2U=.00").status_code == 403


def test_a_forged_capability(open_plane: Plane) -> None:
    other = OpenRound(round=ROUND, secret="00" * 32, files={}, tickets=())
    facts = Capability(
        run=RUN, round=ROUND, key=ALICE, direction="up", budget=10**9, until=time.monotonic() + 60
    )
    assert open_plane.put(DATA, other.sign(facts)).status_code == 403
    text, _, signature = open_plane.token("up").partition(".")
    larger = other.sign(facts).partition(".")[0]
    assert open_plane.put(DATA, f"{larger}.{signature}").status_code == 403
    assert open_plane.put(DATA, f"{text}.{signature}").status_code == 201


def test_an_expired_capability(open_plane: Plane) -> None:
    late = time.monotonic() - 1.0
    refused = open_plane.put(DATA, open_plane.token("up", until=late))
    assert (refused.status_code, "has expired" in refused.text) == (403, True)
    assert open_plane.get(open_plane.token("down", until=late)).status_code == 403


def test_a_capability_of_the_other_way(open_plane: Plane) -> None:
    assert open_plane.put(DATA, open_plane.token("down")).status_code == 403
    assert open_plane.get(open_plane.token("up")).status_code == 403


@pytest.mark.parametrize("stolen", [{"key": BOB}, {"round": ROUND + 1}, {"run": "8"}])
def test_a_capability_of_another_node_round_or_run(
    open_plane: Plane, stolen: dict[str, Any]
) -> None:
    refused = open_plane.put(DATA, open_plane.token("up", **stolen))
    assert refused.status_code == 403
    listed = open_plane.http.get(
        f"/up/{ticket(RUN, ROUND, ALICE)}",
        headers={"authorization": f"Bearer {open_plane.token('up', **stolen)}"},
    )
    assert listed.status_code == 403, "nor does it say what another node has sent"


def test_a_capability_counts_no_more_after_its_round(open_plane: Plane) -> None:
    up, down = open_plane.token("up"), open_plane.token("down")
    assert open_plane.put(DATA, up).status_code == 201
    try:
        open_plane.round_file.close()
        assert open_plane.put(DATA, up).status_code == 403
        assert open_plane.get(down).status_code == 403
        # The next one has another secret.
        open_plane.round_file.open(ROUND + 1, {}, [])
        assert open_plane.put(DATA, up).status_code == 403
    finally:
        open_plane.opened = open_round(open_plane.round_file)


def test_a_capability_counts_no_more_when_the_server_app_was_killed(open_plane: Plane) -> None:
    """Nobody has removed the round's file then; after a power cut it is there, too."""
    up, down = open_plane.token("up"), open_plane.token("down", budget=10**9)
    assert open_plane.get(down).status_code == 200
    kept = (open_plane.run_folder / "transfer.json").read_bytes()
    try:
        open_plane.round_file.close()
        (open_plane.run_folder / "transfer.json").write_bytes(kept)
        assert open_plane.put(DATA, up).status_code == 403
        assert open_plane.get(down).status_code == 403
        assert not OpenRounds(open_plane.settings.runs).tickets(), "and nobody waits for its pieces"
    finally:
        open_plane.opened = open_round(open_plane.round_file)


def test_what_was_spent_outlives_a_restart_of_the_service(open_plane: Plane) -> None:
    up, down = open_plane.token("up"), open_plane.token("down", budget=len(WEIGHTS) + 10)
    first = os.urandom(PIECE_BYTES)
    for data in (first, os.urandom(PIECE_BYTES)):
        assert open_plane.put(data, up).status_code == 201
    assert open_plane.get(down).status_code == 200
    book = open_plane.settings.superlink.state / SPENT
    assert up not in book.read_text()
    with book.open("a") as file:
        file.write('{"of": "to')  # as a power cut may leave it
    before = open_plane.transfers._spent
    open_plane.transfers._spent = Spent(book)
    try:
        assert open_plane.put(os.urandom(1001), up).status_code == 413
        assert open_plane.put(first, up).is_success, "the same piece again is no more"
        assert open_plane.put(os.urandom(600), up).status_code == 201
        open_plane.transfers._spent = Spent(book)
        assert open_plane.put(os.urandom(600), up).status_code == 413
        assert open_plane.get(down).status_code == 403
        open_plane.transfers.sweep()
        assert open_plane.get(down).status_code == 403, "the round is open"
        open_plane.opened = open_round(open_plane.round_file)
        open_plane.transfers.sweep()
        assert book.read_text() == "", "of a round that is over nothing is kept"
    finally:
        open_plane.transfers._spent = before


def test_more_bytes_than_agreed(open_plane: Plane) -> None:
    token = open_plane.token("up")
    for _ in range(2):
        assert open_plane.put(os.urandom(PIECE_BYTES), token).status_code == 201
    refused = open_plane.put(os.urandom(1001), token)
    assert (refused.status_code, "more than an update" in refused.text) == (413, True)
    assert open_plane.put(os.urandom(1000), token).status_code == 201
    assert len(open_plane.arrived()) == 3
    assert open_plane.put(os.urandom(17 * 2**20), token).status_code == 413, "in one piece"


def test_more_fetches_than_agreed(open_plane: Plane) -> None:
    token = open_plane.token("down", budget=len(WEIGHTS) + 10)
    assert open_plane.get(token).status_code == 200
    assert open_plane.get(token, range="bytes=0-9").status_code == 206
    assert open_plane.get(token, range="bytes=0-0").status_code == 403


def test_another_hash_than_named(open_plane: Plane) -> None:
    """nginx does not look at what it takes; then the list and the ServerApp do."""
    answer = open_plane.put(DATA, name=sha256(b"something else"))
    if not open_plane.carried:
        assert (answer.status_code, open_plane.arrived()) == (422, [])
    listed = open_plane.http.get(
        f"/up/{ticket(RUN, ROUND, ALICE)}",
        headers={"authorization": f"Bearer {open_plane.token('up')}"},
    )
    assert listed.json() == []
    assert open_plane.arrived() == []


@pytest.mark.parametrize(
    "path",
    [
        "/up/{ticket}/../../../escaped",
        "/up/{ticket}/%2e%2e%2fescaped",
        "/up/../escaped/" + "0" * 64,
        "/up/{ticket}/" + "0" * 63,
        "/up/{ticket}/" + "0" * 64 + "/x",
        "/up/{ticket}/" + "0" * 64 + "%00",
        "/up/{ticket}/.incoming",
        "/up/{ticket}",
        "/files/" + f"{RUN}." + sha256(WEIGHTS),
        "/may",
    ],
)
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_paths_that_lead_elsewhere(open_plane: Plane, path: str, method: str) -> None:
    token = open_plane.token("up")
    place = path.replace("{ticket}", ticket(RUN, ROUND, ALICE))
    if (method, path) == ("GET", "/up/{ticket}"):
        return
    status = raw(open_plane, method, f"/zk0d/v1{place}", token, DATA)
    assert status in (400, 403, 404, 405), status
    assert not open_plane.arrived()
    assert not list(open_plane.made.root.rglob("escaped*"))


def test_other_methods_on_a_piece(open_plane: Plane) -> None:
    assert open_plane.put(DATA).status_code == 201
    path = f"/zk0d/v1/up/{ticket(RUN, ROUND, ALICE)}/{sha256(DATA)}"
    for method in ("GET", "DELETE", "POST", "MKCOL", "MOVE", "COPY", "PROPFIND"):
        status = raw(open_plane, method, path, open_plane.token("up"), b"")
        assert status in (400, 403, 404, 405, 411), (method, status)
    assert len(open_plane.arrived()) == 1


def raw(made: Plane, method: str, path: str, token: str, body: bytes) -> int:
    """A request as it stands: httpx would tidy its path."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {token}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    with connected(made) as there:
        there.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return status_of(there)


@contextlib.contextmanager
def connected(made: Plane) -> Iterator[socket.socket]:
    port = made.made.gateway if made.by_nginx else made.made.presence
    with socket.create_connection(("127.0.0.1", port), timeout=120) as plain:
        if not made.by_nginx:
            yield plain
            return
        trust = ssl.create_default_context(cafile=str(made.made.certificates.ca))
        with trust.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped:
            yield wrapped


def status_of(there: socket.socket) -> int:
    """The status that comes; 0 if the connection is closed without one."""
    told = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while b"\r\n" not in told:
            part = there.recv(65536)
            if not part:
                break
            told += part
    return int(told.split()[1]) if told else 0


def test_a_body_without_a_length(open_plane: Plane) -> None:
    refused = open_plane.put(DATA, content=iter([DATA]))
    assert (refused.status_code, "Content-Length" in refused.text) == (411, True)


@pytest.mark.slow
def test_a_body_that_does_not_come(open_plane: Plane) -> None:
    """The connection is given up after 20 s of silence, and nothing stays."""
    head = (
        f"PUT /zk0d/v1/up/{ticket(RUN, ROUND, ALICE)}/{sha256(DATA)} HTTP/1.1\r\n"
        f"Host: x\r\nAuthorization: Bearer {open_plane.token('up')}\r\n"
        f"Content-Length: {len(DATA)}\r\n\r\n"
    )
    with connected(open_plane) as there:
        there.sendall(head.encode() + DATA[:100])
        assert status_of(there) in (0, 408)
    assert not open_plane.arrived()


def test_a_body_that_drips(open_plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nginx, which counts the silence between two bytes alone."""
    if open_plane.by_nginx:
        pytest.skip("nginx has no least rate; it holds few connections of an address")
    monkeypatch.setattr(transfers, "LEAST_BYTES_PER_SECOND", 10_000)
    head = (
        f"PUT /zk0d/v1/up/{ticket(RUN, ROUND, ALICE)}/{sha256(DATA)} HTTP/1.1\r\n"
        f"Host: x\r\nAuthorization: Bearer {open_plane.token('up')}\r\n"
        f"Content-Length: {len(DATA)}\r\n\r\n"
    )
    with connected(open_plane) as there:
        there.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            for byte in DATA[:200]:
                there.sendall(bytes([byte]))
                time.sleep(0.05)  # slower than anybody who means it
        assert status_of(there) in (0, 408)
    assert not open_plane.arrived()


def test_a_spool_that_is_full(open_plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    own = open_plane.depot._settings
    monkeypatch.setattr(
        open_plane.depot, "_settings", own.model_copy(update={"limit_gib": 1500 / 2**30})
    )
    monkeypatch.setattr(open_plane.depot, "_used_at", float("-inf"))
    assert open_plane.put(DATA).status_code == 201
    refused = open_plane.put(os.urandom(1000), key=BOB)
    assert (refused.status_code, "limit-gib" in refused.text) == (507, True)
    # What the ServerApp has taken of it is still there.
    open_plane.depot.take(RUN, ticket(RUN, ROUND, ALICE), [Piece(sha256=sha256(DATA), size=1000)])
    monkeypatch.setattr(open_plane.depot, "_used_at", float("-inf"))
    assert open_plane.put(os.urandom(1000), key=BOB).status_code == 507
    open_plane.depot.clear(RUN, [])
    monkeypatch.setattr(open_plane.depot, "_used_at", float("-inf"))
    assert open_plane.put(DATA, key=BOB).status_code == 201


def test_a_refusal_reaches_who_is_sending(
    open_plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads a body that is refused; the status must come all the same, each time."""
    monkeypatch.setattr("zk0d.federation.depot.KEPT_FREE", 2**60)
    block = os.urandom(4 * 2**20)
    answers = [open_plane.put(block) for _ in range(20)]
    assert {(each.status_code, each.text) for each in answers} == {
        (507, "the coordinator's disk is full.\n")
    }


def test_a_piece_without_room_is_sent_again_once_there_is_some(
    open_plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow line would carry it in vain each time."""
    monkeypatch.setattr("zk0d.federation.depot.KEPT_FREE", 2**60)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 5:
            monkeypatch.setattr("zk0d.federation.depot.KEPT_FREE", 0)

    book = LineBook(tmp_path)
    block = os.urandom(PIECE_BYTES)
    with contextlib.closing(Line(LimitsSettings(), book)) as line:
        carrier = open_plane.carrier(line=line, sleep=sleep)
        with contextlib.closing(carrier):
            carrier.upload(iter([block]), open_plane.route())
    assert len(waits) == 5
    assert open_plane.arrived() == [f"{ticket(RUN, ROUND, ALICE)}.{sha256(block)}"]
    assert book.today().up <= 2 * len(block)


def test_a_full_disk_is_a_507_and_nothing_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    for by_nginx in (False, True) if nginx() else (False,):
        root = tmp_path / str(by_nginx)
        up = root / "server/transfer/up"
        up.mkdir(parents=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(up)], capture_output=True
        )
        if mounted.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
        try:
            with plane(root, by_nginx=by_nginx) as made:
                # The look before: 64 MiB stay free.
                refused = made.put(DATA)
                assert (refused.status_code, "disk is full" in refused.text) == (507, True)
                # And a disk that fills up while a piece comes.
                monkeypatch.setattr("zk0d.federation.depot.KEPT_FREE", -(2**30))
                assert made.put(os.urandom(PIECE_BYTES)).status_code == 201
                refused = made.put(os.urandom(PIECE_BYTES), key=BOB)
                assert (refused.status_code, "could not write" in refused.text) == (507, True)
                # nginx removes the half one when it is done with the connection.
                wait_until(lambda made=made: len(made.arrived()) == 1, "the half one's end", 30)  # type: ignore[misc]
                waits: list[float] = []
                carrier = made.carrier(patience=-1.0, sleep=waits.append)
                with contextlib.closing(carrier), pytest.raises(TryAgainError) as raised:
                    carrier.upload(iter([os.urandom(PIECE_BYTES)]), made.route(BOB))
                assert raised.value.reason == "disk_full"
                monkeypatch.undo()
        finally:
            subprocess.run(["umount", str(up)], check=True)


def test_what_came_too_late_is_swept(open_plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_plane.put(DATA).status_code == 201
    orphan = open_plane.depot.piece("0" * 32, sha256(DATA))
    orphan.write_bytes(DATA)
    half = open_plane.settings.transfers.incoming / "0000000001"
    half.write_bytes(b"half")
    open_plane.transfers.sweep()
    assert orphan.exists(), "its run may be resumed"
    monkeypatch.setattr("zk0d.federation.depot.ABANDONED_SECONDS", -1.0)
    open_plane.transfers.sweep()
    assert not orphan.exists()
    assert not half.exists()
    assert len(open_plane.arrived()) == 1, "the round is open"


# --- nginx by itself ------------------------------------------------------------------------------


@needs_nginx
def test_the_gateways_user_writes_what_the_apps_group_reads(tmp_path: Path) -> None:
    """With the folders, users and umask of the system's units."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("other users need root and setpriv")
    gateway, app = 64001, 64002
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 0o005:
            parent.chmod(parent.stat().st_mode | 0o005)
    with lab(tmp_path, Path("/nothing")) as made:
        settings = ServerSettings.load(made.server_toml)
        own = settings.transfers
        for path, owner, group, mode in (
            (own.down, app, gateway, 0o2750),
            (own.up, gateway, app, 0o2770),
            (own.incoming, gateway, app, 0o2770),
            (own.taken, app, app, 0o0750),
        ):
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, owner, group)
            path.chmod(mode)
        weights = Depot(own).publish(RUN, payload(WEIGHTS))
        os.chown(own.down / f"{RUN}.{weights.sha256}", app, -1)
        runtime = tmp_path / "runtime"
        runtime.mkdir()
        os.chown(runtime, gateway, gateway)
        config = tmp_path / "nginx.conf"
        for secret in (made.certificates.certificate, made.certificates.key):
            copy = runtime / secret.name
            shutil.copy(secret, copy)
            os.chown(copy, gateway, gateway)
        text = configuration(
            settings,
            certificate=runtime / made.certificates.certificate.name,
            key=runtime / made.certificates.key.name,
            ca=made.certificates.ca,
            runtime=runtime,
            log="off",
            loopback=True,
        )
        config.write_text(text)
        config.chmod(0o644)
        made.certificates.ca.parent.chmod(0o755)
        page = PresencePage(Presence(), made.presence, Transfers(settings))
        as_gateway = ["setpriv", f"--reuid={gateway}", f"--regid={gateway}", "--clear-groups"]
        program = nginx()
        assert program
        command = [*as_gateway, "--pdeathsig=TERM", program, "-e", "stderr", "-c", str(config)]
        running = started(["sh", "-c", 'umask 0077; exec "$@"', "sh", *command])
        with running, contextlib.closing(page):
            wait_until(lambda: _listens(made.gateway), "nginx", 30)
            folder = settings.runs / RUN
            folder.mkdir(parents=True)
            round_file = RoundFile(folder)
            opened = open_round(round_file)
            url = f"https://127.0.0.1:{made.gateway}/zk0d/v1"
            trust = ssl.create_default_context(cafile=str(made.certificates.ca))
            with httpx.Client(base_url=url, verify=trust) as http:
                done = Plane(
                    made,
                    settings,
                    Transfers(settings),
                    url,
                    http,
                    True,
                    True,
                    opened,
                    round_file,
                )
                assert done.put(DATA).status_code == 201
                assert done.get(done.token("down", budget=10**9)).content == WEIGHTS
                piece = done.depot.piece(ticket(RUN, ROUND, ALICE), sha256(DATA))
                found = piece.stat()
                assert (found.st_uid, found.st_gid) == (gateway, app)
                assert found.st_mode & 0o777 == 0o660
                as_app = ["setpriv", f"--reuid={app}", f"--regid={app}", "--clear-groups"]
                moved = own.taken / "moved"
                subprocess.run([*as_app, "mv", str(piece), str(moved)], check=True)
                read = subprocess.run([*as_app, "cat", str(moved)], capture_output=True, check=True)
                assert read.stdout == DATA


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@needs_nginx
@pytest.mark.slow
def test_an_upload_resumes_after_nginx_was_killed_and_reloaded(tmp_path: Path) -> None:
    with plane(tmp_path, by_nginx=True) as made:
        update = os.urandom(2 * PIECE_BYTES + 1000)
        gateway = made.made.others[-1]
        sent = 0

        def source() -> Iterator[bytes]:
            nonlocal gateway, sent
            for start in range(0, len(update), 2**20):
                yield update[start : start + 2**20]
                sent += 1
                if sent == 9:
                    gateway.stop(1.0)
                    gateway = made.made.start_gateway()
                if sent == 13:
                    gateway.signal(1)

        with contextlib.closing(made.carrier()) as carrier:
            pieces = carrier.upload(source(), made.route())
        taken = made.depot.take(RUN, ticket(RUN, ROUND, ALICE), pieces)
        assert b"".join(path.read_bytes() for path in taken) == update
