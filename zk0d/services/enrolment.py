"""Nodes that let themselves in: with the token of an invite and a request that their key signed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from zk0d.errors import Zk0dError
from zk0d.machine import roster
from zk0d.machine.enrolment import Request
from zk0d.machine.invites import OpenInvites, RefusedToken

log = logging.getLogger("zk0d")

MOST_BYTES = 4096  #: of a request's body; the gateway has the same


@dataclass(frozen=True)
class Answer:
    """What the node is told: an HTTP status and a sentence."""

    status: HTTPStatus
    sentence: str


class Enrolment:
    """Lets nodes into the roster by the tokens of open invites.

    Parameters
    ----------
    folder
        The SuperLink's, where the invites are.
    note
        Takes an entry for the audit log: its kind, and facts.
    admitted
        Called after a node was let in.
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

    def take(self, body: bytes) -> Answer:
        """Let the node in that asks so, or say why not."""
        if len(body) > MOST_BYTES:
            return Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too large")
        try:
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

    def _keys(self) -> dict[str, str]:
        """Names by key, of the roster."""
        return {entry.key: entry.name for entry in roster.entries(self._roster)}


class _NameTaken(Exception):
    """The name is another node's."""
