"""A node's side of the wait: when it asks to be told, and what it does if nobody tells it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.supernode import fleet_http_connection

from zk0d.flower.supernode import (
    FIRST_WAIT,
    GROWTH,
    IDLE_WAIT,
    LOOK_ANYWAY_SECONDS,
    TRY_AGAIN_SECONDS,
    Pacing,
    name_requests,
)
from zk0d.flower.wait_line import HEARTBEAT_PATH, HEARTBEAT_SECONDS, Signer, Told, WaitLine
from zk0d.flower.waiting_room import HOLD_SECONDS


class FakeLine:
    """Says what the test has it say."""

    def __init__(self, *said: Told) -> None:
        self.said = list(said)
        self.asked = 0

    def wait(self) -> Told:
        self.asked += 1
        return self.said.pop(0) if self.said else Told.NOTHING_CAME

    def hang_up(self) -> None: ...


def idle(line: FakeLine, clock: Callable[[], float]) -> tuple[Pacing, list[float]]:
    """A node for which nothing happened for a while, and how long it slept since."""
    slept: list[float] = []
    pacing = Pacing(slept.append, lambda: slept.append(-1.0), line, clock)  # type: ignore[arg-type]
    while pacing._wait < IDLE_WAIT:
        pacing.sleep(IDLE_WAIT)
    assert line.asked == 0
    slept.clear()
    return pacing, slept


def test_an_idle_node_looks_when_it_is_told() -> None:
    line = FakeLine(Told.NOTHING_CAME, Told.NOTHING_CAME, Told.LOOK_NOW)
    pacing, slept = idle(line, lambda: 0.0)
    pacing.sleep(IDLE_WAIT)
    assert (line.asked, slept) == (3, []), "it looks at once"
    pacing.sleep(IDLE_WAIT)
    pacing.sleep(IDLE_WAIT)
    assert slept == [FIRST_WAIT, FIRST_WAIT * GROWTH], "more may come soon"


def test_an_idle_node_looks_anyway_now_and_then() -> None:
    moments = iter(range(0, 10 * int(LOOK_ANYWAY_SECONDS), int(HOLD_SECONDS)))
    line = FakeLine()
    pacing, slept = idle(line, lambda: float(next(moments)))
    pacing.sleep(IDLE_WAIT)
    assert slept == []
    assert 0 < line.asked <= LOOK_ANYWAY_SECONDS / HOLD_SECONDS


def test_a_coordinator_that_tells_nothing_is_asked_as_before() -> None:
    now = [0.0]
    line = FakeLine(Told.FAILED, Told.FAILED)
    pacing, slept = idle(line, lambda: now[0])
    for _ in range(3):
        pacing.sleep(IDLE_WAIT)
    assert (line.asked, slept) == (1, [IDLE_WAIT] * 3)
    now[0] = TRY_AGAIN_SECONDS + 1
    pacing.sleep(IDLE_WAIT)
    assert line.asked == 2


def test_a_node_leaves_while_it_waits() -> None:
    class Leaving(FakeLine):
        def wait(self) -> Told:
            pacing.leave()
            return Told.FAILED

    pacing, slept = idle(Leaving(), lambda: 0.0)
    pacing.sleep(IDLE_WAIT)
    assert slept == [-1.0], "it ends, and asks no more"


class Coordinator:
    """Takes connections on loopback, without TLS, and answers requests as the test says."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.came = threading.Event()  #: a request is here
        self.may_answer = threading.Event()
        self.statuses: list[int] = []
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            with connection, connection.makefile("rwb") as file:
                while list(iter(lambda: file.readline().strip(), b"")):
                    self.came.set()
                    self.may_answer.wait(60)
                    if not self.statuses:
                        break
                    answer = f"HTTP/1.1 {self.statuses.pop(0)} X\r\ncontent-length: 0\r\n\r\n"
                    file.write(answer.encode())
                    file.flush()

    def close(self) -> None:
        self.may_answer.set()
        self._listening.close()


