"""Nodes that let themselves in, or change their key, without a person's word.

The one shows an invite's token and a request that its key signed. The other shows a renewal that
both of its keys signed (:mod:`zk0d.machine.renewal`).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from zk0d.errors import TryAgainError, Zk0dError
from zk0d.machine import roster
from zk0d.machine.enrolment import Request
from zk0d.machine.invites import OpenInvites, RefusedToken
from zk0d.machine.renewal import RENEWAL_SECONDS, Renewal, SignedRenewal
from zk0d.machine.roster import RefusedRenewal

log = logging.getLogger("zk0d")

MOST_BYTES = 4096  #: of a request's body; the gateway has the same


@dataclass(frozen=True)
class Answer:
    """What the node is told: an HTTP status and a sentence."""

    status: HTTPStatus
    sentence: str


class Enrolment:
    """Lets nodes into the roster by the tokens of open invites, and lets them change their keys.

    Parameters
    ----------
    folder
        The SuperLink's, where the invites are.
    note
        Takes an entry for the audit log: its kind, and facts.
    admitted
        Called after a node was let in, or its new key was.
    """

    def __init__(
        self,
        folder: Path,
        roster_folder: Path,
        note: Callable[..., None],
        admitted: Callable[[], None] = lambda: None,
    ) -> None:
        self._invites = OpenInvites(folder)
        self._roster = roster_folder
        self._note = note
        self._admitted = admitted
        self._began = int(time.time())
        self._seen: dict[bytes, int] = {}  #: renewals of the last minutes: hashes and moments

    def take(self, body: bytes) -> Answer:
        """Let the node in that asks so, or say why not."""
        if len(body) > MOST_BYTES:
            return Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too large")
        try:
            if (renewal := SignedRenewal.read(body)) is not None:
                return self._take_renewal(renewal)
            request, token = Request.from_enrolment(body)
        except Zk0dError as error:
            return Answer(HTTPStatus.BAD_REQUEST, error.message)
        if not token:
            return Answer(HTTPStatus.FORBIDDEN, "a person approves this request")
        try:
            return self._let_in(request, token)
        except RefusedToken as refusal:
            log.info("node %s (key %s): %s", request.name, request.fingerprint[:12], refusal)
            return Answer(HTTPStatus.FORBIDDEN, str(refusal))
        except _NameTaken as taken:
            return Answer(HTTPStatus.CONFLICT, str(taken))
        except Zk0dError as error:
            log.error("enrolment: %s", error.message)
            return Answer(
                HTTPStatus.SERVICE_UNAVAILABLE, "the coordinator cannot write its roster now"
            )

    def _let_in(self, request: Request, token: str) -> Answer:
        if request.fingerprint in self._keys():
            # Its answer was lost, or a person was faster; the token may be used up by now.
            return Answer(HTTPStatus.OK, "approved")

        def let_in() -> None:
            if request.name in self._keys().values():
                raise _NameTaken(f"there is a node '{request.name}' with another key")
            roster.approve(self._roster, request)

        invite = self._invites.use(token, let_in)
        log.info("node %s was let in by invite %s", request.name, invite.id)
        self._note(
            "node.approved",
            node=request.name,
            key=request.fingerprint,
            contact=request.contact,
            invite=invite.id,
        )
        self._admitted()
        return Answer(HTTPStatus.OK, "approved")

    def _take_renewal(self, signed: SignedRenewal) -> Answer:
        asked = signed.renewal
        try:
            self._check_moment(asked)
            entry = roster.renew(self._roster, signed)
        except RefusedRenewal as refusal:
            log.info("node %s (key %s): %s", asked.name, asked.old[:12], refusal)
            return Answer(HTTPStatus.FORBIDDEN, str(refusal))
        except TryAgainError as error:
            log.error("enrolment: %s", error.message)
            return Answer(
                HTTPStatus.SERVICE_UNAVAILABLE, "the coordinator cannot write its roster now"
            )
        # Only what both keys signed is remembered: nobody else can fill the memory.
        self._seen[_mark(asked)] = asked.moment
        if entry is not None:
            log.info("node %s has a new key beside its old one", entry.name)
            self._note(
                "key.approved",
                node=entry.name,
                key=entry.key,
                old=asked.old,
                contact=entry.contact,
                renewal=True,
            )
            self._admitted()
        return Answer(HTTPStatus.OK, "approved")

    def _check_moment(self, asked: Renewal) -> None:
        """A renewal is of now, and comes once."""
        if abs(asked.age) > RENEWAL_SECONDS:
            raise RefusedRenewal(
                f"this renewal is {abs(asked.age):.0f} s {'old' if asked.age > 0 else 'early'} by"
                " the coordinator's clock; set this machine's clock (timedatectl set-ntp true)"
            )
        # What was seen before this process began is not remembered.
        if asked.moment < self._began:
            raise RefusedRenewal("the coordinator has just started; try again in a minute")
        self._seen = {
            mark: moment
            for mark, moment in self._seen.items()
            if moment >= asked.moment - 2 * RENEWAL_SECONDS
        }
        if _mark(asked) in self._seen:
            raise RefusedRenewal("the coordinator has seen this renewal before")

    def _keys(self) -> dict[str, str]:
        """Names by key, of the roster."""
        return {entry.key: entry.name for entry in roster.entries(self._roster)}


def _mark(renewal: Renewal) -> bytes:
    """Its content's hash: signatures differ though the content is the same."""
    return hashlib.sha256(renewal.signed()).digest()


class _NameTaken(Exception):
    """The name is another node's."""
