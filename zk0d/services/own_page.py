"""A contributor's page about its own machine: what it does, lends and sent; pause and resume.

It shows what ``zk0bot status`` tells, and changes what ``zk0bot client pause`` and ``resume`` do.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zk0d import pages
from zk0d.config.amounts import say_bytes, say_energy
from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import ClientSettings
from zk0d.daemon.line import local_time
from zk0d.errors import UsageError
from zk0d.learning.progress import duration
from zk0d.machine import contributors, hold, units
from zk0d.machine.roles import Role, target
from zk0d.pages.chart import LossChart
from zk0d.services.status import gather

REFRESH_SECONDS = 30
#: Days in the table.
MOST_DAYS = 7
#: A pause's choices: seconds and words, by the value that a browser sends.
DURATIONS = {
    "30m": (1800.0, "30 minutes"),
    "2h": (7200.0, "2 hours"),
    "8h": (28800.0, "8 hours"),
    "1d": (86400.0, "a day"),
}
_USUAL = "8h"
_IN_BYTES = ("upload_rate", "download_rate", "bytes_per_day")


@dataclass(frozen=True)
class _Limit:
    """One of ``[limits]``; ``is_set`` by the owner."""

    key: str
    value: str
    is_set: bool
    text: str


class OwnPage:
    """The page of one node.

    Parameters
    ----------
    folder
        Of its settings.

    Raises
    ------
    ConfigError
        From any method, if ``client.toml`` is wrong.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "client.toml"
        self._settings()  # a mistake is told before a browser asks

    def pause(self, duration: str) -> None:
        """As ``zk0bot client pause``.

        Raises
        ------
        UsageError
            If it is none of :data:`DURATIONS`.
        TryAgainError
            If this user may not.
        """
        if duration not in DURATIONS:
            raise UsageError(f"{duration!r} is not a pause that the page offers.")
        hold.Hold.pause(DURATIONS[duration][0]).write(self._settings().supernode.state)

    def resume(self) -> None:
        """As ``zk0bot client resume``."""
        hold.resume(self._settings().supernode.state)

    def render(self, home: str, csrf: str, trouble: str = "") -> bytes:
        """The whole document, as the machine is now.

        Parameters
        ----------
        home
            The page's own path, which ends with a slash.
        csrf
            What its forms send.
        trouble
            A sentence about what a form asked for and was not done.
        """
        settings, told = self._settings(), gather([Role.CLIENT], self._folder)
        held = None
        # One that is over is removed, which another user may not.
        with contextlib.suppress(OSError):
            held = hold.read_hold(settings.supernode.state)
        now, kind = _now(told)
        return pages.render(
            "contributor",
            node=settings.name,
            home=home,
            csrf=csrf,
            trouble=trouble,
            refresh=REFRESH_SECONDS,
            now=now,
            kind=kind,
            why=_why(told, held, now),
            todo=told["todo"],
            held=held is not None,
            durations=[
                (value, DURATIONS[value][1]) for value in sorted(DURATIONS, key=_USUAL.__ne__)
            ],
            at=time.strftime("%Y-%m-%d %H:%M", local_time()),
            version=version("zk0d"),
            figures=_figures(told),
            chart=_chart(told),
            days=_days(told),
            services=told["services"],
            file=self._file,
            restart=self._restart(),
            limits=_limits(settings.limits),
        ).encode()

    def _settings(self) -> ClientSettings:
        return ClientSettings.load(self._file)

    def _restart(self) -> str:
        if units.by_systemd(self._folder):
            name = contributors.name_of(self._folder)
            return f"systemctl restart {target(Role.CLIENT, name)}"
        return "end zk0bot client start and start it again"


def _now(told: Mapping[str, Any]) -> tuple[str, str]:
    """What the node does now, and how that is."""
    node = told["node"]
    if node is None:
        return (
            "It is not known what this node does: its services do not run, or you are not root.",
            "soft",
        )
    kind = "good" if node["online"] and not node["held"] else "soft"
    return f"{node['status']}.", kind


def _why(told: Mapping[str, Any], held: hold.Hold | None, now: str) -> list[str]:
    """Why it does not train, as far as ``now`` does not say it."""
    reasons = []
    if held is not None and held.sentence() not in now:
        reasons.append(f"It is {held.sentence()}.")
    if (line := told["line"]) and line["rests"]:
        reasons.append(f"Its line rests {line['rests']}.")
    learner = next((s for s in told["services"] if "learner" in s["name"]), None)
    if learner and learner["status"]:
        reasons.append(f"Its learner: {learner['status']}.")
    return reasons


def _figures(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    run, line, trained = told["run"], told["line"], told["trained"]
    facts = [("Round", f"{run['round']} of {run['rounds']}" if run else "no run")]
    if line:
        facts.append(("Down today", say_bytes(line["today"]["down"])))
        facts.append(("Up today", say_bytes(line["today"]["up"])))
        if limit := line["bytes_per_day"]:
            facts.append(("Both ways a day, at most", say_bytes(limit)))
    if trained:
        today, losses = trained["today"], _held_out(trained)
        facts.append(("Rounds today", str(today["rounds"])))
        on_gpu = today["joules"] is not None
        facts.append(("GPU time today" if on_gpu else "Training today", duration(today["seconds"])))
        facts.append(("GPU energy today", say_energy(today["joules"]) if on_gpu else "–"))
        if losses:
            first, last = next(iter(losses.items())), list(losses.items())[-1]
            facts.append((f"Held-out loss, round {first[0]}", f"{first[1]:.4g}"))
            if last != first:
                facts.append((f"Held-out loss, round {last[0]}", f"{last[1]:.4g}"))
    return facts


def _held_out(trained: Mapping[str, Any]) -> dict[int, float]:
    """Losses by the round whose shared policy they are of: the one before."""
    return {
        each["round"] - 1: each["holdout_loss"]
        for each in trained["rounds"]
        if each["holdout_loss"] is not None
    }


def _chart(told: Mapping[str, Any]) -> LossChart | None:
    trained, run = told["trained"], told["run"]
    if not trained or not trained["rounds"]:
        return None
    # The coordinator's run may be one that this node has not trained yet.
    is_this = run is not None and str(run["run"]) == trained["rounds"][-1]["run"]
    wanted = int(run["rounds"]) if is_this else 0
    return LossChart.of(_held_out(trained), wanted, "the first of them")


def _days(told: Mapping[str, Any]) -> list[tuple[str, ...]]:
    line = told["line"]["days"] if told["line"] else {}
    trained = told["trained"]["days"] if told["trained"] else {}
    rows: list[tuple[str, ...]] = []
    for day in sorted({*line, *trained}, reverse=True)[:MOST_DAYS]:
        moved, work = line.get(day), trained.get(day)
        joules = work["joules"] if work else None
        rows.append(
            (
                day,
                say_bytes(moved["down"]) if moved else "–",
                say_bytes(moved["up"]) if moved else "–",
                str(work["rounds"]) if work else "–",
                duration(work["seconds"]) if work else "–",
                say_energy(joules) if joules is not None else "–",
            )
        )
    return rows


def _limits(limits: LimitsSettings) -> list[_Limit]:
    """Those that the owner set come first."""
    made = []
    for name, field in LimitsSettings.model_fields.items():
        value = getattr(limits, name)
        said = say_bytes(value) if name in _IN_BYTES and value else json.dumps(value)
        is_set = name in limits.model_fields_set
        made.append(_Limit(field.alias or name, said, is_set, field.description or ""))
    return sorted(made, key=lambda each: not each.is_set)
