"""``zk0d superlink``: Flower's SuperLink, the roster, and the presence page."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
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
from zk0d.errors import TryAgainError, UnavailableError, Zk0dError
from zk0d.federation.nodes import Node
from zk0d.flower import commands
from zk0d.flower.control import FINISHED, STOPPED, Control
from zk0d.flower.logs import relay
from zk0d.flower.sessions import FILE_VARIABLE, read_uses
from zk0d.machine.audit import AuditLog
from zk0d.machine.certificates import Certificates, expiry_of, shown_expiry
from zk0d.machine.credentials import credential
from zk0d.machine.roles import METRICS_PORTS
from zk0d.machine.roster import node_name, read_roster
from zk0d.machine.state import STATE, write_json
from zk0d.record.events import (
    Event,
    NodeSitsOut,
    RoundCommitted,
    RoundFailed,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    UpdateRefused,
)
from zk0d.record.state import NewestRun, RunState
from zk0d.services import page
from zk0d.services.autorun import Autorun
from zk0d.services.figures import NodeCollector, RunCollector
from zk0d.services.presence import Presence, PresencePage
from zk0d.services.resume import Resume

log = logging.getLogger("zk0d")

RECONCILE_SECONDS = 10.0
STUCK_SECONDS = 20.0
STATE_VERSION = 1
REBUILD_LOOK_SECONDS, END_LOOK_SECONDS = 60.0, 5.0
#: Lines of a run's journal that the audit log has as well.
AUDITED = {
    "run.started",
    "run.resumed",
    "run.finished",
    "run.failed",
    "update.refused",
    "node.left_out",
    "node.sits_out",
    "checkpoint.written",
}
AUDITED_FACTS = ("run", "round", "node", "reason")
UNREGISTERED = "unregistered"  #: Flower lists such nodes on


class SuperlinkService(Service):
    """Keeps the SuperLink running and its node list equal to the roster."""

    name = "superlink"
    interval = 2.0
    stuck_reasons = ("no_answer",)

    def __init__(self, settings: ServerSettings) -> None:
        port = METRICS_PORTS["superlink"] if settings.metrics.enabled else 0
        super().__init__(Metrics(self.name, settings.metrics.host, port))
        self._settings = settings
        self._link = settings.superlink
        self._database = self._link.state / "superlink.db"
        self._run = NewestRun(settings.runs)
        self._presence = Presence()
        self._nodes = self.metrics.gauge("nodes", "Registered nodes.", ("state",))
        self._size = self.metrics.gauge("database_bytes", "Size of the SuperLink's database.")
        self._rebuilt = self.metrics.counter(
            "database_rebuilds", "Times that the SuperLink's database was made anew."
        )
        for state in ("online", "offline"):
            self._nodes.labels(state).set(0)
        self._expiry = ExpiryCollector()
        self._node_figures = NodeCollector()
        disks = DiskCollector({"runs": settings.runs, "database": self._link.state})
        for collector in (RunCollector(self._run), self._node_figures, disks, self._expiry):
            self.metrics.collect(collector)
        self._state: dict[str, Any] = {}
        self._audit = AuditLog(self._link.state)
        self._online: dict[str, str] = {}  #: names by key
        self._sessions = self._link.state / "sessions.json"
        self._shared: dict[str, str] = {}  #: names by key, of keys that two machines use
        self._last_reconcile = 0.0
        self._last_good = time.monotonic()
        self._autorun: Autorun | None = None
        self._resume: Resume | None = None
        self._rebuild_look, self._end_look = 0.0, 0.0
        self._fresh, self._smallest = False, 0  #: a database was just made; its bytes

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
        self._run.look()  # what was written before is no news
        require_free_port(link.port, "superlink.port")
        self._address = f"127.0.0.1:{link.port}"
        self._control = Control(self._address, certificates.ca, control_secret)
        self._page = PresencePage(self._presence, link.presence_port)
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
            self._database,
            secret,
            link.state / "flower",
            control_secret=control_secret,
        )
        self._sessions.unlink(missing_ok=True)
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
        self._child.look()
        if self._child.waits:
            end = self._child.last_end
            assert end is not None
            return Condition(
                f"the SuperLink ended ({end.reason}): starting it again in"
                f" {self._child.waits:.0f} s",
                ready=False,
            )
        waits_for = ""
        try:
            nodes = [Node.of(info) for info in self._control.nodes() if info.status != UNREGISTERED]
            if time.monotonic() - self._last_reconcile > RECONCILE_SECONDS:
                self._last_reconcile = time.monotonic()
                self._reconcile(nodes)
            probe_database(self._database)
            online = sum(node.online for node in nodes)
            run = self._run.look()
            if run is not None and run.goes_on:
                self._look_for_its_end(run)
            if self._resume is not None:
                waits_for = self._resume.look(run)
            if self._autorun is not None and not (run and run.interrupted):
                waits_for = self._autorun.look(online)
            if self._rebuild():
                return Condition("the database was too large: made anew from the roster")
        except Zk0dError as error:
            silent = time.monotonic() - self._last_good
            starting = self._child.running_seconds < STUCK_SECONDS
            return Condition(
                f"the SuperLink does not answer: {error.message}",
                ready=False,
                stuck="" if starting or silent < STUCK_SECONDS else "no_answer",
            )
        self._last_good = time.monotonic()
        for event in self._run.fresh:
            log_event(event)
            if event.kind in AUDITED:
                facts = {k: getattr(event, k) for k in AUDITED_FACTS if hasattr(event, k)}
                self._note(event.kind, **facts)
        uses = read_uses(self._sessions)
        self._tell_who_came(nodes)
        self._tell_who_shares([n for n in nodes if n.key in uses and uses[n.key].shared])
        self._presence.update(nodes, run, uses)
        if self._settings.gateway.status_page:
            self._presence.page = page.render(nodes, run)
        self._node_figures.update(nodes, run, self._shared)
        self._nodes.labels("online").set(online)
        self._nodes.labels("offline").set(len(nodes) - online)
        self._size.set(_size(self._database))
        sentence = self._sentence(nodes, online, run)
        if self._shared:
            sentence += f"; two machines use the key of {', '.join(sorted(self._shared.values()))}"
        condition = Condition(f"{sentence}; {waits_for}" if waits_for else sentence)
        self._tell_state(nodes, run, condition)
        return condition

    def reload(self) -> None:
        self._last_reconcile = 0.0

    def _note(self, kind: str, **facts: Any) -> None:
        """Write to the audit log; each head goes to systemd's journal, too."""
        try:
            head = self._audit.append(kind, "zk0d-server", **facts)
            log.debug("audit head %s", head)
        except TryAgainError as error:  # a full disk is no reason to end
            log.error("%s", error.message)

    def _tell_who_came(self, nodes: list[Node]) -> None:
        online = {node.key: node.name for node in nodes if node.online}
        for key in online.keys() - self._online.keys():
            self._note("node.online", node=online[key], key=key)
        for key in self._online.keys() - online.keys():
            self._note("node.offline", node=self._online[key], key=key)
        self._online = online

    def _tell_who_shares(self, nodes: list[Node]) -> None:
        shared = {node.key: node.name for node in nodes}
        for key in shared.keys() - self._shared.keys():
            log.warning("two machines use the key of node %s (%s)", shared[key], key[:12])
            self._note("key.shared", node=shared[key], key=key)
        self._shared = shared

    def _look_for_its_end(self, run: RunState) -> None:
        """A ServerApp that was killed wrote no last line: Flower knows that its run is over."""
        now = time.monotonic()
        if now - self._end_look < END_LOOK_SECONDS:
            return
        self._end_look = now
        try:
            known = {str(state.run_id): state for state in self._control.runs()}
        except Zk0dError:  # the next look says what is wrong
            return
        flowers = known.get(run.flower)
        if flowers is None:
            run.end("failed", "the SuperLink knows nothing of it any more.")
        elif flowers.status == FINISHED and flowers.outcome == STOPPED:
            run.end("stopped", "")
        elif flowers.status == FINISHED:
            why = flowers.details or "its ServerApp ended"
            run.end("failed", f"{why}; every committed round is kept.")
        if not run.goes_on:
            log.error("%s", run.sentence(), extra={"run": run.run, "round": run.round})

    def _rebuild(self) -> bool:
        """Make the database anew if it is too large and nothing needs it; whether it was.

        It holds the nodes, which the roster has, and past runs, which their journals have.
        """
        now = time.monotonic()
        if now - self._rebuild_look < REBUILD_LOOK_SECONDS:
            return False
        self._rebuild_look = now
        size = _size(self._database)
        if self._fresh:
            self._fresh, self._smallest = False, size
        # Else a limit below what an empty one takes would have it made anew for ever.
        limit = max(self._link.database_limit_mib * 2**20, 2 * self._smallest)
        if size < limit or any(run.status != FINISHED for run in self._control.runs()):
            return False
        log.info("the database has %.0f MiB: made anew from the roster", size / 2**20)
        self._child.stop("database rebuild")
        for path in _files(self._database):
            path.unlink(missing_ok=True)
        self._fresh, self._last_reconcile = True, 0.0
        self._child.start()
        self._rebuilt.inc()
        return True

    def _tell_state(self, nodes: list[Node], run: RunState | None, condition: Condition) -> None:
        """Write what ``zk0bot status`` wants to know, when it changes."""
        parts = {name: m.last for name, m in run.members.items() if m.last} if run else {}
        state = {
            "version": STATE_VERSION,
            "status": condition.status,
            "run": run.status() if run else None,
            "nodes": [
                {
                    "name": node.name,
                    "key": node.key,
                    "online": node.online,
                    "key_shared": node.key in self._shared,
                    "since": node.activated,
                    "policy_loss": getattr(parts.get(node.name), "policy_loss", None),
                    "samples": getattr(parts.get(node.name), "samples", None),
                }
                for node in sorted(nodes, key=lambda node: node.name)
            ],
        }
        if state != self._state:
            self._state = state
            try:
                write_json(self._link.state / STATE, state)
            except TryAgainError as error:  # a full disk is no reason to end
                log.error("%s", error.message)

    def stop(self) -> None:
        if hasattr(self, "_child"):
            self._child.stop("service stops")
        if hasattr(self, "_page"):
            self._page.close()
        if hasattr(self, "_control"):
            self._control.close()

    def _reconcile(self, nodes: list[Node]) -> None:
        """Make the SuperLink's nodes those of the roster."""
        roster = read_roster(self._link.roster)
        present = {node.key: node for node in nodes}
        for key, path in roster.items():
            if key not in present:
                self._control.register(path, node_name(path))
                log.info("node %s may join (key %s)", node_name(path), key[:12])
                self._note("node.admitted", node=node_name(path), key=key)
        for key, node in present.items():
            if key not in roster:
                self._control.unregister(node.id)
                log.info("node %s may not join any more", node.name)
                self._note("node.cut_off", node=node.name, key=key)

    def _sentence(self, nodes: list[Node], online: int, run: RunState | None) -> str:
        if not nodes:
            return f"no node may join yet: put public keys into {self._link.roster}"
        here = f"{online} of {len(nodes)} nodes online"
        if run is None:
            return f"{here}; no run yet" + ("" if self._autorun else ": start one with zk0bot run")
        return f"{run.sentence()}; {here}"


