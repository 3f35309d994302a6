"""Runs ServerApp and ClientApps without SuperLink and SuperNodes: in this process, or on Ray."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from zk0d.errors import UnavailableError
from zk0d.federation.server_app import CLOSED
from zk0d.flower.version import check_version

PARTITION = "partition-id"
_CLIENT_APP_RAISED = 2
STOP_SECONDS = 15.0

ClientCall = Callable[[Message, Context], Message]
Takes = Callable[[int, Message], float]


@dataclass(frozen=True)
class RayOptions:
    """Where Ray runs the contributors.

    Attributes
    ----------
    address
        A cluster that is there; empty starts Ray on this machine, for this simulation only.
    workers
        On this machine: how many contributors train at once.
    cpus, gpus
        Share of a machine's that one contributor takes; with an address, they decide how many
        train at once.
    """

    address: str = ""
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


def has_ray() -> bool:
    """Whether the extra ``simulation`` is installed."""
    return importlib.util.find_spec("ray") is not None


def run_in_process(
    server_app: ServerApp,
    client: ClientCall,
    names: Sequence[str],
    run_config: dict[str, Any],
    run_id: int,
    takes: Takes | None = None,
) -> None:
    """One contributor after another, in this process; without Flower's engine.

    Parameters
    ----------
    names
        What the contributors are called, by partition.
    takes
        Seconds after which a contributor's answer comes, by partition and answer. They pass by a
        clock of the simulation's own. Without it, answers come at once.

    Raises
    ------
    Zk0dError
        What the ServerApp raises.
    """
    check_version()
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, 1, 1
    grid = (
        DirectGrid(client, names, run_id)
        if takes is None
        else TimedGrid(client, names, run_id, takes)
    )
    server_app(grid, _context(run_config, run_id))


def run_on_ray(
    server_app: ServerApp,
    client: ClientCall,
    names: Sequence[str],
    run_config: dict[str, Any],
    run_id: int,
    options: RayOptions,
) -> None:
    """Flower's simulation engine: a pool of Ray actors, each any of the contributors.

    Parameters
    ----------
    names
        What the contributors are called, by partition.

    Raises
    ------
    UnavailableError
        If Ray is not installed, or the cluster cannot be reached or is too small.
    Zk0dError
        What the ServerApp raises.
    """
    check_version()
    if not has_ray():
        raise UnavailableError(
            "Ray is not installed; pip install 'zk0d[simulation]', or use --engine in-process."
        )
    import ray
    from flwr.simulation import run_simulation

    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        del context  # Flower's own has no settings
        server_app(_named(grid, names), _context(run_config, run_id))

    # Of the environment workers on other machines get where the hub's files lie; GPUs are Ray's.
    passed = {
        name: os.environ[name]
        for name in ("HF_HUB_OFFLINE", "HF_HOME", "HF_LEROBOT_HOME")
        if name in os.environ
    }
    local = {"num_cpus": max(1.0, options.workers * options.cpus)}
    where = {"address": options.address} if options.address else local
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a tip about GPUs, of Ray's
            ray.init(
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": passed},
                **where,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UnavailableError(
            f"--ray-address: Ray at {options.address or 'this machine'} cannot be used"
            f" ({str(error).splitlines()[0]}); check that the cluster runs and has Ray"
            f" {ray.__version__}."
        ) from None
    try:
        _check_room(ray.cluster_resources(), options)
        run_simulation(
            server_app=app,
            client_app=client,
            num_supernodes=len(names),
            backend_name="ray",
            backend_config={
                "client_resources": {"num_cpus": options.cpus, "num_gpus": options.gpus}
            },
        )
    finally:
        ray.shutdown()


def stop_ray() -> None:
    """End Ray's processes on this machine, if this process started any; at most some seconds."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        stopping = threading.Thread(target=ray.shutdown, daemon=True)
        stopping.start()
        stopping.join(STOP_SECONDS)


