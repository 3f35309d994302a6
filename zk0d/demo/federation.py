"""A federation of real processes on loopback: what a coordinator and its contributors run.

SuperLink with TLS, node keys and a database on disk; SuperExec and evaluator beside it; for each
contributor a SuperNode, its SuperExec and a learner.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zk0d.config.run import RunSettings
from zk0d.daemon.child import Child, stop_all, wait_until
from zk0d.demo.layout import Contributor, Layout, toml_string
from zk0d.errors import Zk0dError
from zk0d.federation.client_app import SOCKET_VARIABLE
from zk0d.federation.learner_client import LearnerClient, LearnerError
from zk0d.federation.server_app import CONFIG_VARIABLE
from zk0d.flower import commands
from zk0d.flower.control import COMPLETED, FINISHED, Control, RunState
from zk0d.flower.keys import Certificates, make_certificates, make_node_key, make_secret
from zk0d.flower.version import check_version

START_SECONDS = 120.0
SUPEREXEC_POLL = 0.1


@dataclass
class Federation:
    """A running federation."""

    layout: Layout
    control: Control
    children: list[Child]
    certificates: Certificates

    def check(self) -> None:
        """Raise :class:`ChildError` if one of its processes ended."""
        for child in self.children:
            child.check()

    def start_run(self, settings: RunSettings) -> int:
        """Start a run; its number, which is also its folder's name under ``layout.runs``."""
        return self.control.start_run(settings)

    def state(self, run_id: int) -> RunState:
        return self.control.run(run_id)

    def raise_if_failed(self, state: RunState) -> None:
        """Raise what ended a run that did not complete."""
        if state.status == FINISHED and state.outcome != COMPLETED:
            said = state.details.removeprefix("ServerApp failed with exception: ")
            raise Zk0dError(f"the run {state.outcome}: {said}", reason="run_failed")


@contextmanager
def federation(layout: Layout, *, cpu_threads: int) -> Iterator[Federation]:
    """Start every process, register the nodes, and stop every process at the end, however it comes.

    Parameters
    ----------
    cpu_threads
        Threads of each learner.

    Raises
    ------
    ChildError
        If a process ends while it starts; with what it said last.
    """
    check_version()
    files = _Files(layout)
    files.write(cpu_threads)
    children: list[Child] = []
    control = None
    try:
        ports = _free_ports(1 + layout.count)
        # The learners load torch for seconds: they start first, the rest meanwhile.
        learners = [
            _spawn(
                layout,
                f"{contributor.name}-learner",
                _learner("learner", layout.client_config(contributor)),
            )
            for contributor in layout.contributors
        ]
        evaluator = _spawn(layout, "evaluator", _learner("evaluator", layout.server_config))
        children += [*learners, evaluator]
        superlink = _spawn(
            layout,
            "superlink",
            commands.superlink(
                ports[0],
                files.certificates,
                layout.coordinator / "superlink.db",
                files.server_secret,
                layout.coordinator / "flower",
            ),
        )
        children.append(superlink)
        address = f"127.0.0.1:{ports[0]}"
        control = Control(address, files.certificates.ca)
        wait_until(lambda: _answers(control), "the SuperLink's start", START_SECONDS, children)
        for contributor in layout.contributors:
            control.register(files.key(contributor).with_suffix(".pub"), contributor.name)
        children.append(
            _spawn(
                layout,
                "server-superexec",
                commands.superexec(
                    "server",
                    address,
                    files.server_secret,
                    layout.coordinator / "flower-exec",
                    ca=files.certificates.ca,
                    poll_seconds=SUPEREXEC_POLL,
                    env={CONFIG_VARIABLE: str(layout.server_config)},
                ),
            )
        )
        for contributor, port in zip(layout.contributors, ports[1:], strict=True):
            children += _node(layout, files, contributor, address, port)
        for contributor, learner in zip(layout.contributors, learners, strict=True):
            _wait_for_learner(layout.socket(contributor.letter), learner, children)
        _wait_for_learner(layout.socket("evaluator"), evaluator, children)
        yield Federation(layout, control, children, files.certificates)
    finally:
        if control is not None:
            control.close()
        stop_all(children)
        layout.clean()