def probe_database(path: Path) -> None:
    """Take the database's write lock and give it back; raises :class:`UnavailableError`."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=5.0)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except sqlite3.Error as error:
        raise UnavailableError(
            f"{path}: the database takes no write ({error}); is the disk full?"
        ) from None


def log_event(event: Event) -> None:
    """One line of the log for an event of a run, with its fields."""
    where = {key: getattr(event, key, None) for key in ("run", "round", "node")}
    match event:
        case RoundCommitted():
            measured = event.evaluation.loss if event.evaluation else None
            loss = f", policy loss {measured:.4f}" if measured is not None else ""
            log.info("round %d is committed%s", event.round, loss, extra=where)
        case UpdateRefused():
            log.warning("the update of %s is refused: %s", event.node, event.message, extra=where)
        case RoundFailed() | RunFailed():
            log.error("%s: %s", event.kind.replace(".", " "), event.message, extra=where)
        case NodeSitsOut():
            log.warning(
                "%s sent too many updates that were refused: it sits out until round %d",
                event.node,
                event.until,
                extra=where,
            )
        case RunStarted() | RunResumed() | RunFinished():
            log.info("%s", event.kind.replace(".", " "), extra=where)


def _files(database: Path) -> list[Path]:
    return list(database.parent.glob(f"{database.name}*"))


def _size(database: Path) -> int:
    return sum(path.stat().st_size for path in _files(database))


def run(config: Path) -> None:
    """Run the service."""
    SuperlinkService(ServerSettings.load(config)).run()
