"""``zk0d supernode``: Flower's SuperNode, watched from the coordinator's side.

Flower's process can stop its heartbeats and look healthy, so whether this node is online is asked
of the coordinator's presence page. A coordinator that is away is an outage, no reason to restart.
"""

from __future__ import annotations

import secrets
import time
from functools import partial
from pathlib import Path
from typing import Any

from zk0d.config.machine import ClientSettings
from zk0d.daemon.disk import DiskCollector
from zk0d.daemon.expiry import ExpiryCollector, expiry_of_ca
from zk0d.daemon.metrics import Metrics
from zk0d.daemon.ports import require_free_port
from zk0d.daemon.rest import Rest, read_rest
from zk0d.daemon.service import Condition, Service
from zk0d.daemon.supervised import Backoff, State, Supervised
from zk0d.errors import ConfigError
from zk0d.flower import commands
from zk0d.flower.logs import relay
from zk0d.flower.sessions import SESSION_VARIABLE
from zk0d.flower.supernode import ENDS, LEAVE_SIGNAL, reason_of, session_name
from zk0d.machine import contributors
from zk0d.machine.credentials import credential, fingerprint_of
from zk0d.machine.hold import Hold, read_hold
from zk0d.machine.rest_note import write_note
from zk0d.machine.state import StateFile
from zk0d.services.coordinator import (
    CLOCK_AHEAD,
    CLOCK_BEHIND,
    KEY_SHARED,
    KEY_SHARED_CURE,
    UNTRUSTED,
    PresenceWatch,
    Word,
)

#: A new process has so long to come online.
CONNECT_SECONDS = 45.0
#: A node that is to leave waits so long for a coordinator that is away: a reply may be on its way.
LEAVE_SECONDS = 60.0