class PlainContext(ssl.SSLContext):
    """Leaves a connection as it is."""

    def wrap_socket(self, sock: Any, *_: Any, **__: Any) -> Any:
        return sock


@pytest.fixture
def coordinator() -> Any:
    made = Coordinator()
    yield made
    made.close()


def line_to(coordinator: Coordinator, clock: Callable[[], float] = lambda: 0.0) -> WaitLine:
    context = PlainContext(ssl.PROTOCOL_TLS_CLIENT)
    return WaitLine(coordinator.address, context, lambda _: {}, clock)


def test_a_line_says_what_the_coordinator_answered(coordinator: Coordinator) -> None:
    coordinator.may_answer.set()
    coordinator.statuses = [204, 200, 404, 429]
    line = line_to(coordinator)
    assert [line.wait() for _ in range(5)] == [
        Told.NOTHING_CAME,
        Told.LOOK_NOW,
        Told.FAILED,  # as an older coordinator
        Told.FAILED,  # as a gateway that finds it too much
        Told.FAILED,  # the connection ended
    ]
    assert coordinator.connections == 4, "only after nothing came it is used again"


def test_a_line_tells_that_the_node_is_alive_only_while_it_is_held(
    coordinator: Coordinator,
) -> None:
    coordinator.may_answer.set()
    coordinator.statuses = [204, 204, 200]
    now = [0.0]
    line = line_to(coordinator, lambda: now[0])
    assert not line.tells_alive
    line.wait()
    assert line.tells_alive
    now[0] = HEARTBEAT_SECONDS + 1
    assert not line.tells_alive, "an answer is late: the coordinator may be away"
    line.wait()
    assert line.tells_alive
    line.wait()
    assert not line.tells_alive, "there is work"


def test_hanging_up_ends_a_wait(coordinator: Coordinator) -> None:
    line = line_to(coordinator)
    said: list[Told] = []
    waits = threading.Thread(target=lambda: said.append(line.wait()), daemon=True)
    waits.start()
    assert coordinator.came.wait(60)
    line.hang_up()
    waits.join(60)
    assert said == [Told.FAILED]
    coordinator.came.clear()
    assert line.wait() is Told.FAILED
    assert not coordinator.came.is_set(), "and none begins"


def test_a_line_without_a_coordinator_says_so() -> None:
    line = WaitLine("127.0.0.1:1", ssl.create_default_context(), lambda _: {})
    line.hang_up()
    assert line.wait() is Told.FAILED


def test_a_heartbeat_is_sent_unless_the_wait_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fleet_http_connection.NodeAuthHttpInterceptor
    monkeypatch.setattr(fleet_http_connection, "NodeAuthHttpInterceptor", before)
    line, signer = SimpleNamespace(tells_alive=False), Signer()
    name_requests("a-1", signer, line)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="not read yet"):
        signer.headers("https://link")
    interceptor = fleet_http_connection.NodeAuthHttpInterceptor(*generate_key_pairs())
    sent: list[str] = []

    def call(path: str) -> httpx.Response:
        context = SimpleNamespace(request=httpx.Request("POST", f"https://link{path}"))

        def call_next(inner: Any) -> httpx.Response:
            sent.append(inner.request.url.path)
            return httpx.Response(200, request=inner.request)

        answer: httpx.Response = interceptor.intercept(context, call_next)
        return answer

    call(HEARTBEAT_PATH)
    line.tells_alive = True
    answer = call(HEARTBEAT_PATH).raise_for_status()
    assert SendNodeHeartbeatResponse.FromString(answer.content).success
    call("/v1/fleet/pull-messages")
    assert sent == [HEARTBEAT_PATH, "/v1/fleet/pull-messages"]
    assert signer.headers("https://link")["x-zk0d-session"] == "a-1"


def test_the_heartbeats_path_is_flowers() -> None:
    from flwr.superlink.routers.fleet.router import router

    assert HEARTBEAT_PATH in {getattr(route, "path", "") for route in router.routes}
