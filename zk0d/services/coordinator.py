"""What the coordinator says of this node: its presence page, asked from the node's side."""

from __future__ import annotations

import email.utils
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

#: How far a node's clock may be off before the coordinator refuses its signatures.
CLOCK_AHEAD, CLOCK_BEHIND = 5.0, 300.0
#: A node that is online while nothing happens asks so many times more rarely.
QUIET_FACTOR = 3.0
_GROWTH = 1.5
UNTRUSTED = "its certificate is not signed by our CA"
PRESENCE_SECONDS = 5.0
KEY_SHARED = "another machine uses this node's key"
KEY_SHARED_CURE = (
    "stop one of the two (zk0bot client stop), or make it a node of its own"
    " (docs/troubleshooting.md, Joining)"
)


@dataclass(frozen=True)
class Word:
    """What the coordinator said last, or why it said nothing."""

    failure: str = ""  #: why it cannot be reached
    since: float = field(default_factory=time.time)  #: of the failure's beginning
    answer: dict[str, Any] = field(default_factory=dict)
    clock_ahead: float = 0.0  #: seconds that our clock is ahead of the coordinator's


class PresenceWatch:
    """Asks the presence page from a thread of its own, so that no look has to wait for it."""

    def __init__(self, page: str, trust: ssl.SSLContext, key: str, interval: float) -> None:
        self._notes: dict[str, Callable[[], str]] = {}
        self._soon = threading.Event()
        self._url = f"{page}/nodes/{key}"
        self._trust = trust
        self._interval = interval
        self._end = threading.Event()
        self.word: Word | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def tell(self, header: str, note: Callable[[], str]) -> None:
        """Have the coordinator told at once, and from now on, what ``note`` writes."""
        self._notes[header] = note
        self._soon.set()

    def trust(self, trust: ssl.SSLContext) -> None:
        """Know the coordinator otherwise from now on."""
        self._trust = trust
        self._soon.set()

    def answers(self, trust: ssl.SSLContext) -> bool:
        """Whether the page answers at this moment to one who knows it so."""
        return not ask_presence(self._url, trust).failure

    def close(self) -> None:
        self._end.set()
        self._soon.set()
        self._thread.join(6.0)

    def _watch(self) -> None:
        wait = 0.0
        while True:
            self.word = self._ask()
            wait = next_wait(self.word, self._interval, wait)
            self._soon.wait(wait)
            self._soon.clear()
            if self._end.is_set():
                return

    def _ask(self) -> Word:
        notes = {header: note() for header, note in list(self._notes.items())}
        word, before = ask_presence(self._url, self._trust, notes), self.word
        if word.failure and before is not None and before.failure:
            return replace(word, since=before.since)
        return word


def next_wait(word: Word, interval: float, before: float) -> float:
    """Seconds until the next look, after one that had to wait ``before``.

    It grows while nothing is known to happen: the node is online and no run is under way.
    """
    run = word.answer.get("run") or {}
    under_way = run.get("state") in ("starting", "running")
    if word.failure or not word.answer.get("online") or under_way:
        return interval
    return max(interval, min(before * _GROWTH, QUIET_FACTOR * interval))


def ask_presence(url: str, trust: ssl.SSLContext, notes: Mapping[str, str] | None = None) -> Word:
    """What a presence page says at this moment; ``notes`` is what a node tells, by headers."""
    try:
        # By the standard library: httpx alone takes 6 MB. Settings allow http(s) only.
        told = {header: note for header, note in (notes or {}).items() if note}
        request = Request(url, headers=told)  # noqa: S310
        with urlopen(request, timeout=PRESENCE_SECONDS, context=trust) as response:  # noqa: S310
            content = json.load(response)
            return Word(answer=content, clock_ahead=_clock_ahead(response.headers["Date"]))
    except (OSError, HTTPException, ValueError) as error:
        return Word(failure=_plain(error))


@dataclass(frozen=True)
class EnrolAnswer:
    """What a coordinator said to a request with an invite's token: an HTTP status and a sentence.

    The status is 0 if it did not answer.
    """

    status: int
    sentence: str

    @property
    def approved(self) -> bool:
        return self.status == HTTPStatus.OK

    @property
    def token_refused(self) -> bool:
        """Whether the token lets no node in, however often it is shown."""
        return self.status == HTTPStatus.FORBIDDEN

    @property
    def name_taken(self) -> bool:
        return self.status == HTTPStatus.CONFLICT


def enrol(page: str, trust: ssl.SSLContext, body: str) -> EnrolAnswer:
    """Ask the coordinator to let this node in, by what ``Request.to_enrolment`` wrote."""
    try:
        request = Request(f"{page}/enrol", data=body.encode())  # noqa: S310
        with urlopen(request, timeout=PRESENCE_SECONDS, context=trust) as response:  # noqa: S310
            return EnrolAnswer(response.status, _said(response.read()))
    except HTTPError as error:
        with error:
            return EnrolAnswer(error.code, _said(error.read()) or _plain(error))
    except (OSError, HTTPException, ValueError) as error:
        return EnrolAnswer(0, _plain(error))


def _said(content: bytes) -> str:
    """The sentence of an answer; empty if it has none, as a gateway's own."""
    try:
        return str(json.loads(content)["said"])
    except (ValueError, KeyError, TypeError):
        return ""


def _clock_ahead(date: str | None) -> float:
    return time.time() - email.utils.parsedate_to_datetime(date).timestamp() if date else 0.0


def _plain(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP status {error.code}"
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    text = str(cause).lower()
    if "refused" in text:
        return "connection refused"
    if "expired" in text:
        return "its certificate has expired; its operator renews it"
    if "certificate" in text:
        return UNTRUSTED
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
