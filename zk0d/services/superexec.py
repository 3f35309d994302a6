"""``zk0d superexec ROLE``: starts the installed apps for a SuperLink or a SuperNode."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from zk0d.config.machine import (
    CA_VARIABLE,
    CONFIG_VARIABLE,
    COORDINATOR_VARIABLE,
    LIMITS_VARIABLE,
    LINE_FOLDER_VARIABLE,
    OWNER_VARIABLE,
    RELEASES_LINE_VARIABLE,
    SOCKET_VARIABLE,
    ClientSettings,
    ServerSettings,
    SuperexecSettings,
)
from zk0d.daemon.clock import Stillness
from zk0d.daemon.line import LineWatch
from zk0d.daemon.metrics import Metrics
from zk0d.daemon.service import Condition, Service
from zk0d.daemon.supervised import Supervised
from zk0d.flower import commands
from zk0d.flower.logs import relay
from zk0d.flower.superexec import PULSE_VARIABLE
from zk0d.machine.credentials import credential
from zk0d.services.reports import Reports

PULSE_LIMIT = 30.0  #: seconds without a look for work that count as stuck
START_LIMIT = 20.0
LEARNER_SECONDS = 1.0  #: a scrape waits no longer for the learner


class SuperexecService(Service):
    """Keeps a SuperExec running and sees that it looks for work.

    Parameters
    ----------
    role
        ``server`` or ``client``.
    peer
        Port on loopback of the Runtime API it works for.
    learner
        Socket of the learner beside it, which has no network: its metrics are shown here.
    reports
        Of a coordinator, whose runs' folders are this service's.
    line
        Of a contributor, whose ClientApps count what moves over it.
    """

    def __init__(
        self,
        role: str,
        settings: SuperexecSettings,
        metrics: Metrics,
        command: commands.Command,
        peer: int,
        learner: Path,
        reports: Reports | None = None,
        line: LineWatch | None = None,
    ) -> None:
        self.stuck_reasons = ("no_poll",)
        super().__init__(metrics)
        self.name = f"{role}-superexec"
        self._settings = settings
        self._peer = peer
        self._reports = reports
        self._line = line
        self._pulse = settings.state / "pulse"
        self._still = Stillness()
        metrics.collect(AppCollector(self._pulse))
        metrics.collect(LearnerCollector(learner))
        if line is not None:
            metrics.collect(LineCollector(line))
        self._child = Supervised(
            "flower-superexec",
            command.argv,
            {**command.env, PULSE_VARIABLE: str(self._pulse)},
            settings.state,
            metrics,
            log=relay,
        )

    def start(self) -> None:
        self._settings.state.mkdir(parents=True, exist_ok=True)
        self._pulse.unlink(missing_ok=True)
        self._child.start()

    def look(self) -> Condition:
        self._child.look()
        if self._reports is not None:
            self._reports.look()
        if self._child.waits:
            end = self._child.last_end
            assert end is not None
            return Condition(f"the SuperExec ended ({end.reason}): restarting it", ready=False)
        try:
            still = self._still.seconds(self._pulse.stat().st_mtime_ns)
            silent = min(still, self._child.running_seconds)  # not of the process before
        except FileNotFoundError:
            silent = self._child.running_seconds
            if silent < START_LIMIT:
                return Condition("starting", ready=False)
        if silent < PULSE_LIMIT:
            rests = self._line.rests() if self._line is not None else ""
            return Condition(f"the line rests {rests}" if rests else "ready for work")
        if not answers(self._peer):
            # Flower's client retries for ever; that is no fault of this process.
            return Condition(f"waiting for the service at 127.0.0.1:{self._peer}")
        return Condition(
            f"the SuperExec has not looked for work for {silent:.0f} s", stuck="no_poll"
        )

    def stop(self) -> None:
        if self._reports is not None:
            self._reports.stop()
        self._child.stop("service stops")


class AppCollector:
    """What the SuperExec started, by the file in which it says so."""

    def __init__(self, pulse: Path) -> None:
        self._pulse = pulse

    def collect(self) -> Iterator[Metric]:
        """Counters; they begin at 0 with each SuperExec process."""
        try:
            counts = json.loads(self._pulse.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            counts = {"started": 0, "ends": {}, "refused": {}}
        yield CounterMetricFamily(
            "zk0d_apps_started", "App processes started.", value=counts["started"]
        )
        ends = CounterMetricFamily(
            "zk0d_app_ends", "App processes by exit status.", labels=("status",)
        )
        for status, count in {"0": 0, **counts["ends"]}.items():
            ends.add_metric((status,), count)
        yield ends
        refused = CounterMetricFamily(
            "zk0d_tasks_refused", "Tasks of a type that does not run here.", labels=("type",)
        )
        for kind, count in counts["refused"].items():
            refused.add_metric((kind,), count)
        yield refused


class LearnerCollector:
    """Shows the metrics of a learner, asked for at each scrape over its socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def describe(self) -> list[Metric]:
        """What is there without a learner."""
        return [self._up(False)]

    def collect(self) -> Iterator[Metric]:
        """The learner's families, and whether it answered."""
        try:
            found = list(text_string_to_metric_families(_page(self._socket)))
        # Whatever a learner says, the page has the rest: the parser raises several kinds.
        except (OSError, HTTPException, ValueError, LookupError):
            found = []
        yield self._up(bool(found))
        yield from found

    @staticmethod
    def _up(answers: bool) -> Metric:
        return GaugeMetricFamily(
            "zk0d_learner_up", "1 if the learner or evaluator answers.", value=answers
        )