def _node(
    layout: Layout, files: _Files, contributor: Contributor, address: str, port: int
) -> list[Child]:
    home = layout.home(contributor)
    node_config = home / "node.toml"
    commands.write_node_config(node_config, layout.socket(contributor.letter))
    secret = files.node_secret(contributor)
    node = commands.supernode(
        address,
        files.certificates.ca,
        files.key(contributor),
        secret,
        port,
        node_config,
        home / "flower",
    )
    superexec = commands.superexec(
        "client",
        f"127.0.0.1:{port}",
        secret,
        home / "flower-exec",
        ca=None,
        poll_seconds=SUPEREXEC_POLL,
        env={SOCKET_VARIABLE: str(layout.socket(contributor.letter))},
    )
    return [
        _spawn(layout, f"{contributor.name}-supernode", node),
        _spawn(layout, f"{contributor.name}-superexec", superexec),
    ]


def _learner(verb: str, config: Path) -> commands.Command:
    return commands.Command(
        [commands.program("zk0d"), verb, "--config", str(config)],
        commands.child_environment(HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "1")),
    )


def _spawn(layout: Layout, name: str, command: commands.Command) -> Child:
    return Child(name, command.argv, command.env, layout.logs / f"{name}.log", layout.root)


def _answers(control: Control) -> bool:
    try:
        control.nodes()
    except Zk0dError:
        return False
    return True


def _wait_for_learner(path: Path, learner: Child, children: list[Child]) -> None:
    def answers() -> bool:
        if not path.exists():
            return False
        with LearnerClient(path) as client:
            try:
                client.status()
            except LearnerError:
                return False
            return True

    wait_until(answers, f"{learner.name}'s start", START_SECONDS, children)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = []
    for _ in range(count):
        probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        probe.bind(("127.0.0.1", 0))
        sockets.append(probe)
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


class _Files:
    """Keys, certificates, secrets and settings of a demo's machines."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.server_secret = layout.coordinator / "superexec.secret"
        self.certificates = make_certificates(layout.tls, ["127.0.0.1", "localhost"])
        make_secret(self.server_secret)
        for contributor in layout.contributors:
            make_node_key(self.key(contributor))
            make_secret(self.node_secret(contributor))

    def key(self, contributor: Contributor) -> Path:
        return self._layout.home(contributor) / "node.key"

    def node_secret(self, contributor: Contributor) -> Path:
        return self._layout.home(contributor) / "superexec.secret"

    def write(self, cpu_threads: int) -> None:
        """``server.toml`` and each ``client.toml``, as an operator would write them."""
        layout = self._layout
        evaluations = "".join(
            f"\n[[evaluation]]\n"
            f"name = {toml_string(contributor.letter)}\n"
            f"dataset-uri = {toml_string(f'local:{layout.held_out(contributor)}')}\n"
            f'simulator = "soreach"\n'
            f"sector = [{contributor.sector.index}, {contributor.sector.of}]\n"
            for contributor in layout.contributors
        )
        layout.server_config.write_text(
            f"state = {toml_string(layout.coordinator)}\n\n"
            f"[evaluator]\n"
            f"socket = {toml_string(layout.socket('evaluator'))}\n"
            f"{evaluations}",
            encoding="utf-8",
        )
        for contributor in layout.contributors:
            layout.client_config(contributor).write_text(
                f"name = {toml_string(contributor.name)}\n"
                f"dataset-uri = {toml_string(f'local:{layout.recordings(contributor)}')}\n\n"
                f"[learner]\n"
                f"socket = {toml_string(layout.socket(contributor.letter))}\n"
                f"cpu-threads = {cpu_threads}\n",
                encoding="utf-8",
            )
