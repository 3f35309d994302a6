"""A node's request that it signs: which page it asks for, when, and a number that counts once.

Flower signs the calls of a SuperNode. What a node asks of our own pages with its key, and nobody
else may ask, it signs so.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zk0d.errors import ConfigError, Zk0dError
from zk0d.machine.keys import check_word, private_fingerprint, sign_word

#: A header of the request.
HEADER = "zk0d-node"
#: A request counts for so long: no further than a node's clock may be off.
WORD_SECONDS = 300.0
LONGEST = 512
_WORD = re.compile(r"([0-9a-f]{64})\.(\d{1,12})\.([0-9a-f]{32})\.([A-Za-z0-9_=-]{1,300})")


class NotANode(Zk0dError):
    """Why a request is not taken as a node's, with the HTTP status that says how."""

    default_reason = "denied"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class NodeWord:
    """A request that counts.

    Attributes
    ----------
    key
        The fingerprint of the node's key.
    nonce
        The number that it chose.
    """

    key: str
    nonce: str


def write_word(key: Path, path: str) -> tuple[str, str]:
    """A header's value for a request of the page ``path``, and the number in it.

    Raises
    ------
    ConfigError
        If the file holds no key.
    """
    nonce = secrets.token_hex(16)
    head = f"{private_fingerprint(key)}.{time.time():.0f}.{nonce}"
    return f"{head}.{sign_word(key, lambda _: _said(head, path))}", nonce


class NodeWords:
    """What nodes of a roster asked in the last minutes.

    Parameters
    ----------
    roster
        Gives the key files of the nodes that may join, by fingerprint.
    clock
        In seconds since 1970; replaced in tests.
    """

    def __init__(
        self, roster: Callable[[], Mapping[str, Path]], clock: Callable[[], float] = time.time
    ) -> None:
        self._roster = roster
        self._clock = clock
        self._seen: dict[tuple[str, str], int] = {}

    def check(self, word: str, path: str) -> NodeWord:
        """The node that asks for the page ``path``.

        Raises
        ------
        NotANode
            With 401 if the word is not a node's own, of now and new, and 403 if the node is not in
            the roster.
        """
        found = _WORD.fullmatch(word[:LONGEST])
        if found is None:
            raise NotANode(401, "a node signs this request with its key; zk0bot policy does.")
        key, moment, nonce, signature = found[1], int(found[2]), found[3], found[4]
        public = self._roster().get(key)
        if public is None:
            raise NotANode(
                403, f"the key {key[:16]} is not in the coordinator's roster; zk0bot node request."
            )
        head = word.rpartition(".")[0]
        try:
            check_word(public, lambda _: _said(head, path), signature)
        except (OSError, ValueError, ConfigError):
            raise NotANode(401, "the request is not signed with this node's key.") from None
        now = self._clock()
        if abs(age := now - moment) > WORD_SECONDS:
            raise NotANode(
                401,
                f"the request is {abs(age):.0f} s {'old' if age > 0 else 'early'} by the"
                " coordinator's clock; set this machine's clock (timedatectl set-ntp true).",
            )
        self._seen = {mark: of for mark, of in self._seen.items() if of >= now - 2 * WORD_SECONDS}
        # Only what a node of the roster signed is remembered: nobody else can fill the memory.
        if (key, nonce) in self._seen:
            raise NotANode(401, "the coordinator has seen this request before.")
        self._seen[key, nonce] = moment
        return NodeWord(key, nonce)


def _said(head: str, path: str) -> bytes:
    return f"zk0d-node-1|{head}|GET {path}".encode()
