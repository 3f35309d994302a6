"""A node's control variates: those of its newest rounds, as the coordinator has them."""

from __future__ import annotations

from collections.abc import Mapping

from zk0d.federation.update import Payload

#: A variate is the mean gradient of about so many steps; one of fewer is mostly noise.
FULL_STEPS = 40
#: The variate of a machine that takes one step a round would lag by tens of rounds.
LEAST_SHARE = 0.25


def share_of(steps: int) -> float:
    """How much a round of so many steps changes a node's variate, from its old one at 0 to 1.

    Its steps of :data:`FULL_STEPS`, but at least :data:`LEAST_SHARE`; both are measured
    (docs/results.md).
    """
    return min(1.0, max(steps / FULL_STEPS, LEAST_SHARE))


class OwnVariates:
    """What this node sent, kept encoded: both ends then subtract and add the same.

    The coordinator says which of them counts. That is the newest, unless its round is repeated or
    was never committed. Losing them costs one round without correction.
    """

    def __init__(self) -> None:
        self._run = ""
        self._sent: dict[int, Payload] = {}

    def kept(self) -> dict[int, Payload]:
        """By round, for :meth:`restore`."""
        return dict(self._sent)

    def restore(self, run: str, sent: Mapping[int, Payload]) -> None:
        """Be as another was when it gave :meth:`kept`."""
        self._run, self._sent = run, dict(sent)

    def begin(self, run: str, counted: int) -> Payload | None:
        """The variate of round ``counted``, if it is here; others are dropped."""
        own = self._sent.get(counted) if run == self._run else None
        self._run, self._sent = run, {counted: own} if own else {}
        return own

    def add(self, round_: int, variate: Payload) -> None:
        """Keep what is sent for a round."""
        self._sent[round_] = variate
