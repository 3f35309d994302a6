"""``zk0d superexec ROLE``: starts the installed apps for a SuperLink or a SuperNode."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from zk0d.config.machine import METRICS_PORTS, ClientSettings, ServerSettings, SuperexecSettings
from zk0d.daemon.metrics import Metrics
from zk0d.daemon.service import Condition, Service
from zk0d.daemon.supervised import Supervised
from zk0d.federation.client_app import SOCKET_VARIABLE
from zk0d.federation.server_app import CONFIG_VARIABLE
from zk0d.flower import commands
from zk0d.flower.superexec import PULSE_VARIABLE
from zk0d.services.credentials import credential
from zk0d.services.superlink import relay

PULSE_LIMIT = 30.0  #: seconds without a look for work that count as stuck
START_LIMIT = 20.0


class SuperexecService(Service):
    """Keeps a SuperExec running and sees that it looks for work.

    Parameters
    ----------
    role
        ``server`` or ``client``.
    peer
        Port on loopback of the Runtime API it works for.
    """

    def __init__(
        self,
        role: str,
        settings: SuperexecSettings,
        metrics: Metrics,
        command: commands.Command,
        peer: int,
    ) -> None:
        super().__init__(metrics)
        self.name = f"{role}-superexec"
        self._settings = settings
        self._peer = peer
        self._pulse = settings.state / "pulse"
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
        if self._child.waits:
            end = self._child.last_end
            assert end is not None
            return Condition(f"the SuperExec ended ({end.reason}): starting it again", ready=False)
        try:
            silent = time.time() - self._pulse.stat().st_mtime
        except FileNotFoundError:
            silent = self._child.running_seconds
            if silent < START_LIMIT:
                return Condition("starting", ready=False)
        if silent < PULSE_LIMIT:
            return Condition("ready for work")
        if not answers(self._peer):
            # Flower's client retries for ever; that is no fault of this process.
            return Condition(f"waiting for the service at 127.0.0.1:{self._peer}")
        return Condition(
            f"the SuperExec has not looked for work for {silent:.0f} s", stuck="no_poll"
        )

    def stop(self) -> None:
        self._child.stop("service stops")


def answers(port: int) -> bool:
    """Whether something listens on loopback's ``port``."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run(role: str, config: Path) -> None:
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
        port, metrics_settings = server.superlink.port, server.metrics
    else:
        client = ClientSettings.load(config)
        command = commands.superexec(
            role,
            f"127.0.0.1:{client.supernode.port}",
            credential("superexec.secret", client.supernode.secret, "supernode.secret"),
            client.superexec.state / "flower",
            ca=None,
            poll_seconds=client.superexec.poll_interval,
            env={SOCKET_VARIABLE: str(client.learner.socket)},
        )
        settings, port, metrics_settings = client.superexec, client.supernode.port, client.metrics
    name = f"{role}-superexec"
    metrics = Metrics(
        name, metrics_settings.host, METRICS_PORTS[name] if metrics_settings.enabled else 0
    )
    SuperexecService(role, settings, metrics, command, port).run()
