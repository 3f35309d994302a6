"""Nodes that wait, as many as wanted: what they ask the coordinator, and nothing of what they do.

Each has a key, an address of its own on loopback (the gateway's limits are by address) and real
connections over TLS. Its signed requests are those of Flower's SuperNode, its looks at the presence
page those of ``zk0d supernode``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import ssl
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node as FlowerNode
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from zk0d.flower.supernode import IDLE_WAIT
from zk0d.flower.wait_line import HEARTBEAT_SECONDS
from zk0d.flower.waiting_room import LOOK_NOW, NOTHING_CAME, PATH
from zk0d.services.coordinator import QUIET_FACTOR

BETWEEN_HEARTBEATS = (17.5, 22.5)  #: Flower's
FLOWERS_INTERVAL = 30.0  #: what its requests say of the heartbeats
PRESENCE_SECONDS = 10.0  #: the setting's default
_BODY = {"content-type": "application/protobuf", "accept": "application/protobuf"}


class Protocol(Enum):
    """How a node waits."""

    ASKS = "asks every 3 s"
    IS_TOLD = "is told"

    @property
    def presence_seconds(self) -> float:
        return PRESENCE_SECONDS * (QUIET_FACTOR if self is Protocol.IS_TOLD else 1.0)


@dataclass
class Seen:
    """What the nodes saw: seconds of each request by kind, and refusals by kind and status."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    broken: int = 0  #: connections
    protocol: Protocol = Protocol.ASKS  #: of all nodes; may change while they wait

    def clear(self) -> None:
        self.seconds.clear()
        self.refused.clear()
        self.broken = 0


