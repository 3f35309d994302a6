"""``zk0d supernode``: Flower's SuperNode, watched from the coordinator's side.

Flower's process can stop its heartbeats and look healthy, so whether this node is online is asked
of the coordinator's presence page. A coordinator that is away is an outage, no reason to restart.
"""

from __future__ import annotations

import logging
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
from zk0d.errors import ConfigError, TryAgainError
from zk0d.files import write_file
from zk0d.flower import commands
from zk0d.flower.logs import relay
from zk0d.flower.sessions import SESSION_VARIABLE
from zk0d.flower.supernode import ENDS, LEAVE_SIGNAL, reason_of, session_name
from zk0d.machine import contributors, rest_note, successor
from zk0d.machine.authorities import Authorities
from zk0d.machine.credentials import credential, fingerprint_of
from zk0d.machine.hold import Hold, read_hold
from zk0d.machine.rights import writing
from zk0d.machine.state import StateFile
from zk0d.machine.successor import Successor, checked_apart
from zk0d.services.coordinator import (
    CLOCK_AHEAD,
    CLOCK_BEHIND,
    KEY_SHARED,
    KEY_SHARED_CURE,
    UNTRUSTED,
    PresenceWatch,
    Word,
)

log = logging.getLogger("zk0d")

#: A new process has so long to come online; after one that did not, twice as long, and so on, up to
#: the second number: a busy machine would otherwise restart it for ever, just before it is there.
CONNECT_SECONDS = 45.0
LONGEST_CONNECT_SECONDS = 600.0
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
        self._zombies = 0  #: SuperNodes, one after the other, that never came online
        self._leaving_since: float | None = None
        self._todo = ""
        # Its key lies beside its settings, which are those of one of several contributors or not.
        self._option = contributors.option(settings.supernode.key.parent)
        self._session = secrets.token_hex(8)  #: names this service in its SuperNodes' requests
        self._state = StateFile(settings.supernode.state)
        self._heard: Word | None = None  #: the last word in which the CAs were looked at
        self._told_authority: dict[str, Any] = {}  #: what the coordinator said of its CAs last
        self._outdated = 0  #: which start of the SuperNode was the last with other authorities
        self._word = ""  #: that this node has the next CA, to be told

    def start(self) -> None:
        settings, node = self._settings, self._settings.supernode
        if not settings.coordinator.address:
            raise ConfigError(
                "coordinator.address is missing: write the coordinator's HOST:PORT into"
                " [coordinator] of client.toml."
            )
        secret = credential("superexec.secret", node.secret, "supernode.secret")
        given = credential("ca.crt", settings.coordinator.ca, "coordinator.ca")
        self._authorities = Authorities.read(given, node.state)
        self._context, self._key = self._authorities.context(), ""
        self._take_key()
        self._told_rest: Rest | None = None
        require_free_port(node.port, "supernode.port")
        node.state.mkdir(parents=True, exist_ok=True)
        ca, config = node.state / "ca.crt", node.state / "node.toml"
        self._expiry.watch("ca", lambda: expiry_of_ca(ca))
        self._write_authorities()
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
        self._key, self._told_authority = key, {}
        self._watch = PresenceWatch(
            self._settings.coordinator.presence_page, self._context, key, node.presence_interval
        )

    def _write_authorities(self) -> None:
        """For the next start of the SuperNode, and its ClientApps."""
        state, known = self._settings.supernode.state, self._authorities
        with writing(state):
            write_file(state / "ca.crt", known.pem)
            commands.write_node_config(
                state / "node.toml",
                self._settings.learner.socket,
                known.pem if known.have_followed else "",
            )

    def _follow(self, told: Any) -> None:
        """Know the coordinator by its next CA, too, or by it alone, if it says so."""
        if not isinstance(told, dict):
            return
        try:
            if told != self._told_authority:
                self._told_authority = told
                self._take_next(told.get("next"))
            self._settle(told)
        except TryAgainError as error:  # a full disk is no reason to end
            self._told_authority = {}
            log.error("%s", error.message)
        except ConfigError as error:
            log.warning("the coordinator names a next CA that is refused: %s", error.message)

    def _settle(self, told: dict[str, Any]) -> None:
        """Drop the CAs before the one that the coordinator uses, and those that it took back."""
        known, ca = self._authorities, str(told.get("fingerprint"))
        if ca not in known:
            return
        is_later = ca != known.first
        alone = known.settle(ca) if is_later else known.until(ca)
        if alone == known or (not is_later and told.get("next") is not None):
            return
        # Its own word is not enough: an early one would cut this node off.
        if self._watch.answers(alone.context()):
            self._change_authorities(alone)
            said = "the one before it is dropped" if is_later else "it took the next one back"
            log.info("the coordinator uses its CA %s: %s", ca[:16], said)

    def _take_next(self, content: Any) -> None:
        """Take the next CA, if one that is trusted named it, and tell the coordinator."""
        if content is None:
            self._watch.tell(successor.HEADER, str)
            return
        named = Successor.read(content)
        ca = self._authorities.certificate(named.by)
        if ca is None:
            if named.fingerprint in self._authorities:  # the one before it is dropped already
                return
            raise ConfigError(f"the CA {named.by[:16]} names it, which is not trusted here.")
        word = checked_apart(named, ca, self._key_file)
        if named.fingerprint not in self._authorities:
            self._change_authorities(self._authorities.with_next(named))
            log.info("the coordinator's next CA %s is trusted, too", named.fingerprint[:16])
        self._word = word

    def _change_authorities(self, authorities: Authorities) -> None:
        authorities.keep(self._settings.supernode.state)
        self._authorities = authorities
        self._context = authorities.context()
        self._watch.trust(self._context)
        self._write_authorities()
        self._outdated = self._child.starts

    @property
    def _is_outdated(self) -> bool:
        """Whether the SuperNode that runs was started with other authorities."""
        return self._child.state is State.RUNNING and self._child.starts == self._outdated

    def _kept_out(self) -> Hold | Rest | None:
        """Why this node stays out now: by a person's command, or by its owner's limits."""
        settings = self._settings
        return read_hold(settings.supernode.state) or read_rest(
            settings.owner.state, settings.limits
        )

    def look(self) -> Condition:
        word, hold = self._watch.word, self._kept_out()
        if word is not None and not word.failure and word is not self._heard:
            self._heard = word
            self._follow(word.answer.get("authority"))
        if self._word and not self._is_outdated:
            self._watch.tell(successor.HEADER, partial(str, self._word))
            self._word = ""
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
            self._watch.tell(rest_note.HEADER, str)
        else:
            note = partial(rest_note.write_note, self._key_file, rest.until)
            self._watch.tell(rest_note.HEADER, note)

    def _is_online(self, answer: dict[str, Any]) -> bool:
        """Whether the coordinator counts this SuperNode online, and not another with its key."""
        pid, sessions = self._child.pid, answer.get("sessions")
        if pid is None or not answer.get("online"):
            return False
        # A SuperLink that was just started knows of no session yet.
        return not sessions or session_name(self._session, pid) in sessions

    def _take_part(self, word: Word | None, online: bool) -> Condition:
        self._held.set(0)
        self._resting.set(0)
        if self._is_outdated:
            if not self._has_left(word):
                return Condition("finishing what is under way, then it takes the coordinator's CA")
            self._child.stop("another CA")
        self._leaving_since = None
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
                self._todo = (
                    "ask the coordinator's operator; if its CA changed, ask for a new invite:"
                    f" zk0bot client join INVITE{self._option}, then zk0bot client"
                    f" stop{self._option} and start{self._option}"
                )
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
            self._offline_since, self._zombies = None, 0
            return Condition(_online_sentence(word.answer))
        return self._offline(word)

    def _hold(self, hold: Hold | Rest, word: Word | None) -> Condition:
        """Leave once the message in work is answered; then stay out."""
        child, self._offline_since = self._child, None
        self._held.set(isinstance(hold, Hold))
        self._resting.set(isinstance(hold, Rest))
        if not self._has_left(word):
            return Condition(f"finishing what is under way, then {hold.sentence()}")
        if child.state is not State.STOPPED:
            child.stop(hold.kind)
        return Condition(hold.sentence())

    def _has_left(self, word: Word | None) -> bool:
        """Have the SuperNode leave; whether it may be stopped, since no message is in work."""
        child = self._child
        if child.state is not State.RUNNING or not child.alive:
            return True
        now = time.monotonic()
        if self._leaving_since is None:
            self._leaving_since = now
            child.signal(LEAVE_SIGNAL)
        cut_off = word is None or bool(word.failure)
        return cut_off and now - self._leaving_since >= LEAVE_SECONDS

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
        patience = Backoff(CONNECT_SECONDS, LONGEST_CONNECT_SECONDS, jitter=0.0)
        if offline > limit and self._child.running_seconds > patience.seconds(self._zombies + 1):
            self._child.restart("zombie")
            self._offline_since = None
            self._zombies += 1
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
