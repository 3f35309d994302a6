"""Whether the owner needs this machine, for a ClientApp before and while it works."""

from __future__ import annotations

import os
from pathlib import Path

from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import LIMITS_VARIABLE, OWNER_VARIABLE
from zk0d.daemon.rest import read_rest
from zk0d.errors import TryAgainError
from zk0d.record.reasons import Reason


def check_rest(*, under_way: bool = False) -> None:
    """Refuse while this node rests; in a simulation, none does.

    Parameters
    ----------
    under_way
        Whether it is about a message in work, which only a rest at once ends.

    Raises
    ------
    TryAgainError
        With reason ``resting``, saying until when.
    """
    folder, limits = os.environ.get(OWNER_VARIABLE), os.environ.get(LIMITS_VARIABLE)
    if not folder or not limits:
        return
    rest = read_rest(Path(folder), LimitsSettings.model_validate_json(limits))
    if rest is not None and (rest.at_once or not under_way):
        raise TryAgainError(rest.told(), reason=Reason.RESTING)