class SupernodeService(Service):
    """Keeps the SuperNode running, and says how it stands with the coordinator."""

    name = "supernode"
    _watch: PresenceWatch

    def __init__(self, settings: ClientSettings) -> None:
        port = settings.metrics_ports.get(self.name, 0)
        super().__init__(Metrics(self.name, settings.metrics.host, port))
        self._settings = settings
        self._online = self.metrics.gauge("online", "1 if the coordinator counts this node online.")
        self._contact = self.metrics.gauge(
            "coordinator_last_contact_timestamp_seconds", "When the presence page last answered."
        )
        self._expiry = ExpiryCollector()
        self.metrics.collect(self._expiry)
        self.metrics.collect(DiskCollector({"state": settings.supernode.state}))
        self._ahead = self.metrics.gauge(
            "clock_ahead_seconds", "How far this clock is ahead of the coordinator's."
        )
        self._held = self.metrics.gauge("held", "1 while this node is paused or drained.")
        self._held.set(0)
        self._resting = self.metrics.gauge(
            "resting", "1 while this node rests, because its owner's limits say so."
        )
        self._resting.set(0)
        self._offline_since: float | None = None
        self._leaving_since: float | None = None
        self._todo = ""
        # Its key lies beside its settings, which are those of one of several contributors or not.
        self._option = contributors.option(settings.supernode.key.parent)
        self._session = secrets.token_hex(8)  #: names this service in its SuperNodes' requests
        self._state = StateFile(settings.supernode.state)

    def start(self) -> None:
        settings, node = self._settings, self._settings.supernode
        if not settings.coordinator.address:
            raise ConfigError(
                "coordinator.address is missing: write the coordinator's HOST:PORT into"
                " [coordinator] of client.toml."
            )
        secret = credential("superexec.secret", node.secret, "supernode.secret")
        ca = credential("ca.crt", settings.coordinator.ca, "coordinator.ca")
        self._ca, self._key = ca, ""
        self._take_key()
        self._told_rest: Rest | None = None
        self._expiry.watch("ca", lambda: expiry_of_ca(ca))
        require_free_port(node.port, "supernode.port")
        node.state.mkdir(parents=True, exist_ok=True)
        config = node.state / "node.toml"
        commands.write_node_config(config, settings.learner.socket)
        command = commands.supernode(
            settings.coordinator.address,
            ca,
            self._key_file,
            secret,
            node.port,
            config,
            node.state / "flower",
        )
        self._child = Supervised(
            "flower-supernode",
            command.argv,
            {**command.env, SESSION_VARIABLE: self._session},
            node.state,
            self.metrics,
            log=relay,
            reason=reason_of,
            reasons=("zombie", *ENDS),
            backoff=Backoff(shortest=2.0, longest=60.0),
        )
        if self._kept_out() is None:
            self._child.start()

    def _take_key(self) -> None:
        """Take the key as it is now: while this node was out, its owner may have changed it."""
        node = self._settings.supernode
        self._key_file = credential("node.key", node.key, "supernode.key")
        key = fingerprint_of(self._key_file)
        if key == self._key:
            return
        if self._key:
            self._watch.close()
        self._key = key
        self._watch = PresenceWatch(
            self._settings.coordinator.presence_page, self._ca, key, node.presence_interval
        )

    def _kept_out(self) -> Hold | Rest | None:
        """Why this node stays out now: by a person's command, or by its owner's limits."""
        settings = self._settings
        return read_hold(settings.supernode.state) or read_rest(
            settings.owner.state, settings.limits
        )

    def look(self) -> Condition:
        word, hold = self._watch.word, self._kept_out()
        self._tell_rest(hold if isinstance(hold, Rest) else None)
        self._todo = ""
        online = word is not None and not word.failure and self._is_online(word.answer)
        self._online.set(online)
        if word is not None and not word.failure:
            self._contact.set(time.time())
            self._ahead.set(word.clock_ahead)
        condition = self._hold(hold, word) if hold else self._take_part(word, online)
        self._tell_state(word, online, hold, condition)
        return condition

    def _tell_rest(self, rest: Rest | None) -> None:
        """Have the coordinator know that this node rests, so that nobody misses it."""
        if rest == self._told_rest:
            return
        self._told_rest = rest
        if rest is None:
            self._watch.tell(str)
        else:
            self._watch.tell(partial(write_note, self._key_file, rest.until))

    def _is_online(self, answer: dict[str, Any]) -> bool:
        """Whether the coordinator counts this SuperNode online, and not another with its key."""
        pid, sessions = self._child.pid, answer.get("sessions")
        if pid is None or not answer.get("online"):
            return False
        # A SuperLink that was just started knows of no session yet.
        return not sessions or session_name(self._session, pid) in sessions

    def _take_part(self, word: Word | None, online: bool) -> Condition:
        self._leaving_since = None
        self._held.set(0)
        self._resting.set(0)
        if self._child.state is State.STOPPED:
            self._take_key()
            self._child.start()
            word = self._watch.word
        self._child.look()
        if word is None:
            return Condition("connecting to the coordinator")
        if word.failure:
            self._offline_since = None
            at = time.strftime("%H:%M", time.localtime(word.since))
            if word.failure == UNTRUSTED:
                self._todo = "ask the operator; if the CA changed, zk0bot client join a new invite"
                return Condition(
                    f"the coordinator {self._settings.coordinator.address} shows a certificate that"
                    " our CA did not sign; nothing is sent to it. Ask its operator, and if its CA"
                    " changed, zk0bot client join with a new invite"
                )
            return Condition(
                f"waiting for the coordinator {self._settings.coordinator.address} since {at}"
                f" ({word.failure}); it will connect by itself"
            )
        if word.answer.get("shared"):
            self._offline_since = None
            self._todo = f"{KEY_SHARED}, as after a disk was copied: {KEY_SHARED_CURE}"
            here = _online_sentence(word.answer) if online else "not let in"
            return Condition(f"{KEY_SHARED}; this one is {here}")
        if online:
            self._offline_since = None
            return Condition(_online_sentence(word.answer))
        return self._offline(word)

    def _hold(self, hold: Hold | Rest, word: Word | None) -> Condition:
        """Leave once the message in work is answered; then stay out."""
        child, self._offline_since = self._child, None
        self._held.set(isinstance(hold, Hold))
        self._resting.set(isinstance(hold, Rest))
        if child.state is State.RUNNING and child.alive:
            now = time.monotonic()
            if self._leaving_since is None:
                self._leaving_since = now
                child.signal(LEAVE_SIGNAL)
            cut_off = word is None or bool(word.failure)
            if not cut_off or now - self._leaving_since < LEAVE_SECONDS:
                return Condition(f"finishing what is under way, then {hold.sentence()}")
        if child.state is not State.STOPPED:
            child.stop(hold.kind)
        return Condition(hold.sentence())

    def _tell_state(
        self, word: Word | None, online: bool, hold: Hold | Rest | None, condition: Condition
    ) -> None:
        """Tell what ``zk0bot client`` wants to know."""
        self._state.tell(
            online=online,
            held=("rest" if isinstance(hold, Rest) else hold.kind) if hold else "",
            left=self._child.state is State.STOPPED,
            until=hold.until if hold else None,
            key=self._key,
            run=word.answer.get("run") if word else None,
            status=condition.status,
            todo=self._todo,
        )

    def _offline(self, word: Word) -> Condition:
        if not word.answer.get("enrolled"):
            self._offline_since = None
            send = f"zk0bot node request{self._option} to the coordinator's operator"
            self._todo = f"send the output of {send}"
            return Condition(
                f"this node is not enrolled (fingerprint {self._key[:16]}): send the output of"
                f" {send}"
            )
        ahead = word.clock_ahead
        if ahead > CLOCK_AHEAD or ahead < -CLOCK_BEHIND:
            self._offline_since = None
            way = "ahead of" if ahead > 0 else "behind"
            self._todo = "set this machine's clock: timedatectl set-ntp true"
            return Condition(
                f"this machine's clock is {abs(ahead):.0f} s {way} the coordinator's, which refuses"
                " it: set it (timedatectl set-ntp true)"
            )
        if self._child.waits:
            end = self._child.last_end
            assert end is not None
            self._offline_since = None
            return Condition(f"{ENDS.get(end.reason, end.reason)}; it restarts in a moment")
        now = time.monotonic()
        self._offline_since = self._offline_since or now
        offline = now - self._offline_since
        limit = self._settings.supernode.zombie_seconds
        if offline > limit and self._child.running_seconds > CONNECT_SECONDS:
            self._child.restart("zombie")
            self._offline_since = None
            return Condition("the SuperNode ran but was not online: restarted")
        return Condition("connecting to the coordinator")

    def stop(self) -> None:
        if hasattr(self, "_child"):
            self._child.stop("service stops")
        if hasattr(self, "_watch"):
            self._watch.close()
        self._state.end()


def _online_sentence(answer: dict[str, Any]) -> str:
    run = answer.get("run")
    if run and run["state"] == "waiting":
        return f"online; the run waits after round {run['round']}: it continues {run['goes_on']}"
    if not run or run["state"] not in ("starting", "running"):
        return "online; no run is under way"
    return f"online; round {run['round']}/{run['rounds']} is done"


def run(config: Path) -> None:
    """Run the service."""
    SupernodeService(ClientSettings.load(config)).run()
