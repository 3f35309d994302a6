"""Contents of a message that are not there yet are asked for again at once, not after a second.

Flower makes a message known before its contents have arrived: at the SuperLink, at a SuperNode for
its ClientApp, and for a ServerApp that takes an answer. Whoever looks in between waits one second,
then two, then four. A round has three such moments, so a trivial one took most of its time there.
``tests/flower`` fails when Flower changes the two functions whose defaults these are.
"""

from __future__ import annotations

from typing import Any

from zk0d.flower.version import lacks

#: After the first look that came too early. Each next wait is twice as long, as before.
FIRST_WAIT = 0.03
#: No content of a message is large (``transfer.message-kib``), so none is long under way.
LONGEST_WAIT = 2.0


def install() -> None:
    """Have this process wait so.

    Raises
    ------
    UnavailableError
        If this Flower has no such waits.
    """
    from flwr.supercore.inflatable import inflatable_utils as flower

    for name in ("pull_objects", "pull_and_inflate_object_from_tree"):
        defaults: dict[str, Any] = (
            getattr(getattr(flower, name, None), "__kwdefaults__", None) or {}
        )
        if not {"initial_backoff", "backoff_cap", "max_tries_per_object"} <= defaults.keys():
            raise lacks(f"waits in {name}")
        # Waits that are shorter must not give up sooner: Flower's limit in time stays.
        defaults |= {
            "initial_backoff": FIRST_WAIT,
            "backoff_cap": LONGEST_WAIT,
            "max_tries_per_object": None,
        }
        getattr(flower, name).__kwdefaults__ = defaults
