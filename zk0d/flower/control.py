"""A SuperLink's Control API: nodes and runs.

Flower has no authentication there: it is on loopback only, and ours asks for a secret
(:mod:`zk0d.flower.superlink`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError

from zk0d.config.run import RunSettings
from zk0d.errors import ConfigError, UnavailableError, Zk0dError
from zk0d.federation.nodes import Node
from zk0d.flower.superlink import SECRET_HEADER, read_secret
from zk0d.machine.keys import public_pem

FINISHED = "finished"
COMPLETED = "completed"
STOPPED = "stopped"
UNREGISTERED = "unregistered"  #: Flower lists such nodes on


@dataclass(frozen=True)
class FlowerRun:
    """A run as Flower sees it."""

    run_id: int
    submitted: str  #: when it was submitted, ISO 8601
    status: str  #: pending, starting, running or finished
    outcome: str  #: once finished: completed, failed or stopped
    details: str


class Control:
    """One SuperLink, at ``host:port``, with the CA certificate that its own is signed by.

    ``secret`` is the file with its control secret; ``None`` for one that asks for none.

    Raises
    ------
    UnavailableError
        From any method, if it cannot be reached.
    Zk0dError
        If it refuses; with Flower's sentence.
    """

    def __init__(self, address: str, ca: Path, secret: Path | None = None) -> None:
        self.address = address
        try:
            certificates = ca.read_bytes()
        except OSError as error:
            raise ConfigError(f"{ca}: the CA certificate cannot be read ({error}).") from None
        self._client = ControlHttpClient.from_server_address(
            address,
            insecure=False,
            root_certificates=certificates,
            interceptors=[_Secret(read_secret(secret))] if secret else [],
        )

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def nodes(self) -> list[Node]:
        """Every registered node."""
        found = self._call(self._client.ListNodes, ListNodesRequest()).nodes_info
        return [Node.of(info) for info in found if info.status != UNREGISTERED]

    def register(self, public_key: Path, name: str) -> int:
        """Let the node with this key in; its number."""
        request = RegisterNodeRequest(public_key=public_pem(public_key), name=name)
        return int(self._call(self._client.RegisterNode, request).node_id)

    def unregister(self, node_id: int) -> None:
        """Let a node in no more; its session ends at its next call."""
        self._call(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node_id))

    def start_run(self, settings: RunSettings, bundle: bytes | None = None) -> int:
        """Start a run of the apps that are installed, whatever the bundle names; its number."""
        # A service that only looks need not hold Flower's bundling.
        from zk0d.flower.bundle import build_bundle

        bundle = bundle if bundle is not None else build_bundle()
        request = StartRunRequest(
            fab=Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle),
            override_config=user_config_to_proto(settings.said()),
        )
        run_id = int(self._call(self._client.StartRun, request).run_id)
        if not run_id:
            raise Zk0dError("the SuperLink did not start the run; its log says why.")
        return run_id

    def run(self, run_id: int) -> FlowerRun:
        """One run's state."""
        return _state(
            self._call(self._client.ListRuns, ListRunsRequest(run_id=run_id)).run_dict[run_id]
        )

    def runs(self) -> list[FlowerRun]:
        """The newest runs, oldest first. Asking also lets Flower clean up finished ones."""
        found = self._call(self._client.ListRuns, ListRunsRequest(limit=100)).run_dict
        return sorted((_state(run) for run in found.values()), key=lambda run: run.submitted)

    def stop_run(self, run_id: int) -> None:
        """Stop a run; what it committed stays."""
        self._call(self._client.StopRun, StopRunRequest(run_id=run_id))

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.FORBIDDEN:
                raise Zk0dError(
                    f"the SuperLink at {self.address} refuses: this is not its control secret; run"
                    " zk0bot on the coordinator, as root."
                ) from None
            refusal = FlowerError.from_json(error.response.text)
            said = (refusal.public_details or refusal.message) if refusal else str(error)
            raise Zk0dError(f"the SuperLink at {self.address} refuses: {said}") from None
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"the SuperLink at {self.address} cannot be reached ({type(error).__name__}:"
                f" {error}); is it running?"
            ) from None


class _Secret:
    """Sends the control secret with every call."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        context.request.headers[SECRET_HEADER] = self._secret.decode()
        response: httpx.Response = call_next(context)
        return response


def _state(run: Any) -> FlowerRun:
    status = run.status
    return FlowerRun(run.run_id, run.pending_at, status.status, status.sub_status, status.details)
