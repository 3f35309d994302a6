"""A federation of real services on loopback: what a coordinator and its contributors run.

The same services as on many machines, each with settings of its own: SuperLink, SuperExec and
evaluator of the coordinator; SuperNode, SuperExec and learner of each contributor.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from zk0d.config.run import RunSettings
from zk0d.daemon.child import Child
from zk0d.demo.layout import Contributor, Layout, toml_string
from zk0d.errors import Zk0dError
from zk0d.flower.control import COMPLETED, FINISHED, Control, FlowerRun
from zk0d.flower.version import check_version
from zk0d.machine.certificates import Certificates, make_certificates
from zk0d.machine.enrolment import Request
from zk0d.machine.keys import make_node_key, make_secret
from zk0d.machine.roles import Role
from zk0d.machine.roster import approve
from zk0d.services.foreground import Foreground, programs

SUPEREXEC_POLL = 0.1


@dataclass
class Federation:
    """A running federation."""

    layout: Layout
    control: Control
    services: Foreground
    certificates: Certificates

    @property
    def children(self) -> list[Child]:
        return self.services.children

    def check(self) -> None:
        """Raise :class:`ChildError` if one of its services ended."""
        self.services.look()

    def start_run(self, settings: RunSettings) -> int:
        """Start a run; its number, which is also its folder's name under ``layout.runs``."""
        return self.control.start_run(settings)

    def state(self, run_id: int) -> FlowerRun:
        return self.control.run(run_id)

    def raise_if_failed(self, state: FlowerRun) -> None:
        """Raise what ended a run that did not complete."""
        if state.status == FINISHED and state.outcome != COMPLETED:
            said = state.details.removeprefix("ServerApp failed with exception: ")
            raise Zk0dError(f"the run {state.outcome}: {said}", reason="run_failed")