def _check_room(resources: dict[str, float], options: RayOptions) -> None:
    for name, wanted in (("CPU", options.cpus), ("GPU", options.gpus)):
        if wanted > resources.get(name, 0.0):
            raise UnavailableError(
                f"--{name.lower()}s: a contributor takes {wanted:g}, Ray has"
                f" {resources.get(name, 0.0):g} in all; ask for less."
            )


def _named(grid: Grid, names: Sequence[str]) -> Grid:
    """Flower's grid, with names for its nodes: it registers them in the order of partitions."""
    get_nodes = grid.get_nodes

    def named() -> list[Any]:
        nodes = sorted(get_nodes(), key=lambda info: info.registered_at)
        for info, name in zip(nodes, names, strict=False):  # it may still register some
            info.name = name
        return nodes

    grid.get_nodes = named
    return grid


def _context(run_config: dict[str, Any], run_id: int) -> Context:
    return Context(
        run_id=run_id,
        node_id=1,
        node_config={CLOSED: True},
        state=RecordDict(),
        run_config=run_config,
    )


class DirectGrid(Grid):  # type: ignore[misc]
    """Runs the ClientApp at once, in this process, for every message."""

    def __init__(self, client: ClientCall, names: Sequence[str], run_id: int) -> None:
        self._client = client
        self._run_id = run_id
        self._names = names
        self._answers: dict[str, Message] = {}
        self._ids = itertools.count(1)

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(range(1, len(self._names) + 1))

    def get_nodes(self) -> list[Any]:
        return [
            SimpleNamespace(node_id=number, name=name, status="online")
            for number, name in enumerate(self._names, 1)
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            name = f"m{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = name
            number = message.metadata.dst_node_id
            context = Context(
                run_id=self._run_id,
                node_id=number,
                node_config={PARTITION: number - 1},
                state=RecordDict(),
                run_config={},
            )
            message.content = copied(message.content)
            TaskIdentity.node_id = number
            try:
                self._answers[name] = self._client(message, context)
            except Exception as error:
                logging.getLogger("flwr").error(traceback.format_exc())
                # As Flower answers for an app that raised.
                reason = f"{type(error).__name__}: {error}"
                self._answers[name] = Message(
                    Error(code=_CLIENT_APP_RAISED, reason=reason), reply_to=message
                )
            finally:
                TaskIdentity.node_id = 1
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._answers.pop(i) for i in list(message_ids) if i in self._answers]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: Any = None
    ) -> list[Message]:
        raise NotImplementedError


class TimedGrid(DirectGrid):
    """The same, with answers that come later by a clock that only :meth:`sleep` moves on."""

    def __init__(self, client: ClientCall, names: Sequence[str], run_id: int, takes: Takes) -> None:
        super().__init__(client, names, run_id)
        self._takes = takes
        self._now = 0.0
        self._due: dict[str, float] = {}

    def clock(self) -> float:
        """Seconds of the simulation."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let them pass."""
        self._now += seconds

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        numbers = [message.metadata.dst_node_id - 1 for message in messages]
        ids = super().push_messages(messages)
        for number, name in zip(numbers, ids, strict=True):
            self._due[name] = self._now + self._takes(number, self._answers[name])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages(i for i in message_ids if self._due.get(i, 0.0) <= self._now)


def copied(record: RecordDict) -> RecordDict:
    """Reading takes a record's payload out; the other nodes still need it."""
    copy = RecordDict(dict(record.items()))
    if "payload" in copy:
        copy["payload"] = ArrayRecord(dict(record["payload"].items()))
    return copy


class _LogFile(logging.FileHandler):
    """Where a simulation's process logs to."""


def log_to(path: Path) -> None:
    """Send what Flower, LeRobot and we log to a file; the terminal shows events and one error."""
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    flower, root = logging.getLogger("flwr"), logging.getLogger()
    flower.handlers.clear()
    flower.propagate = False
    for each in list(root.handlers):
        # Its own kind only: a library that logs first makes one of these.
        if type(each) is logging.StreamHandler or isinstance(each, _LogFile):
            root.removeHandler(each)
    for log in (flower, root):
        log.addHandler(handler)
    logging.captureWarnings(True)
