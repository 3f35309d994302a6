"""``zk0d superlink``: Flower's SuperLink, the roster, the presence page, the rounds' files."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from zk0d.config.machine import ServerSettings
from zk0d.daemon.disk import DiskCollector
from zk0d.daemon.expiry import ExpiryCollector
from zk0d.daemon.metrics import Metrics
from zk0d.daemon.ports import require_free_port
from zk0d.daemon.service import Condition, Service
from zk0d.daemon.supervised import Supervised
from zk0d.errors import TryAgainError, Zk0dError
from zk0d.federation.nodes import Node, current
from zk0d.flower import commands
from zk0d.flower.control import FINISHED, Control
from zk0d.flower.logs import relay
from zk0d.flower.schema import is_of_newer_flower
from zk0d.flower.sessions import FILE_VARIABLE, read_uses
from zk0d.machine.audit import AuditLog
from zk0d.machine.certificates import Certificates, expiry_of, shown_expiry
from zk0d.machine.credentials import credential
from zk0d.machine.state import StateFile
from zk0d.record.state import NewestRun, RunState
from zk0d.services import page
from zk0d.services.autorun import Autorun
from zk0d.services.database import Database
from zk0d.services.enrolment import Enrolment
from zk0d.services.figures import NodeCollector, RunCollector
from zk0d.services.members import Members
from zk0d.services.overlap import Overlap
from zk0d.services.presence import Presence, PresencePage
from zk0d.services.releases import ReleasesDoor
from zk0d.services.resume import Resume
from zk0d.services.run_watch import RunWatch
from zk0d.services.transfers import Transfers

log = logging.getLogger("zk0d")

STUCK_SECONDS = 20.0
SWEEP_SECONDS = 60.0
RELEASES_SECONDS = 10.0


class SuperlinkService(Service):
    """Keeps the SuperLink running and its node list equal to the roster."""

    name = "superlink"
    interval = 2.0
    stuck_reasons = ("no_answer",)

    def __init__(self, settings: ServerSettings) -> None:
        port = settings.metrics_ports.get(self.name, 0)
        super().__init__(Metrics(self.name, settings.metrics.host, port))
        self._settings = settings
        self._link = settings.superlink
        self._database = Database(
            self._link.state / "superlink.db", self._link.database_limit_mib * 2**20
        )
        self._run = NewestRun(settings.runs)
        self._overlap = Overlap(self._link, settings.gateway.certificate, self._note)
        self._presence = Presence(self._link.roster, self._overlap)
        self._nodes = self.metrics.gauge("nodes", "Registered nodes.", ("state",))
        self._size = self.metrics.gauge("database_bytes", "Size of the SuperLink's database.")
        self._rebuilt = self.metrics.counter(
            "database_rebuilds", "Times that the SuperLink's database was rebuilt."
        )
        for state in ("online", "offline", "resting"):
            self._nodes.labels(state).set(0)
        self._expiry = ExpiryCollector()
        self._node_figures = NodeCollector()
        disks = DiskCollector({"runs": settings.runs, "database": self._link.state})
        waits = RunCollector(self._run, 60.0 * self._link.wait_alert_minutes)
        for collector in (waits, self._node_figures, disks, self._expiry):
            self.metrics.collect(collector)
        self._state = StateFile(self._link.state)
        self._audit = AuditLog(self._link.state)
        self._sessions = self._link.state / "sessions.json"
        self._last_good = time.monotonic()
        self._last_sweep = self._last_releases = float("-inf")
        self._autorun: Autorun | None = None
        self._resume: Resume | None = None

    def start(self) -> None:
        link = self._link
        certificates = Certificates(
            credential("ca.crt", link.ca, "superlink.ca"),
            credential("link.crt", link.certificate, "superlink.certificate"),
            credential("link.key", link.key, "superlink.key"),
        )
        secret = credential("superexec.secret", link.secret, "superlink.secret")
        control_secret = None
        if not link.open_control:
            control_secret = credential(
                "control.secret", link.control_secret, "superlink.control-secret"
            )
        self._expiry.watch("ca", lambda: expiry_of(certificates.ca))
        self._expiry.watch("link", lambda: expiry_of(certificates.certificate))
        self._expiry.watch("gateway", lambda: shown_expiry(self._settings.gateway.port))
        require_free_port(link.port, "superlink.port")
        self._control = Control(f"127.0.0.1:{link.port}", certificates.ca, control_secret)
        self._members = Members(self._control, link.roster, self._note)
        self._runs = RunWatch(self._run, self._control, self._note)
        self._transfers = Transfers(self._settings)
        enrolment = Enrolment(link.state, link.roster, self._note, self._members.reconcile_soon)
        self._releases = ReleasesDoor.of(self._settings)
        self._page = PresencePage(
            self._presence, link.presence_port, self._transfers, enrolment, self._releases
        )
        if link.auto_resume:
            self._resume = Resume(self._control)
        if self._settings.autorun is not None:
            self._autorun = Autorun(
                self._settings.autorun,
                self._control,
                check=lambda: self._settings.check_autorun("server.toml"),
            )
        link.state.mkdir(parents=True, exist_ok=True)
        command = commands.superlink(
            link.port,
            certificates,
            self._database.path,
            secret,
            link.state / "flower",
            control_secret=control_secret,
        )
        self._sessions.unlink(missing_ok=True)
        if is_of_newer_flower(self._database.path):
            log.warning("the database is a newer Flower's: rebuilt from the roster")
            self._database.remove()
            self._rebuilt.inc()
        self._child = Supervised(
            "flower-superlink",
            command.argv,
            {**command.env, FILE_VARIABLE: str(self._sessions)},
            link.state,
            self.metrics,
            log=relay,
            most_deaths=6,
        )
        self._child.start()

    def look(self) -> Condition:
        if time.monotonic() - self._last_sweep > SWEEP_SECONDS:
            self._last_sweep = time.monotonic()
            self._transfers.sweep()
        if time.monotonic() - self._last_releases > RELEASES_SECONDS:
            self._last_releases = time.monotonic()
            self._releases.look()
        self._child.look()
        if self._child.waits:
            end = self._child.last_end
            assert end is not None
            return Condition(
                f"the SuperLink ended ({end.reason}): restarting it in {self._child.waits:.0f} s",
                ready=False,
            )
        waits_for = ""
        try:
            every = self._members.look()
            nodes = current(every)
            self._database.probe()
            online = sum(node.online for node in nodes)
            run = self._runs.look()
            if self._resume is not None:
                waits_for = self._resume.look(run)
            if self._autorun is not None and not (run and run.interrupted):
                waits_for = self._autorun.look(online)
            if self._rebuild():
                return Condition("the database was too large: rebuilt from the roster")
        except Zk0dError as error:
            silent = time.monotonic() - self._last_good
            starting = self._child.running_seconds < STUCK_SECONDS
            return Condition(
                f"the SuperLink does not answer: {error.message}",
                ready=False,
                stuck="" if starting or silent < STUCK_SECONDS else "no_answer",
            )
        self._last_good = time.monotonic()
        uses = read_uses(self._sessions)
        self._members.tell(every, uses)
        shared = self._members.shared
        self._overlap.look()
        self._presence.update(every, run, uses)
        if self._settings.gateway.status_page:
            self._presence.page = page.render(nodes, run)
        resting = self._presence.resting
        self._node_figures.update(nodes, run, shared, resting)
        self._nodes.labels("online").set(online)
        self._nodes.labels("resting").set(len(resting))
        self._nodes.labels("offline").set(len(nodes) - online - len(resting))
        self._size.set(self._database.size)
        sentence = self._sentence(nodes, online, run)
        if shared:
            sentence += f"; two machines use the key of {', '.join(sorted(shared.values()))}"
        condition = Condition(f"{sentence}; {waits_for}" if waits_for else sentence)
        self._tell_state(nodes, run, condition)
        return condition

    def reload(self) -> None:
        self._members.reconcile_soon()

    def _note(self, kind: str, **facts: Any) -> None:
        """Write to the audit log; each head goes to systemd's journal, too."""
        try:
            head = self._audit.append(kind, "zk0d-server", **facts)
            log.debug("audit head %s", head)
        except TryAgainError as error:  # a full disk is no reason to end
            log.error("%s", error.message)

    def _rebuild(self) -> bool:
        """Rebuild the database if it is too large and no run needs it; whether it was rebuilt."""
        if not self._database.is_too_large() or any(
            run.status != FINISHED for run in self._control.runs()
        ):
            return False
        log.info("the database has %.0f MiB: rebuilt from the roster", self._database.size / 2**20)
        self._child.stop("database rebuild")
        self._database.remove()
        self._members.reconcile_soon()
        self._child.start()
        self._rebuilt.inc()
        return True

    def _tell_state(self, nodes: list[Node], run: RunState | None, condition: Condition) -> None:
        """Tell what ``zk0bot status`` wants to know."""
        resting = self._presence.resting
        parts = {name: m.last for name, m in run.members.items() if m.last} if run else {}
        told = run.status() if run else None
        if told and told["waiting"]:
            waits, most = time.time() - told["waiting"]["since"], self._link.wait_alert_minutes
            told["waiting"]["too_long"] = bool(most) and waits > 60.0 * most
        self._state.tell(
            status=condition.status,
            run=told,
            nodes=[
                {
                    "name": node.name,
                    "key": node.key,
                    "online": node.online,
                    "rests": node.key in resting,
                    "rests_until": resting[node.key].until if node.key in resting else None,
                    "left_out": run.left_out.get(node.name, "") if run else "",
                    "preparing": _preparing(node, run),
                    "key_shared": node.key in self._members.shared,
                    "since": node.activated,
                    "policy_loss": getattr(parts.get(node.name), "policy_loss", None),
                    "steps": getattr(parts.get(node.name), "steps", None),
                    "samples": getattr(parts.get(node.name), "samples", None),
                    "agreement": getattr(parts.get(node.name), "agreement", None),
                }
                for node in sorted(nodes, key=lambda node: node.name)
            ],
        )

    def stop(self) -> None:
        if hasattr(self, "_child"):
            self._child.stop("service stops")
        if hasattr(self, "_page"):
            self._page.close()
        if hasattr(self, "_releases"):
            self._releases.close()
        if hasattr(self, "_control"):
            self._control.close()

    def _sentence(self, nodes: list[Node], online: int, run: RunState | None) -> str:
        if not nodes:
            return f"no node may join yet: put public keys into {self._link.roster}"
        here = f"{online} of {len(nodes)} nodes online"
        if resting := len(self._presence.resting):
            here += f", {resting} resting"
        if run is None:
            return f"{here}; no run yet" + ("" if self._autorun else ": start one with zk0bot run")
        return f"{run.sentence()}; {here}"


def _preparing(node: Node, run: RunState | None) -> str:
    """How far a node is with its recordings; empty if it does something else."""
    told = run.preparing.get(node.key) if run and node.online and run.goes_on else None
    return told.message if told else ""


def run(config: Path) -> None:
    """Run the service."""
    SuperlinkService(ServerSettings.load(config)).run()
