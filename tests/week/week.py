"""A week of homes and a coordinator against the real ServerApp, and what became of their work."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.week.grid import DiedError, HomesGrid, Learners, OverError, Work
from tests.week.homes import DAY, HOUR, Home, Span
from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings
from zk0d.errors import not_written
from zk0d.federation.learner_client import Evaluator
from zk0d.federation.run import Run
from zk0d.record.events import (
    AnyEvent,
    NodeLost,
    RoundCommitted,
    RunFinished,
    RunResumed,
    UpdateAccepted,
    UpdateRefused,
)
from zk0d.record.journal import Journal, settings_of

#: From a ServerApp's death until `zk0d superlink` has resumed its run.
RESTART_SECONDS = 60.0


@dataclass(frozen=True)
class Trouble:
    """What goes wrong at the coordinator: when its ServerApp dies, and when its disk is full."""

    deaths: tuple[float, ...] = ()
    full: tuple[Span, ...] = ()


#: In any week: killed on Tuesday, Thursday and Saturday, and the disk full on Friday morning.
TROUBLE = Trouble(
    deaths=(1 * DAY + 14.3 * HOUR, 3 * DAY + 2.7 * HOUR, 5 * DAY + 20.1 * HOUR),
    full=(Span(4 * DAY + 6 * HOUR, 4 * DAY + 9 * HOUR),),
)


class _WeekJournal(Journal):
    """A journal that notes the time of the simulation, on a disk that may be full."""

    def __init__(self, folder: Path, grid: HomesGrid, full: tuple[Span, ...]) -> None:
        self._grid, self._full = grid, full
        self.events: list[tuple[float, AnyEvent]] = []
        super().__init__(folder, "1")

    def write[E: AnyEvent](self, event: E) -> E:
        if any(span.holds(self._grid.now) for span in self._full):
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise not_written(f"{self.folder}: the journal", full)
        written = super().write(event)
        self.events.append((self._grid.now, written))
        return written


@dataclass
class Account:
    """What became of a week.

    Attributes
    ----------
    rounds
        Committed ones, and the hours after which each was.
    steps
        Optimizer steps of all homes: in all, and by what became of them.
    late
        Of those that counted, the steps of late updates.
    """

    hours: list[float] = field(default_factory=list)
    finished: bool = False
    steps: Counter[str] = field(default_factory=Counter)
    late: int = 0
    fetched: int = 0
    asked: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    by_home: dict[str, tuple[int, int]] = field(default_factory=dict)
    committed: list[RoundCommitted] = field(default_factory=list)
    events: list[tuple[float, AnyEvent]] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        return len(self.hours)

    @property
    def counted(self) -> float:
        """Share of all steps that entered a committed round."""
        whole = self.steps.total()
        return self.steps["counted"] / whole if whole else 0.0

    def lost(self) -> dict[str, float]:
        """Shares of all steps that did not, by why."""
        whole = self.steps.total()
        return {why: n / whole for why, n in self.steps.most_common() if why != "counted"}


def run_week(
    folder: Path,
    homes: list[Home],
    settings: RunSettings,
    learners: Learners,
    evaluator: Evaluator,
    *,
    step_seconds: float,
    days: float = 7.0,
    trouble: Trouble = TROUBLE,
    parks: bool = False,
) -> Account:
    """Simulate it until the run ends or the time is over."""
    shutil.rmtree(folder, ignore_errors=True)
    grid = HomesGrid(
        homes, learners, step_seconds, days * DAY, parks=parks, deaths=sorted(trouble.deaths)
    )
    server = ServerSettings.parse({"state": folder, "poll-interval": 10.0}, where="week")
    events: list[tuple[float, AnyEvent]] = []
    resumed_by = ""
    while True:
        journal = _WeekJournal(folder, grid, trouble.full)
        run = Run(
            grid,
            settings_of(folder) if resumed_by else settings,
            server,
            journal,
            evaluator,
            transport=grid.tickets,
            resumed_by=resumed_by,
            clock=grid.clock,
            sleep=grid.sleep,
        )
        try:
            run.run()
        except DiedError:
            grid.pass_time(RESTART_SECONDS)
            grid.new_life()
            resumed_by = str(grid.life)
            continue
        except OverError:
            pass
        finally:
            events += journal.events
        return account(grid, events)


def account(grid: HomesGrid, events: list[tuple[float, AnyEvent]]) -> Account:
    """What became of every step."""
    made = Account(fetched=grid.fetched, events=events, works=grid.works)
    made.refusals = {reason.value: n for reason, n in grid.refusals.items()}
    entered: dict[tuple[str, int], int] = {}
    gone: dict[tuple[str, int], str] = {}
    taken: set[tuple[str, int]] = set()
    for moment, event in events:
        if isinstance(event, RoundCommitted):
            made.committed.append(event)
            if event.round:
                made.hours.append(moment / HOUR)
            for node in event.nodes:
                entered[node.node, event.round - node.staleness] = node.staleness
        elif isinstance(event, NodeLost):
            asked = max((w.round for w in grid.works if _is(w, event.node, moment)), default=0)
            gone[event.node, asked] = event.reason
        elif isinstance(event, UpdateAccepted):
            taken.add((event.node, event.round - event.staleness))
        elif isinstance(event, UpdateRefused):
            gone[event.node, event.round] = event.reason
        elif isinstance(event, RunFinished):
            made.finished = True
    resumed = [moment for moment, event in events if isinstance(event, RunResumed)]
    commits = [moment for moment, event in events if isinstance(event, RoundCommitted)]
    last = {(work.home, work.round): work for work in grid.works if work.end == "answered"}
    before: dict[str, list[int]] = {}
    for work in grid.works:
        key = (work.home, work.round)
        # What was parked is trained once.
        if key in entered and (grid.parks or last.get(key) is work):
            fate = "counted"
            made.late += work.done if entered[key] else 0
        elif work.end != "answered":
            fate = work.end
        elif any(work.sent < moment <= _next(commits, work.ended) for moment in resumed):
            fate = "the run was resumed"
        elif key in taken and key not in gone:
            fate = "unfinished"  # so is the round at the end
        else:
            fate = f"given up ({gone.get(key, 'unknown')})"
        made.steps[fate] += work.done
        of_home = before.setdefault(work.home, [0, 0])
        of_home[0] += work.done
        of_home[1] += work.done if fate == "counted" else 0
    made.by_home = {name: (whole, counted) for name, (whole, counted) in sorted(before.items())}
    return made


def _next(moments: list[float], after: float) -> float:
    return min((moment for moment in moments if moment > after), default=float("inf"))


def _is(work: Work, node: str, moment: float) -> bool:
    return work.home == node and work.sent <= moment


def say(made: Account) -> str:
    """The account in lines."""
    lost = ", ".join(f"{why} {share:.1%}" for why, share in made.lost().items() if share)
    return (
        f"{made.rounds} rounds{' (finished)' if made.finished else ''} by hour"
        f" {made.hours[-1] if made.hours else 0:.1f}; {made.steps.total()} steps, counted"
        f" {made.counted:.1%} (late {made.late / max(1, made.steps.total()):.1%}); lost: {lost};"
        f" fetched {made.fetched}, refused {made.refusals}"
    )
