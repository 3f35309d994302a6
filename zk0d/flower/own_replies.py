"""A SuperNode waits for the reply to the message that it has just taken.

Flower's loop takes a message, and then sends whichever reply comes first. That is another message's
if the coordinator ended a run while its message was being taken: Flower then takes the next one and
leaves the reply of the first. From then on each reply lies until the message after it comes, which
a coordinator that waits for that reply never sends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zk0d.flower.version import lacks

_PULL, _PUSH = "_pull_and_store_message", "_push_messages"


class OwnReplies:
    """The two steps of Flower's loop, tied together.

    Parameters
    ----------
    pull, push
        Flower's own functions; both are called with keywords.
    """

    def __init__(self, pull: Callable[..., int | None], push: Callable[..., None]) -> None:
        self._pull = pull
        self._push = push
        self._asked = ""  #: the message whose reply is waited for

    def pull(self, *, receive: Callable[[], Any], **given: Any) -> int | None:
        """Take a message, as Flower does."""

        def noted() -> Any:
            received = receive()
            if received is not None:
                self._asked = received[0].metadata.message_id
            return received

        return self._pull(receive=noted, **given)

    def push(self, *, send: Callable[..., Any], **given: Any) -> None:
        """Send replies until that of the message is among them."""
        answered: set[str] = set()

        def noted(reply: Any, *rest: Any) -> Any:
            answered.add(reply.metadata.reply_to_message_id)
            return send(reply, *rest)

        while self._asked not in answered:
            self._push(send=noted, **given)


def install(loop: Any) -> None:
    """Tie them in Flower's module of the loop.

    Raises
    ------
    UnavailableError
        If this Flower has no such steps.
    """
    for name in (_PULL, _PUSH):
        if not hasattr(loop, name):
            raise lacks(f"{name} in {loop.__name__}")
    replies = OwnReplies(getattr(loop, _PULL), getattr(loop, _PUSH))
    setattr(loop, _PULL, replies.pull)
    setattr(loop, _PUSH, replies.push)