class LineCollector:
    """What moved over a contributor's line, and what its owner lends."""

    def __init__(self, line: LineWatch) -> None:
        self._line = line

    def collect(self) -> Iterator[Metric]:
        """As the ClientApps noted it; they may be five seconds behind."""
        today = self._line.book.today()
        moved = GaugeMetricFamily(
            "zk0d_line_today_bytes",
            "Weights and updates that moved since midnight: down to this node, up from it.",
            labels=("direction",),
        )
        moved.add_metric(("down",), today.down)
        moved.add_metric(("up",), today.up)
        yield moved
        yield GaugeMetricFamily(
            "zk0d_line_day_limit_bytes",
            "What its owner lends of the line a day (limits.bytes-per-day); 0: any number.",
            value=self._line.limits.bytes_per_day,
        )
        yield GaugeMetricFamily(
            "zk0d_line_rests",
            "1 while no round's transfer may begin here, for limits.bytes-per-day, transfer-hours"
            " or a metered connection.",
            value=bool(self._line.resting),
        )


def _page(path: Path) -> str:
    """A learner's metrics. By the standard library: httpx alone takes 6 MB."""
    connection = HTTPConnection("learner", timeout=LEARNER_SECONDS)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(LEARNER_SECONDS)
        connection.sock.connect(str(path))
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        if response.status != HTTPStatus.OK:
            raise ValueError(response.status)
        return response.read().decode()
    finally:
        connection.close()


def answers(port: int) -> bool:
    """Whether something listens on loopback's ``port``."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run(config: Path, role: str) -> None:
    """Run the service for a role."""
    if role == "server":
        server = ServerSettings.load(config)
        command = commands.superexec(
            role,
            f"127.0.0.1:{server.superlink.port}",
            credential("superexec.secret", server.superlink.secret, "superlink.secret"),
            server.superexec.state / "flower",
            ca=credential("ca.crt", server.superlink.ca, "superlink.ca"),
            poll_seconds=server.superexec.poll_interval,
            env={CONFIG_VARIABLE: str(config)},
        )
        settings: SuperexecSettings = server.superexec
        port, host, ports = server.superlink.port, server.metrics.host, server.metrics_ports
        learner = server.evaluator.socket
    else:
        client = ClientSettings.load(config)
        command = commands.superexec(
            role,
            f"127.0.0.1:{client.supernode.port}",
            credential("superexec.secret", client.supernode.secret, "supernode.secret"),
            client.superexec.state / "flower",
            ca=None,
            poll_seconds=client.superexec.poll_interval,
            env={
                SOCKET_VARIABLE: str(client.learner.socket),
                COORDINATOR_VARIABLE: client.coordinator.presence_page,
                CA_VARIABLE: str(credential("ca.crt", client.coordinator.ca, "coordinator.ca")),
                LIMITS_VARIABLE: client.limits.model_dump_json(by_alias=True),
                LINE_FOLDER_VARIABLE: str(client.superexec.state),
                RELEASES_LINE_VARIABLE: str(client.policies_folder),
                OWNER_VARIABLE: str(client.owner.state),
            },
        )
        settings, port = client.superexec, client.supernode.port
        host, ports = client.metrics.host, client.metrics_ports
        learner = client.learner.socket
    reports = Reports(server.runs) if role == "server" else None
    line = LineWatch.of(client) if role == "client" else None
    name = f"{role}-superexec"
    metrics = Metrics(name, host, ports.get(name, 0))
    SuperexecService(role, settings, metrics, command, port, learner, reports, line).run()