class Line:
    """A connection that is kept, for one request at a time."""

    def __init__(self, port: int, address: str, trust: ssl.SSLContext) -> None:
        self._port, self._address, self._trust = port, address, trust
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> tuple[int, bytes]:
        """Status and content."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                "127.0.0.1",
                self._port,
                ssl=self._trust,
                server_hostname="localhost",
                local_addr=(self._address, 0),
            )
        reader, writer = self._streams
        head = {"host": "localhost", "content-length": str(len(body)), **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{key}: {value}" for key, value in head.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        try:
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in answer[1:] if ": " in line)
            content = await self._content(reader, fields)
        except (asyncio.IncompleteReadError, OSError):
            self.close()
            raise
        if fields.get("connection") == "close":
            self.close()
        return int(answer[0].split()[1]), content

    @staticmethod
    async def _content(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
        if "transfer-encoding" not in fields:
            return await reader.readexactly(int(fields.get("content-length", "0")))
        content = b""
        while size := int(await reader.readline(), 16):
            content += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return content

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class WaitingNode:
    """One node.

    Parameters
    ----------
    number
        Gives it its address.
    """

    def __init__(
        self,
        number: int,
        key: ec.EllipticCurvePrivateKey,
        port: int,
        trust: ssl.SSLContext,
        seen: Seen,
    ) -> None:
        self._public = public_key_to_bytes(key.public_key())
        self._signer = NodeAuthHttpInterceptor(key, key.public_key())
        self._fingerprint = hashlib.sha256(self._public).hexdigest()
        address = f"127.1.{1 + number // 250}.{1 + number % 250}"
        self._line: Callable[[], Line] = lambda: Line(port, address, trust)
        self._seen = seen
        self._node = FlowerNode()
        self._alive = float("-inf")  #: as that of zk0d's line

    async def live(self, ready: Callable[[], None]) -> None:
        """Come online, say so, and wait until cancelled."""
        looks, beats = self._line(), self._line()
        asked = ActivateNodeRequest(
            public_key=self._public, heartbeat_interval=FLOWERS_INTERVAL
        ).SerializeToString()
        while True:
            status, content = await self._signed(looks, "activate-node", asked)
            if status == LOOK_NOW:
                break
            if status in (401, 403):
                raise RuntimeError(f"node {self._fingerprint[:12]} was refused with {status}")
            # As a SuperNode that is restarted: its old session may still count, if an answer is
            # lost.
            await asyncio.sleep(2.0)
        self._node = FlowerNode(node_id=ActivateNodeResponse.FromString(content).node_id)
        ready()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat(beats))
            group.create_task(self._look_at_presence())
            group.create_task(self._look(looks))

    async def _beat(self, line: Line) -> None:
        body = SendNodeHeartbeatRequest(
            node=self._node, heartbeat_interval=FLOWERS_INTERVAL
        ).SerializeToString()
        while True:
            await asyncio.sleep(random.uniform(*BETWEEN_HEARTBEATS))
            if time.monotonic() - self._alive >= HEARTBEAT_SECONDS:
                with contextlib.closing(line):  # Flower's keeps a connection for 5 s
                    await self._signed(line, "send-node-heartbeat", body)

    async def _look(self, line: Line) -> None:
        body = PullMessagesRequest(node=self._node).SerializeToString()
        await asyncio.sleep(random.uniform(0.0, IDLE_WAIT))
        while True:
            status = 0
            if self._seen.protocol is Protocol.IS_TOLD:
                status, _ = await self._signed(line, PATH.rpartition("/")[2], b"")
            self._alive = time.monotonic() if status == NOTHING_CAME else float("-inf")
            if status != NOTHING_CAME:
                await self._signed(line, "pull-messages", body)
                await asyncio.sleep(IDLE_WAIT)

    async def _look_at_presence(self) -> None:
        wait = random.uniform(0.0, PRESENCE_SECONDS)
        while True:
            await asyncio.sleep(wait)
            wait = self._seen.protocol.presence_seconds
            line = self._line()  # a new one each time, as zk0d's
            with contextlib.closing(line):
                await self._timed(line, "GET", "presence", f"/zk0d/v1/nodes/{self._fingerprint}")

    async def _signed(self, line: Line, kind: str, body: bytes) -> tuple[int, bytes]:
        context = SimpleNamespace(request=httpx.Request("POST", "https://localhost/"))
        self._signer.intercept(context, lambda _: None)
        named = {k: v for k, v in context.request.headers.items() if k.startswith("flwr-")}
        return await self._timed(line, "POST", kind, f"/v1/fleet/{kind}", {**_BODY, **named}, body)

    async def _timed(
        self,
        line: Line,
        method: str,
        kind: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> tuple[int, bytes]:
        began = time.monotonic()
        try:
            status, content = await line.ask(method, path, headers or {}, body)
        except (asyncio.IncompleteReadError, OSError):
            self._seen.broken += 1
            return 0, b""
        self._seen.seconds[kind].append(time.monotonic() - began)
        if status not in (LOOK_NOW, NOTHING_CAME):
            self._seen.refused[kind, status] += 1
        return status, content


class WaitingNodes:
    """Nodes with these keys, all of them online and waiting; ``at_once`` come at a time."""

    def __init__(self, port: int, trust: ssl.SSLContext, at_once: int = 8) -> None:
        self._port, self._trust = port, trust
        self._gate = asyncio.Semaphore(at_once)
        self._tasks: list[asyncio.Task[None]] = []
        self.seen = Seen()

    async def add(self, keys: list[ec.EllipticCurvePrivateKey]) -> None:
        """Have more nodes come; returns when they are there."""
        online = asyncio.Semaphore(0)

        def ready() -> None:
            self._gate.release()
            online.release()

        async def live(number: int, key: ec.EllipticCurvePrivateKey) -> None:
            node = WaitingNode(number, key, self._port, self._trust, self.seen)
            await self._gate.acquire()
            await node.live(ready)

        for number, key in enumerate(keys, len(self._tasks)):
            self._tasks.append(asyncio.create_task(live(number, key)))
        for _ in keys:
            comes = asyncio.create_task(online.acquire())
            await asyncio.wait([comes, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()  # raises

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
