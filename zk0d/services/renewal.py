"""``zk0bot node renew``: a node changes its key, between two messages.

The coordinator takes the new key beside the old one before anything changes here. So the old key
stays in use whenever the renewal is refused or cut off before the change; what is cut off later
continues with the next call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from zk0d.config.machine import ClientSettings
from zk0d.errors import TryAgainError, UnavailableError
from zk0d.machine import node_key
from zk0d.machine.authorities import Authorities
from zk0d.machine.hold import Hold, end_hold, read_hold
from zk0d.machine.keys import fingerprint
from zk0d.machine.state import STATE, read_json
from zk0d.services.coordinator import Word, ask_presence, enrol

LOOK_SECONDS = 0.5
#: The coordinator's service looks at its roster every ten seconds.
ENROL_SECONDS = 60.0
#: A node that is left alone when this is cut off comes back by itself after the timeout and this.
GRACE_SECONDS = 60.0
_KEPT = "the old key stays in use"


class KeyChange:
    """Changes the key of the node whose settings lie in ``folder``.

    Parameters
    ----------
    seconds
        How long it waits for the message in work, and then for the node to be online again.
    say
        Takes a line for the person.
    """

    def __init__(self, folder: Path, seconds: float, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._settings = ClientSettings.load(folder / "client.toml")
        self._state = self._settings.supernode.state
        self._seconds = seconds
        self._say = say
        self._trust = Authorities.of(self._settings).context()

    def run(self) -> str:
        """Change it, or go on with a change that was cut off; the new key's fingerprint.

        Raises
        ------
        UnavailableError
            If the coordinator refuses; with its sentence.
        TryAgainError
            If it cannot be reached, or something takes too long. Says which key is in use.
        """
        if node_key.is_changing(self._folder):
            self._say("a change of this node's key was cut off: it continues")
            node_key.change_and_keep(self._folder)
        else:
            self._ask()
            self._change()
        new = fingerprint(self._folder / "node.pub")
        self._confirm(new)
        node_key.forget_old(self._folder)
        return new

    def _ask(self) -> None:
        """Have the coordinator take the new key beside the old one."""
        asked, body = node_key.renewal(self._folder)
        answer = enrol(self._settings.coordinator.presence_page, self._trust, body)
        address = self._settings.coordinator.address
        if not answer.status:
            raise TryAgainError(
                f"the coordinator {address} cannot be reached ({answer.sentence}); {_KEPT}; try"
                " again later."
            )
        if not answer.approved:
            raise UnavailableError(
                f"the coordinator {address} refuses the new key ({answer.sentence}); {_KEPT}."
            )
        self._say(f"the coordinator has the new key {asked.fingerprint[:16]} beside the old one")

        def enrolled() -> bool:
            return bool(self._word(asked.fingerprint).answer.get("enrolled"))

        if not _wait_for(enrolled, ENROL_SECONDS):
            raise TryAgainError(
                f"the coordinator {address} does not let the new key in yet; {_KEPT}; run zk0bot"
                " node renew again."
            )

    def _change(self) -> None:
        """Put the new key in its place while no message is in work."""
        held = read_hold(self._state) is not None
        runs = bool(read_json(self._state / STATE))
        if runs and not held:
            self._say("waiting for the message in work, if there is one")
            Hold.pause(self._seconds + GRACE_SECONDS).write(self._state)
        try:
            if not _wait_for(self._has_left, self._seconds):
                raise TryAgainError(
                    f"the message in work is not done after {self._seconds:.0f} s; {_KEPT}; run"
                    " zk0bot node renew again."
                )
            node_key.change_and_keep(self._folder)
        finally:
            if runs and not held:
                end_hold(self._state)

    def _has_left(self) -> bool:
        said = read_json(self._state / STATE)
        return not said or bool(said["held"] and said["left"])

    def _confirm(self, new: str) -> None:
        """Wait until the coordinator has seen this node with its new key."""
        if _wait_for(lambda: self._is_accepted(new), self._seconds):
            return
        word = self._word(new)
        if not word.failure and not word.answer.get("enrolled"):
            old = node_key.kept_fingerprint(self._folder)
            if self._word(old).answer.get("enrolled"):
                node_key.change_back(self._folder)
                raise UnavailableError(
                    "the coordinator does not know the new key any more; the old one is in use"
                    " again; ask its operator, or run zk0bot node renew again."
                )
        why = (
            word.failure or read_json(self._state / STATE).get("status") or "its status is unknown"
        )
        raise TryAgainError(
            f"this node has its new key, but was not seen with it ({why}); its old key is kept;"
            " run zk0bot node renew again, which continues here."
        )

    def _is_accepted(self, new: str) -> bool:
        said = read_json(self._state / STATE)
        if said.get("online") and said.get("key") == new:
            return True
        # Who does not run, is held or rests comes online later; the roster has its key.
        stays_out = not said or read_hold(self._state) is not None or said["held"] == "rest"
        return stays_out and bool(self._word(new).answer.get("enrolled"))

    def _word(self, key: str) -> Word:
        page = self._settings.coordinator.presence_page
        return ask_presence(f"{page}/nodes/{key}", self._trust)


def _wait_for(done: Callable[[], bool], seconds: float) -> bool:
    """Whether something came to be in that time."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True
