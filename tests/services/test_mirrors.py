"""Weights from mirrors, which nobody has to trust."""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.processes import started, wait_until
from tests.services.lab import nginx
from tests.services.test_transfers import (
    RUN,
    WEIGHTS,
    Plane,
    _listens,
    needs_nginx,
    open_round,
    payload,
    plane,
    sha256,
)
from zk0d.config.machine import TransferSettings
from zk0d.demo.federation import _free_ports
from zk0d.errors import ConfigError, TryAgainError
from zk0d.federation import carrier, depot
from zk0d.federation.capability import MIRROR
from zk0d.federation.depot import Depot
from zk0d.federation.messages import Mirror, Piece, Route

BLOCK = 2**20
ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("transfers")]

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def whole(handler: BaseHTTPRequestHandler, data: bytes, status: int = 200) -> None:
    """An honest mirror's answer, ranges included."""
    if found := re.fullmatch(r"bytes=(\d+)-", handler.headers.get("range", "")):
        data, status = data[int(found[1]) :], 206
    handler.send_response(status)
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def lying(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    """Right in the first block alone."""
    changed = bytearray(data)
    changed[-1] ^= 1
    changed[BLOCK + 7] ^= 1
    whole(handler, bytes(changed))


def shorter(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    whole(handler, data[: BLOCK + 100])


def longer(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    whole(handler, data + b"more" * BLOCK)


def cut_off(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.send_response(200)
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: BLOCK + 100])


def missing(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    whole(handler, b"nothing of that name", 404)


def elsewhere(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    del data
    handler.send_response(302)
    handler.send_header("location", "http://127.0.0.1:1/")
    handler.send_header("content-length", "0")
    handler.end_headers()


def silent(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.send_response(200)
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[:BLOCK])
    handler.wfile.flush()
    handler.server.ended.wait(60)  # type: ignore[attr-defined]


def dripping(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    """Never silent for long, and never done."""
    handler.send_response(200)
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    with contextlib.suppress(OSError):
        for at in itertools.count():
            handler.wfile.write(data[at : at + 1])
            if handler.server.ended.wait(0.05):  # type: ignore[attr-defined]
                return


@contextlib.contextmanager
def mirror(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A mirror on loopback: its URL, and the requests that came with what they showed."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(f"{self.path} {self.headers.get('authorization', '')}")
            answer(self, WEIGHTS)
            self.close_connection = True

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.ended = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/zk0d", seen
        finally:
            server.ended.set()  # type: ignore[attr-defined]
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with plane(tmp_path_factory.mktemp("mirrors"), by_nginx=False) as made:
        yield made


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (carrier, depot):
        monkeypatch.setattr(module, "BLOCK_BYTES", BLOCK)
    # A busy machine is no mirror's fault.
    monkeypatch.setattr(carrier, "MIRROR_SILENCE", 120.0)
    monkeypatch.setattr(carrier, "MIRROR_BLOCK_SECONDS", 300.0)


def published(made: Plane) -> Piece:
    """The weights, as a coordinator with mirrors names them."""
    own = made.settings.transfers.model_copy(update={"mirrors": ("http://any.example/zk0d",)})
    return Depot(own).publish(RUN, payload(WEIGHTS))


def through(made: Plane, *urls: str) -> Route:
    """A node's route whose gateway gives the weights once."""
    down = made.token("down", budget=len(WEIGHTS))
    mirrors = [
        Mirror(url=url, down=made.token("down", f"{MIRROR}{n}", budget=2 * len(WEIGHTS)))
        for n, url in enumerate(urls)
    ]
    return made.route().model_copy(update={"down": down, "mirrors": tuple(mirrors)})


@pytest.fixture
def fresh(served: Plane) -> Plane:
    """With every budget unspent."""
    served.opened = open_round(served.round_file)
    return served


def test_a_file_for_mirrors_is_named_by_its_blocks(fresh: Plane) -> None:
    piece = published(fresh)
    parts = [WEIGHTS[at : at + BLOCK] for at in range(0, len(WEIGHTS), BLOCK)]
    assert (piece.sha256, piece.blocks) == (sha256(WEIGHTS), tuple(map(sha256, parts)))
    assert len(piece.blocks) > 2
    assert not fresh.depot.publish(RUN, payload(WEIGHTS)).blocks, "nobody else needs them"


def test_a_mirror_spares_the_coordinator_all_of_it(fresh: Plane) -> None:
    with mirror(whole) as (url, seen), contextlib.closing(fresh.carrier()) as way:
        route = through(fresh, url)
        assert b"".join(way.download(published(fresh), route)) == WEIGHTS
    assert fresh.transfers._spent.fetched(route.down) == 0
    ((path, shown),) = [(line.split()[0], line.split()[-1]) for line in seen]
    assert path == f"/zk0d/down/{sha256(WEIGHTS)}"
    assert shown == route.mirrors[0].down, "never the node's own capability"


@pytest.mark.parametrize(
    "answer",
    [lying, shorter, cut_off, missing, elsewhere, silent, dripping],
    ids=lambda answer: answer.__name__,
)
def test_a_mirror_that_is_wrong_or_slow_does_no_harm(
    fresh: Plane, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer is silent:
        monkeypatch.setattr(carrier, "MIRROR_SILENCE", 5.0)
    if answer is dripping:
        monkeypatch.setattr(carrier, "MIRROR_BLOCK_SECONDS", 3.0)
    with mirror(answer) as (url, seen), contextlib.closing(fresh.carrier()) as way:
        route, piece = through(fresh, url), published(fresh)
        assert b"".join(way.download(piece, route)) == WEIGHTS
        spent = fresh.transfers._spent.fetched(route.down)
        kept = BLOCK if answer in (lying, shorter, cut_off) else 0
        if answer is not silent:  # a busy machine may need the whole 5 s for its first block
            assert spent == len(WEIGHTS) - kept, "what was right need not come again"
        assert len(seen) == 1
        # It is not asked again for what is beside the weights.
        again = route.model_copy(update={"down": fresh.token("down", budget=2 * len(WEIGHTS))})
        assert b"".join(way.download(piece, again)) == WEIGHTS
        assert len(seen) == 1


def test_what_a_mirror_sends_beyond_the_file_is_not_read(fresh: Plane) -> None:
    """A last block that is too long is not what was named."""
    with mirror(longer) as (url, _), contextlib.closing(fresh.carrier()) as way:
        assert b"".join(way.download(published(fresh), through(fresh, url))) == WEIGHTS


def test_mirrors_are_asked_one_after_the_other(fresh: Plane) -> None:
    gone = f"http://127.0.0.1:{_free_ports(1)[0]}"
    with mirror(lying) as (one, _), mirror(whole) as (two, _):
        for _ in range(4):  # their order is by chance
            with contextlib.closing(fresh.carrier()) as way:
                route = through(fresh, gone, one, two, "https://", "http://[")
                assert b"".join(way.download(published(fresh), route)) == WEIGHTS
                assert fresh.transfers._spent.fetched(route.down) == 0


def test_a_slow_reader_is_not_the_mirrors_fault(
    fresh: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learner may take its time for a block."""
    now = [0.0]
    monkeypatch.setattr(carrier, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with mirror(whole) as (url, _), contextlib.closing(fresh.carrier()) as way:
        route, got = through(fresh, url), bytearray()
        for part in way.download(published(fresh), route):
            got += part
            now[0] += 3600.0
    assert got == WEIGHTS
    assert fresh.transfers._spent.fetched(route.down) == 0


def test_a_mirrors_capability_has_a_budget_of_its_own(fresh: Plane) -> None:
    """If it spends it, it harms itself: what it has not got it cannot give."""
    route = through(fresh, "http://any.example")
    theirs = route.mirrors[0].down
    answer = fresh.get(theirs)
    assert "public" in answer.headers["cache-control"]
    assert fresh.get(theirs).status_code == 200
    assert fresh.get(theirs).status_code == 403
    assert fresh.put(b"x", theirs).status_code == 403
    answer = fresh.get(route.down)
    assert (answer.status_code, "private" in answer.headers["cache-control"]) == (200, True)


def test_the_coordinators_own_bytes_are_checked_as_ever(fresh: Plane) -> None:
    piece = published(fresh)
    path = fresh.depot.weights(RUN, piece.sha256)
    path.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    try:
        with (
            mirror(missing) as (url, _),
            contextlib.closing(fresh.carrier()) as way,
            pytest.raises(TryAgainError, match="are not those that the round names"),
        ):
            list(way.download(piece, through(fresh, url)))
    finally:
        path.write_bytes(WEIGHTS)


@pytest.mark.parametrize(
    "url",
    ["ftp://a.example/x", "https://a.example/", "https://u:p@a.example", "a.example", "http://"],
)
def test_a_mirror_is_a_plain_url(url: str) -> None:
    with pytest.raises(ConfigError, match="mirrors"):
        TransferSettings.parse({"mirrors": [url]}, where="test")
    assert TransferSettings.parse({"mirrors": ["http://10.0.0.3:8080"]}, where="test").mirrors


@needs_nginx
def test_the_pages_nginx_is_a_mirror(tmp_path: Path) -> None:
    """As docs/coordinator.md has it: it fetches a file once for all nodes."""
    (text,) = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/coordinator.md").read_text(), re.S)
    with plane(tmp_path, by_nginx=True) as made:
        (port,) = _free_ports(1)
        for old, new in {
            "listen 8080": f"listen 127.0.0.1:{port}",
            "hub.example:9443": f"localhost:{made.made.gateway}",  # a name, as in the page
            "hub.example": "localhost",
            "/etc/nginx/zk0d-ca.crt": str(made.made.certificates.ca),
            "/var/cache/zk0d": str(tmp_path / "cache"),
        }.items():
            assert old in text, old
            text = text.replace(old, new)
        temporary = "".join(
            f'{kind}_temp_path "{tmp_path}/m-{kind}";\n'
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = tmp_path / "mirror.conf"
        config.write_text(
            f'daemon off;\npid "{tmp_path}/mirror.pid";\nerror_log stderr;\nuser root;\n'
            f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{text}}}\n"
        )
        with started([nginx(), "-e", "stderr", "-c", str(config)]):
            wait_until(lambda: _listens(port), "the mirror", 30)
            piece = published(made)
            route = through(made, f"http://127.0.0.1:{port}")
            for _ in range(3):
                with contextlib.closing(made.carrier()) as way:
                    assert b"".join(way.download(piece, route)) == WEIGHTS
        assert made.transfers._spent.fetched(route.down) == 0
        assert made.transfers._spent.fetched(route.mirrors[0].down) == len(WEIGHTS)
