"""Both ends of a wait: a node's line, and a SuperLink that serves on loopback."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import uvicorn

from tests.flower.test_wait_line import PlainContext
from tests.flower.test_waiting_room import Made, Node, SuperLink, installed
from tests.processes import wait_until
from zk0d.flower.supernode import IDLE_WAIT, Pacing
from zk0d.flower.wait_line import WaitLine

__all__ = ["installed"]  # a fixture


@dataclass
class Idle:
    """A SuperLink, and a node that waits for its next message as Flower's loop does."""

    link: SuperLink
    server: uvicorn.Server
    serving: threading.Thread
    node: Node
    line: WaitLine
    slept: list[float] = field(default_factory=list)
    looked: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        pacing = Pacing(self.slept.append, lambda: None, self.line)
        pacing._wait = IDLE_WAIT  # nothing happened for a while

        def loop() -> None:
            pacing.sleep(IDLE_WAIT)
            self.looked.set()

        threading.Thread(target=loop, daemon=True).start()
        wait_until(lambda: len(self.link.room) == 1 or self.looked.is_set(), "the wait", 60)


@pytest.fixture
def idle(installed: Made) -> Iterator[Idle]:
    link = installed()
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(link.app, lifespan="off", log_config=None))
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    serving.start()
    node = link.enrolled()
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    context: ssl.SSLContext = PlainContext(ssl.PROTOCOL_TLS_CLIENT)
    line = WaitLine(address, context, lambda _: node.headers())
    yield Idle(link, server, serving, node, line)
    link.room.close()
    server.should_exit = True
    serving.join(60)


@pytest.mark.slow
def test_an_idle_node_looks_as_soon_as_its_message_is_stored(idle: Idle) -> None:
    idle.wait()
    assert not idle.looked.is_set()
    idle.link.send(idle.node)
    assert idle.looked.wait(60)
    assert idle.slept == [], "between the message and the look there is no wait"
    assert len(idle.link.state.get_message_ins(idle.node.number, limit=1)) == 1


def test_a_superlink_that_ends_waits_for_no_node(idle: Idle) -> None:
    idle.wait()
    idle.server.handle_exit(signal.SIGTERM, None)
    assert idle.looked.wait(60)
    assert idle.slept == [IDLE_WAIT], "the node asks as before"
    idle.serving.join(60)
    assert not idle.serving.is_alive()


def test_a_node_that_hangs_up_is_not_held(idle: Idle) -> None:
    idle.wait()
    idle.line.hang_up()
    assert idle.looked.wait(60)
    wait_until(lambda: len(idle.link.room) == 0, "the SuperLink to see it", 60)
