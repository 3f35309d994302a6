"""Homes as Flower's grid shows them, on a clock that only :meth:`HomesGrid.sleep` moves on.

Each machine fetches, trains and sends one message after the other, as fast as its line and its
steps allow. It stands still while it sleeps, and loses what it had in work when it restarts.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Protocol

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from tests.week.homes import Away, Home, Kind
from zk0d.config.limits import LimitsSettings
from zk0d.federation.envelope import kind_of, message_in, to_record
from zk0d.federation.messages import Query, Refusal, Train, WithWeights
from zk0d.federation.nodes import Node
from zk0d.federation.transport import InMessages
from zk0d.federation.update import Payload
from zk0d.flower.replies import PAGE
from zk0d.flower.simulation import copied
from zk0d.record.reasons import Reason

#: The SuperLink counts a machine online for so long after it heard it last.
ONLINE_SECONDS = 60.0
#: From power to the first word to the coordinator, and from a wake to the next heartbeat.
BOOT_SECONDS, HEARTBEAT_SECONDS = 60.0, 20.0
#: A message is seen after this; a learner has decoded its recordings so long after a start; a round
#: is loaded and encoded in this.
PULL_SECONDS, PREPARE_SECONDS, LOAD_SECONDS = 2.0, 120.0, 10.0
#: What travels in a round of SmolVLA's 100M trained weights, as bf16 down and int8 up, with the
#: variates.
DOWN_BYTES, UP_BYTES = 300e6, 200e6
#: A pause of the ServerApp lasts so long if nothing happens: a week is 600,000 s.
TICK = 10.0
#: Monday, for what Flower says of a session.
MONDAY = datetime(2026, 1, 5, tzinfo=UTC).timestamp()


class DiedError(BaseException):
    """The ServerApp's process ends here, as by SIGKILL."""


class OverError(BaseException):
    """The time to be simulated is over."""


class Learners(Protocol):
    """The learners of all homes."""

    def steps(self, index: int, task: Train) -> int:
        """Optimizer steps that a home takes in a round."""

    def answer(self, index: int, message: Message) -> Message:
        """What the learner of a home gives to a message, in the end."""

    def restarted(self, index: int) -> None:
        """The machine of a home restarted."""


@dataclass
class Work:
    """One time that a home trained for a round."""

    home: str
    round: int
    sent: float
    life: int  #: of the ServerApp that asked
    steps: int  #: that were asked for
    done: int = 0
    end: str = "unfinished"  #: what became of it at the home
    ended: float = float("inf")


@dataclass
class _Job:
    """A message in work on a machine, and how long its next thing takes."""

    id: str
    message: Message
    then: Callable[[], None] = lambda: None
    left: float = 0.0
    began: float = 0.0
    task: Train | None = None
    work: Work | None = None
    step_seconds: float = 0.0
    before: int = 0  #: steps that were parked
    parked: bool = False
    deadline: float = float("inf")


@dataclass
class _Parked:
    """Where a learner was when its machine went down."""

    round: int = 0
    base: str = ""
    done: int = 0


class Tickets(InMessages):
    """The rounds for which the coordinator still takes an update, as its data plane knows them."""

    def __init__(self) -> None:
        super().__init__()
        self._open: set[tuple[str, int]] = set()

    def begin(
        self,
        task: WithWeights,
        payload: Payload,
        keys: Collection[str],
        late: Mapping[str, int] = {},
    ) -> None:
        super().begin(task, payload, keys, late)
        self._open = {*late.items(), *((key, task.round) for key in keys)}

    def close(self, late: Mapping[str, int] = {}) -> None:
        super().close(late)
        self._open = set(late.items())

    def holds(self, key: str, number: int) -> bool:
        """Whether a node may fetch and send for this round."""
        return (key, number) in self._open


