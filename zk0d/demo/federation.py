"""A federation of real services on loopback: what a coordinator and its contributors run.

The same services as on many machines, each with settings of its own: SuperLink, SuperExec and
evaluator of the coordinator; SuperNode, SuperExec and learner of each contributor.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings
from zk0d.daemon.child import Child
from zk0d.demo.layout import Contributor, Layout
from zk0d.errors import Zk0dError
from zk0d.flower.control import COMPLETED, FINISHED, Control, FlowerRun
from zk0d.flower.version import check_version
from zk0d.machine.certificates import Certificates
from zk0d.machine.enrolment import Request
from zk0d.machine.node_key import request
from zk0d.machine.roles import Role
from zk0d.machine.roster import approve
from zk0d.machine.setup import merged, set_up_client, set_up_server
from zk0d.services.foreground import Foreground
from zk0d.services.standalone import programs

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
    server: Mapping[str, Any] = {},
    client: Mapping[str, Any] = {},
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
    server, client
        Other settings for the coordinator, and for each contributor.

    Raises
    ------
    ChildError
        If a service ends while it starts; with what it said last.
    """
    check_version()
    _set_up(
        layout,
        cpu_threads=cpu_threads,
        device=device,
        open_control=open_control,
        metrics_hosts=metrics_hosts,
        server=server,
        client=client,
    )
    link = ServerSettings.load(layout.server_config).superlink
    try:
        with (
            Foreground(layout.root, lambda name: layout.logs / f"{name}.log", restart=False) as run,
            Control(f"127.0.0.1:{link.port}", link.ca, link.control_secret) as control,
        ):
            # Learners load torch for seconds: they start first, the rest meanwhile.
            ours = {each.name: each for each in programs(Role.SERVER, layout.server_config)}
            nodes = [
                replace(each, name=f"{contributor.name}-{each.name.removeprefix('client-')}")
                for contributor in layout.contributors
                for each in programs(Role.CLIENT, layout.client_config(contributor))
                if each.name != "owner"  # nobody comes before a demo
            ]
            run.start([ours["evaluator"]])
            run.start([each for each in nodes if each.name.endswith("-learner")])
            run.start([ours["superlink"]])
            # Who comes before it answers would wait and try again.
            run.wait_until_ready("superlink")
            run.start([replace(ours["server-superexec"], name="superexec")])
            run.start([each for each in nodes if not each.name.endswith("-learner")])
            run.wait_until_ready()
            certificates = Certificates(link.ca, link.certificate, link.key)
            yield Federation(layout, control, run, certificates)
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


def _set_up(
    layout: Layout,
    *,
    cpu_threads: int,
    device: str,
    open_control: bool,
    metrics_hosts: Sequence[str],
    server: Mapping[str, Any],
    client: Mapping[str, Any],
) -> None:
    """Set up every machine of a demo, as its owner would, and let the nodes in."""
    link, presence, *ports = _free_ports(2 + layout.count)
    metrics: Sequence[Mapping[str, Any]] = [{"host": host} for host in metrics_hosts]
    metrics = metrics or [{"enabled": False}] * (1 + layout.count)
    home, superexec = layout.coordinator, {"poll-interval": SUPEREXEC_POLL}
    own: dict[str, Any] = {
        "state": home,
        "superlink": {
            "port": link,
            "presence-port": presence,
            "open-control": open_control,
            "state": home / "superlink",
        },
        "superexec": superexec | {"state": home / "superexec"},
        "metrics": metrics[0],
        "evaluator": {"socket": layout.socket("evaluator"), "device": device},
        "evaluation": [evaluation(layout, contributor) for contributor in layout.contributors],
    }
    set_up_server(home, [], merged(own, server))
    ca = (home / "tls" / "ca.crt").read_bytes()
    for contributor, port, shown in zip(layout.contributors, ports, metrics[1:], strict=True):
        node = layout.home(contributor)
        own = {
            "dataset-uri": f"local:{layout.recordings(contributor)}",
            "coordinator": {"presence": f"http://127.0.0.1:{presence}/zk0d/v1"},
            "supernode": {"port": port, "state": node / "supernode"},
            "superexec": superexec | {"state": node / "superexec"},
            "metrics": shown,
            "learner": {
                "socket": layout.socket(contributor.letter),
                "state": node / "learner",
                "device": device,
                "cpu-threads": cpu_threads,
            },
        }
        set_up_client(node, contributor.name, f"127.0.0.1:{link}", ca, merged(own, client))
        # As on many machines: a node asks, signed with its key, and is approved.
        approve(home / "roster.d", Request.from_text(request(node, "")))


def evaluation(layout: Layout, contributor: Contributor) -> dict[str, Any]:
    """The coordinator's table of what a contributor recorded to be held out."""
    sector = contributor.sector
    return {
        "name": contributor.letter,
        "dataset-uri": f"local:{layout.held_out(contributor)}",
        "simulator": layout.task,
        "sector": [sector.index, sector.of],
    }