@contextmanager
def federation(
    layout: Layout,
    *,
    cpu_threads: int,
    device: str = "cpu",
    open_control: bool = False,
    metrics_hosts: Sequence[str] = (),
    adapt: Callable[[], None] = lambda: None,
) -> Iterator[Federation]:
    """Start every service, let the nodes in, and stop every process at the end, however it comes.

    Parameters
    ----------
    cpu_threads
        Threads of each learner.
    device
        Of the learners and the evaluator. The comparison computes on the CPU, too.
    open_control
        Let Flower's own program start runs, too.
    metrics_hosts
        Addresses at which Prometheus can read the coordinator and each contributor, in this order;
        different ones, because the ports are the same. Without, none is read.
    adapt
        Called when ``server.toml`` and each ``client.toml`` are written and nothing runs yet: it
        may change them.

    Raises
    ------
    ChildError
        If a service ends while it starts; with what it said last.
    """
    check_version()
    files = _Files(layout)
    files.write(cpu_threads, device, open_control, metrics_hosts)
    adapt()
    try:
        with (
            Foreground(layout.root, lambda name: layout.logs / f"{name}.log", restart=False) as run,
            Control(
                f"127.0.0.1:{files.link_port}", files.certificates.ca, files.control_secret
            ) as control,
        ):
            # Learners load torch for seconds: they start first, the rest meanwhile.
            server = {each.name: each for each in programs(Role.SERVER, layout.server_config)}
            nodes = [
                replace(each, name=f"{contributor.name}-{each.name.removeprefix('client-')}")
                for contributor in layout.contributors
                for each in programs(Role.CLIENT, layout.client_config(contributor))
            ]
            run.start([server["evaluator"]])
            run.start([each for each in nodes if each.name.endswith("-learner")])
            run.start([server["superlink"]])
            # Who comes before it answers would wait and try again.
            run.wait_until_ready("superlink")
            run.start([replace(server["server-superexec"], name="superexec")])
            run.start([each for each in nodes if not each.name.endswith("-learner")])
            run.wait_until_ready()
            yield Federation(layout, control, run, files.certificates)
    finally:
        layout.clean()


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
        ports = _free_ports(2 + layout.count)
        self.link_port, self._presence_port, *self._node_ports = ports
        self.server_secret = layout.coordinator / "superexec.secret"
        self.certificates = make_certificates(layout.tls, ["127.0.0.1", "localhost"])
        make_secret(self.server_secret)
        self.control_secret = layout.coordinator / "control.secret"
        make_secret(self.control_secret)
        for contributor in layout.contributors:
            # As on many machines: a node asks, signed with its key, and is approved.
            key = self.key(contributor)
            make_node_key(key)
            asked = Request.of(contributor.name, key.with_suffix(".pub")).to_text(key)
            approve(layout.roster, Request.from_text(asked))
            make_secret(self.node_secret(contributor))

    def key(self, contributor: Contributor) -> Path:
        return self._layout.home(contributor) / "node.key"

    def node_secret(self, contributor: Contributor) -> Path:
        return self._layout.home(contributor) / "superexec.secret"

    def write(
        self, cpu_threads: int, device: str, open_control: bool, metrics_hosts: Sequence[str]
    ) -> None:
        """``server.toml`` and each ``client.toml``, as an operator would write them."""
        layout = self._layout
        metrics = [f"host = {toml_string(host)}" for host in metrics_hosts]
        metrics = metrics or ["enabled = false"] * (1 + layout.count)
        evaluations = "".join(
            f"\n[[evaluation]]\n"
            f"name = {toml_string(contributor.letter)}\n"
            f"dataset-uri = {toml_string(f'local:{layout.held_out(contributor)}')}\n"
            f"simulator = {toml_string(layout.task)}\n"
            f"sector = [{contributor.sector.index}, {contributor.sector.of}]\n"
            for contributor in layout.contributors
        )
        home, tls = layout.coordinator, self.certificates
        layout.server_config.write_text(
            f"state = {toml_string(home)}\n\n"
            f"[superlink]\n"
            f"port = {self.link_port}\n"
            f"presence-port = {self._presence_port}\n"
            f"open-control = {str(open_control).lower()}\n"
            f"state = {toml_string(home / 'superlink')}\n"
            f"roster = {toml_string(layout.roster)}\n"
            f"ca = {toml_string(tls.ca)}\n"
            f"certificate = {toml_string(tls.certificate)}\n"
            f"key = {toml_string(tls.key)}\n"
            f"secret = {toml_string(self.server_secret)}\n"
            f"control-secret = {toml_string(self.control_secret)}\n\n"
            f"[superexec]\n"
            f"state = {toml_string(home / 'superexec')}\n"
            f"poll-interval = {SUPEREXEC_POLL}\n\n"
            f"[metrics]\n{metrics[0]}\n\n"
            f"[evaluator]\n"
            f"socket = {toml_string(layout.socket('evaluator'))}\n"
            f"device = {toml_string(device)}\n"
            f"{evaluations}",
            encoding="utf-8",
        )
        for number, (contributor, port) in enumerate(
            zip(layout.contributors, self._node_ports, strict=True)
        ):
            home = layout.home(contributor)
            layout.client_config(contributor).write_text(
                f"name = {toml_string(contributor.name)}\n"
                f"dataset-uri = {toml_string(f'local:{layout.recordings(contributor)}')}\n\n"
                f"[coordinator]\n"
                f'address = "127.0.0.1:{self.link_port}"\n'
                f"ca = {toml_string(tls.ca)}\n"
                f'presence = "http://127.0.0.1:{self._presence_port}/zk0d/v1"\n\n'
                f"[supernode]\n"
                f"key = {toml_string(self.key(contributor))}\n"
                f"secret = {toml_string(self.node_secret(contributor))}\n"
                f"port = {port}\n"
                f"state = {toml_string(home / 'supernode')}\n\n"
                f"[superexec]\n"
                f"state = {toml_string(home / 'superexec')}\n"
                f"poll-interval = {SUPEREXEC_POLL}\n\n"
                f"[metrics]\n{metrics[1 + number]}\n\n"
                f"[learner]\n"
                f"socket = {toml_string(layout.socket(contributor.letter))}\n"
                f"device = {toml_string(device)}\n"
                f"cpu-threads = {cpu_threads}\n",
                encoding="utf-8",
            )