class Machine:
    """One home's machine."""

    def __init__(self, home: Home, index: int, grid: HomesGrid) -> None:
        self.home, self.index = home, index
        self._grid = grid
        self._hours = LimitsSettings(hours=home.hours).training_hours
        self.key = ""  #: what zk0d knows the node by
        self.online = True
        self.activated = 0.0
        self._runs = True  #: neither asleep nor down
        self._ready = PREPARE_SECONDS  #: when its learner has its recordings
        self._jobs: deque[_Job] = deque()
        self._parked = _Parked()
        self._moments: list[tuple[float, int, Callable[[], None]]] = []
        for away in home.away:
            self._plan(away)
        self._moments.sort(key=lambda each: each[:2])

    def _plan(self, away: Away) -> None:
        """What happens when, around one absence."""
        order = itertools.count(len(self._moments))

        def at(moment: float, what: Callable[[], None]) -> None:
            self._moments.append((moment, next(order), what))

        if away.kind is Kind.SLEEP:
            at(away.begin, self._freeze)
            if away.end - away.begin > ONLINE_SECONDS:
                at(away.begin + ONLINE_SECONDS, self._leave)
                at(away.end + HEARTBEAT_SECONDS, self._come)
            at(away.end, self._thaw)
            return
        at(away.begin, self._die)
        known = away.begin + (ONLINE_SECONDS if away.kind is Kind.POWER_CUT else 0.0)
        at(known, self._leave)
        at(max(known, away.end + BOOT_SECONDS), self._boot)

    # --- time -------------------------------------------------------------------------------------

    @property
    def due(self) -> float:
        """When something happens next."""
        own = self._moments[0][0] if self._moments else float("inf")
        if self._runs and self._jobs:
            job = self._jobs[0]
            return min(own, max(job.began, min(job.began + job.left, job.deadline)))
        return own

    def fire(self) -> None:
        """Let it happen."""
        now = self._grid.now
        if self._moments and self._moments[0][0] <= now:
            self._moments.pop(0)[2]()
            return
        job = self._jobs[0]
        if job.deadline <= now and job.began + job.left > now:
            self._cut(job, "deadline")
            self._refuse(job, Reason.DEADLINE, "the round's deadline has passed.")
            return
        job.left = 0.0
        job.then()

    def _freeze(self) -> None:
        self._runs = False
        if self._jobs:
            job = self._jobs[0]
            job.left = max(0.0, job.left - (self._grid.now - job.began))

    def _thaw(self) -> None:
        self._runs = True
        if self._jobs:  # it goes on, or was sent to a machine that was away
            self._jobs[0].began = self._grid.now
        while len(self._jobs) > 1:
            self._busy(self._jobs.pop())

    def _leave(self) -> None:
        self.online = False

    def _come(self) -> None:
        self.online, self.activated = True, self._grid.now

    def _die(self) -> None:
        if self._runs and self._jobs:
            job = self._jobs[0]
            job.left = max(0.0, job.left - (self._grid.now - job.began))
        self._runs = False
        for job in self._jobs:
            self._cut(job, "restarted")
        self._jobs.clear()
        self._grid.learners.restarted(self.index)

    def _boot(self) -> None:
        self._ready = self._grid.now + PREPARE_SECONDS
        self._thaw()
        self._come()

    # --- work -------------------------------------------------------------------------------------

    def take(self, name: str, message: Message) -> None:
        """A message is there for it."""
        job = _Job(name, message)
        if self._jobs and self._runs:
            self._busy(job)
            return
        self._jobs.append(job)
        if len(self._jobs) == 1:
            self._begin()

    def _busy(self, job: _Job) -> None:
        """What a learner says that does another task; what nobody waits for is taken."""
        refusal = Refusal(reason=Reason.LEARNER_BUSY, message="the learner is busy with train.")
        self._say(job, to_record(refusal))

    def forget(self) -> None:
        """The run ended by Flower's word: what it has not begun is gone."""
        while len(self._jobs) > 1:
            self._jobs.pop()

    def _next(self, job: _Job, seconds: float, then: Callable[[], None]) -> None:
        job.left, job.began, job.then = seconds, self._grid.now, then

    def _begin(self) -> None:
        job = self._jobs[0]
        if job.message.metadata.message_type != MessageType.TRAIN:
            told = kind_of(job.message.content) != Query.__name__
            ready = PULL_SECONDS if told else max(PULL_SECONDS, self._ready - self._grid.now)
            self._next(job, ready, lambda: self._asked(job))
            return
        task = job.task = message_in(job.message.content, Train)
        self._next(job, PULL_SECONDS, lambda: self._began(job, task))

    @property
    def _rests(self) -> bool:
        """Whether it is outside of the owner's hours."""
        return not self._hours.allow(datetime.fromtimestamp(MONDAY + self._grid.now, UTC))

    @property
    def seen(self) -> bool:
        """Whether the SuperLink counts it online: who rests leaves after what is under way."""
        return self.online and (bool(self._jobs) or not self._rests)

    def _rest(self, job: _Job) -> None:
        """What a node says that rests."""
        message = f"this node trains at {self.home.hours} only (limits.hours)."
        self._say(job, to_record(Refusal(reason=Reason.RESTING, message=message)))
        self._over()

    def _asked(self, job: _Job) -> None:
        if self._rests and kind_of(job.message.content) == Query.__name__:
            self._rest(job)
            return
        self._grid.answer(job.id, self._learn(job))
        self._over()

    def _began(self, job: _Job, task: Train) -> None:
        """A round's message is read; its weights are fetched if the node does not rest."""
        if self._rests:
            self._grid.refused(Reason.RESTING)
            self._rest(job)
            return
        self._next(job, DOWN_BYTES / self.home.down, lambda: self._fetched(job, task))

    def _learn(self, job: _Job) -> Message:
        """What the learner gives."""
        TaskIdentity.node_id = self.index + 1
        try:
            return self._grid.learners.answer(self.index, job.message)
        finally:
            TaskIdentity.node_id = 1

    def _say(self, job: _Job, record: RecordDict) -> None:
        """Give an answer that is none of the learner's."""
        TaskIdentity.node_id = self.index + 1
        self._grid.answer(job.id, Message(record, reply_to=job.message))
        TaskIdentity.node_id = 1

    def _fetched(self, job: _Job, task: Train) -> None:
        if not self._grid.tickets.holds(self.key, task.round) or job.id not in self._grid.pending:
            self._over()  # the coordinator's files are gone, and nobody waits for a word
            return
        self._grid.fetched += 1
        if any(span.holds(self._grid.now) for span in self.home.full):
            self._refuse(job, Reason.DISK_FULL, "train cannot write on this machine.")
        else:
            self._train(job, task)

    def _train(self, job: _Job, task: Train) -> None:
        steps = self._grid.learners.steps(self.index, task)
        job.work = Work(self.home.name, task.round, self._grid.now, self._grid.life, steps)
        self._grid.works.append(job.work)
        job.step_seconds = self._grid.step_seconds * self.home.slow
        if self._grid.parks and (self._parked.round, self._parked.base) == (task.round, task.base):
            job.before = self._parked.done
        job.work.steps = left = steps - job.before
        job.deadline = self._grid.now + task.deadline_seconds
        self._next(job, LOAD_SECONDS + left * job.step_seconds, lambda: self._sent(job))

    def _sent(self, job: _Job) -> None:
        """All steps are taken; the update goes up."""
        assert job.work is not None
        job.work.done, job.deadline = job.work.steps, float("inf")
        self._park(job)
        answer = self._learn(job)
        self._next(job, UP_BYTES / self.home.up, lambda: self._answered(job, answer))

    def _answered(self, job: _Job, answer: Message) -> None:
        assert job.work is not None
        assert job.task is not None
        job.work.end, job.work.ended = "answered", self._grid.now
        if self._grid.tickets.holds(self.key, job.task.round):
            self._grid.answer(job.id, answer)
        self._over()

    def _refuse(self, job: _Job, reason: Reason, message: str) -> None:
        self._grid.refused(reason)
        self._say(job, to_record(Refusal(reason=reason, message=message)))
        self._over()

    def _cut(self, job: _Job, end: str) -> None:
        """Its work ends early."""
        work = job.work
        if work is None or work.end != "unfinished":
            return
        if not work.done:  # the update was not yet on its way
            left = max(0.0, job.left if not self._runs else job.began + job.left - self._grid.now)
            work.done = max(0, work.steps - round(left / job.step_seconds + 0.5))
        work.end, work.ended = end, self._grid.now
        self._park(job)

    def _park(self, job: _Job) -> None:
        """Keep how far a round is, and in the end its answer."""
        assert job.work is not None
        assert job.task is not None
        if not job.parked:
            job.parked = True
            self._parked = _Parked(job.task.round, job.task.base, job.before + job.work.done)

    def _over(self) -> None:
        self._jobs.popleft()
        if self._jobs:
            self._begin()


@dataclass
class HomesGrid(Grid):
    """Flower's grid of these homes.

    Attributes
    ----------
    step_seconds
        Of a machine that is neither slow nor fast.
    until
        When the simulation ends.
    parks
        Whether a learner keeps on disk the step that a round has reached, then its answer.
    """

    homes: list[Home]
    learners: Learners
    step_seconds: float
    until: float
    parks: bool = False
    tickets: Tickets = field(default_factory=Tickets)
    deaths: list[float] = field(default_factory=list)  #: when the ServerApp dies
    died: list[float] = field(default_factory=list)
    now: float = 0.0
    life: int = 1  #: of the ServerApp
    works: list[Work] = field(default_factory=list)
    refusals: dict[Reason, int] = field(default_factory=dict)  #: of rounds, by homes
    fetched: int = 0  #: times that a round's weights came down
    pending: dict[str, Message | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)
        self.machines = [Machine(home, index, self) for index, home in enumerate(self.homes)]
        for machine in self.machines:
            machine.key = key_of(machine.home)
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.pass_time(0.0)

    # --- time -------------------------------------------------------------------------------------

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass: more than asked for while nothing happens."""
        first = min(machine.due for machine in self.machines)
        self.pass_time(max(seconds, min(TICK, first - self.now)))
        if self.now >= self.until:
            raise OverError
        if self.deaths and self.deaths[0] <= self.now:
            self.deaths.pop(0)
            self.died.append(self.now)
            raise DiedError

    def pass_time(self, seconds: float) -> None:
        """Let so many seconds pass."""
        end = self.now + seconds
        while True:
            machine = min(self.machines, key=lambda each: each.due)
            if machine.due > end:
                break
            self.now = max(self.now, machine.due)
            machine.fire()
        self.now = end

    def refused(self, reason: Reason) -> None:
        """A home refused a round."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1

    def new_life(self) -> None:
        """Another ServerApp, of whose run Flower knows nothing of before."""
        self.life += 1
        self.pending.clear()
        for machine in self.machines:
            machine.forget()

    # --- Flower's side ----------------------------------------------------------------------------

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(range(1, len(self.machines) + 1))

    def get_nodes(self) -> list[Any]:
        return [
            SimpleNamespace(
                node_id=number,
                status="online" if machine.seen else "offline",
                name=machine.home.name,
                public_key=machine.home.name.encode(),
                last_activated_at=datetime.fromtimestamp(
                    MONDAY + machine.activated, UTC
                ).isoformat(),
            )
            for number, machine in enumerate(self.machines, 1)
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names = []
        for message in messages:
            name = f"m{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = name
            message.content = copied(message.content)
            self.pending[name] = None
            names.append(name)
            self.machines[message.metadata.dst_node_id - 1].take(name, message)
        return names

    def answer(self, name: str, answer: Message) -> None:
        """An answer reaches the SuperLink; one to a run that is over is refused."""
        if name in self.pending:
            self.pending[name] = answer

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        there = [name for name in message_ids if self.pending.get(name) is not None]
        return [self.pending.pop(name) for name in there[:PAGE]]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: Any = None
    ) -> list[Message]:
        raise NotImplementedError


def key_of(home: Home) -> str:
    """What zk0d knows a home by."""
    info = SimpleNamespace(node_id=0, status="online", public_key=home.name.encode())
    return Node.of(info).key
