"""Rounds with a run's nodes: wait for enough of them, send the model, collect their updates.

A round's updates wait on disk until the last is in or its deadline has passed, and count if enough
came.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings
from zk0d.daemon.looks import Looks
from zk0d.errors import ExitCode, Zk0dError
from zk0d.federation.admission import Standing
from zk0d.federation.answers import RoundAnswers
from zk0d.federation.cohort import PRESENCE_INTERVAL, Cohort
from zk0d.federation.late import LateNodes
from zk0d.federation.measuring import NodeEvaluations
from zk0d.federation.messages import Query, QueryReply, Train
from zk0d.federation.model import GlobalModel
from zk0d.federation.nodes import Node
from zk0d.federation.normalization import Normalization
from zk0d.federation.schedule import RoundPlan
from zk0d.federation.spool import Spool
from zk0d.federation.transport import Transport
from zk0d.federation.update import Manifest
from zk0d.federation.waiting import SAY_AFTER, Waiting
from zk0d.learning.spec import PolicySpec
from zk0d.record.events import AnyEvent, NodeLost, RoundFailed, RoundStarted
from zk0d.record.reasons import Reason
from zk0d.record.state import RunState

#: Once enough nodes can train, seconds that the others still have to answer the first query.
QUERY_GRACE = 60.0
#: Nodes that a sentence names.
MOST_NAMED = 8


class RunFailedError(Zk0dError):
    """The run cannot continue; its committed rounds stay.

    Parameters
    ----------
    causes
        The reasons why nodes had no part; if none stays, the same may be tried again.
    """

    default_reason = "run_failed"

    def __init__(
        self, message: str, *, reason: str | None = None, causes: Collection[str] = ()
    ) -> None:
        super().__init__(message, reason=reason)
        codes = {Reason.of(cause).exit_code for cause in causes}
        self.exit_code = codes.pop() if len(codes) == 1 else ExitCode.UNAVAILABLE


class Rounds:
    """The rounds of one run, as its nodes see them.

    Parameters
    ----------
    grid
        Flower's way to the nodes.
    normalization
        Says what each node normalizes with.
    state
        What the run did so far; whoever takes ``record``'s events keeps it up to date.
    spool
        Where updates wait.
    transport
        The way that weights and updates travel.
    record
        Takes each event of the run.
    waiting
        What the run waits for.
    closed
        Whether no node can come that is not there at the start, as in a simulation.
    clock, sleep
        Replaced in tests.
    """

    def __init__(
        self,
        grid: Grid,
        spec: PolicySpec,
        settings: RunSettings,
        server: ServerSettings,
        normalization: Normalization,
        state: RunState,
        spool: Spool,
        transport: Transport,
        record: Callable[[AnyEvent], object],
        waiting: Waiting,
        *,
        closed: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._waiting = waiting
        self._settings = settings
        self._poll_interval = server.poll_interval
        self._normalization = normalization
        self._state = state
        self._spool = spool
        self._transport = transport
        self._record = record
        self._closed = closed
        self._clock = clock
        self._sleep = sleep
        query = Query(
            run=state.run,
            spec=spec,
            dataset_uri=settings.dataset_uri,
            image_augmentation=settings.training.image_augmentation,
        )
        self._cohort = Cohort(
            grid,
            record,
            query,
            self._take_update,
            self._lose,
            self._ask_again,
            clock,
            on_measured=self._take_measured,
            check=normalization.check,
            names=state.names,
            robots=state.robots,
            mixed_units=settings.admission.allow_mixed_units,
        )
        self._late = LateNodes(settings.rounds.max_staleness)
        self._answers: RoundAnswers | None = None
        self._tasks: dict[str, Train] = {}  #: of the latest round, by the node's key
        self.evaluations = NodeEvaluations(
            settings,
            state,
            self._cohort,
            transport,
            normalization,
            record,
            serve=self._serve,
            late=lambda: self.late,
            standing=self._standing,
            poll_interval=server.poll_interval,
            clock=clock,
            sleep=sleep,
        )

    @property
    def late(self) -> Mapping[str, int]:
        """Nodes whose updates may still come, by key: the rounds that they are late for."""
        return self._late.rounds

    def gather(self) -> dict[str, QueryReply]:
        """Wait for enough nodes that can train; what they answered, by name and in its order.

        Raises
        ------
        RunFailedError
            If the run is closed and there are too few after its ``node-wait``.
        """
        wanted, members = self._settings.rounds.min_fit_clients, self._cohort.members
        enough_since: list[float] = []

        def ready() -> bool:
            if len(members) < wanted:
                return False
            enough_since.append(self._clock())
            return not self._cohort.waits or self._clock() - enough_since[0] > QUERY_GRACE

        self._wait_for(
            ready,
            lambda: wanted - len(members),
            lambda: f"{len(members)} of {wanted} nodes can train",
        )
        return dict(sorted(self._cohort.named(members).items()))

    def train(
        self, number: int, plan: RoundPlan, model: GlobalModel
    ) -> tuple[RoundAnswers, dict[str, float]]:
        """One round's answers, and the seconds of its phases.

        Raises
        ------
        RunFailedError
            If the run is closed and too few nodes are there after its ``node-wait``.
        TryAgainError
            If the disk is full.
        """
        chosen = self._choose(number)
        began = self._clock()  # a wait for nodes is nothing that their deadline has to hold
        answers = self._answers = self._send(number, plan, model, chosen)
        for work, answer in self._late.pop():
            answers.take_to(work, answer)
        deadline = began + self._settings.rounds.round_deadline
        looks = Looks(self._poll_interval, PRESENCE_INTERVAL, self._clock)
        while not answers.is_over and (left := deadline - self._clock()) > 0:
            if self._serve():
                looks.news()
            else:
                self._sleep(min(looks.wait, left))
        answers.close()
        return answers, {"send": answers.sent - began, "collect": self._clock() - answers.sent}

    def is_enough(self, answers: RoundAnswers) -> bool:
        """Whether a round counts; if not, it has failed, and its next try has its updates."""
        wanted = self._settings.rounds.min_fit_clients
        if answers.count >= wanted:
            return True
        self._record(
            RoundFailed(
                round=answers.task.round,
                message=f"{answers.count} of {wanted} needed updates came.",
                refused=self._cohort.named(answers.refused),
                lost=self._cohort.named(answers.lost),
            )
        )
        self._cohort.requery_unavailable(answers.refused)
        return False

    def missing(self) -> str:
        """What the latest round lacked, and why."""
        assert self._answers is not None
        return self._answers.missing()

    def causes(self) -> list[str]:
        """The reasons for which updates of the latest round are missing."""
        assert self._answers is not None
        return [*self._answers.refused.values(), *self._answers.lost.values()]

    def rest(self, seconds: float) -> None:
        """Let a pause pass; it ends if a node comes that was not asked in the latest round."""
        known = {node.key for node in self._cohort.ready()}
        known |= self._answers.nodes if self._answers is not None else set()

        def another() -> bool:
            self._serve()
            return any(node.key not in known for node in self._cohort.ready())

        self._waiting.rest(seconds, another)

    def _serve(self) -> bool:
        """Ask newcomers, take the answers that are there; whether there was any."""
        self._cohort.query_newcomers()
        came, number = self._cohort.collect(), self._state.round + 1
        for work in self._late.too_late(number, self._clock()):
            self._cohort.give_up(work.node.key, work.task.round)
            name = self._cohort.name(work.node.key)
            self._record(NodeLost(round=number, node=name, reason=Reason.DEADLINE))
        return came

    def _wait_for(
        self,
        ready: Callable[[], bool],
        lacks: Callable[[], int],
        state: Callable[[], str],
        sits_out: Callable[[str], bool] = lambda key: False,
    ) -> None:
        """Serve queries until ``ready``, however long that takes.

        A closed run fails as soon as too few nodes are left that do not sit out, or after its
        ``node-wait``.

        Parameters
        ----------
        lacks
            How many nodes are too few; where it is none, others are still getting ready.
        state
            Who is there, as a sentence begins.
        """
        began = self._clock()
        while True:
            self._serve()
            if ready():
                self._waiting.over(Reason.TOO_FEW_NODES)
                return
            lacking, waited = lacks(), self._clock() - began
            if lacking <= 0:
                self._waiting.over(Reason.TOO_FEW_NODES)
            elif self._closed:
                self._give_up(waited, state, sits_out)
            elif waited > SAY_AFTER:
                self._waiting.because(
                    Reason.TOO_FEW_NODES,
                    state() + self._absent(),
                    f"when {lacking} more {'node' if lacking == 1 else 'nodes'} can train",
                )
            self._sleep(PRESENCE_INTERVAL if waited > SAY_AFTER else self._poll_interval)

    def _give_up(
        self, waited: float, state: Callable[[], str], sits_out: Callable[[str], bool]
    ) -> None:
        """Fail if no node can come any more, or none came in time."""
        left = sum(not sits_out(key) for key in self._cohort.left())
        gone = left < self._settings.rounds.min_fit_clients
        if not gone and waited <= self._settings.rounds.node_wait:
            return
        said = state() + (", and no other can come" if gone else f" after waiting {waited:.0f} s")
        refusals = [error for _, error in sorted(self._cohort.refusals.items())]
        # Contributors with the same recordings say the same.
        causes = dict.fromkeys(error.message.rstrip(".") for error in refusals)
        raise RunFailedError(
            said + (f": {'; '.join(causes)}." if causes else "; lower min-fit-clients."),
            reason=Reason.TOO_FEW_NODES,
            causes=[error.reason for error in refusals],
        )

    def _absent(self) -> str:
        """The end of a sentence: what each node that has no part does instead."""
        number = self._state.round + 1
        ready, standing = {node.key for node in self._cohort.ready()}, self._standing()
        said = [f"{name} is {doing}" for name, doing in self._cohort.preparing.items()]
        for name, error in sorted(self._cohort.refusals.items()):
            said.append(f"{name} cannot train ({error.reason})")
        for name, key in sorted((self._cohort.name(key), key) for key in self._cohort.members):
            if key not in ready:
                said.append(f"{name} is offline")
            elif key in self._late:
                said.append(f"{name} is still at work on round {self.late[key]}")
            elif standing.sits_out(key, number):
                said.append(f"{name} sits out until round {standing.sits_out_until(key)}")
        more = [f"and {len(said) - MOST_NAMED} more"] if len(said) > MOST_NAMED else []
        return "".join(f", {each}" for each in (*said[:MOST_NAMED], *more))

    def _choose(self, number: int) -> list[Node]:
        """The members of this round: online, able to train, sampled by ``fraction-fit``."""
        before = self._before(number)

        def there() -> set[str]:
            """Nodes of which an update to this round is here: it is sent again."""
            return {*(before.keys if before else ()), *self._late.came(number)}

        least = self._settings.rounds.min_fit_clients

        def wanted() -> int:
            return max(0, least - len(there()))

        def ready() -> list[Node]:
            standing = self._standing()
            return [
                node
                for node in self._cohort.ready()
                if not standing.sits_out(node.key, number)
                and node.key not in self._late
                and node.key not in there()
            ]

        self._wait_for(
            lambda: len(ready()) >= wanted(),
            lambda: wanted() - len(ready()),
            lambda: (
                f"{len(ready()) + len(there())} of {least} nodes are online and in good standing"
                f" in round {number}"
            ),
            lambda key: self._standing().sits_out(key, number),
        )
        nodes = ready()
        count = max(wanted(), round(self._settings.rounds.fraction_fit * len(nodes)))
        if count < len(nodes):
            sampler = random.Random(f"{self._settings.seed}/{number}")
            chosen = sampler.sample(nodes, count)
            nodes = [node for node in nodes if node in chosen]
        return nodes

    def _standing(self) -> Standing:
        admission = self._settings.admission
        return Standing(
            self._state.refusals,
            admission.max_strikes,
            self._state.enrolled,
        )

    def _send(
        self, number: int, plan: RoundPlan, model: GlobalModel, chosen: list[Node]
    ) -> RoundAnswers:
        """Send a round's message: weights once, and what each node is told for itself."""
        payload = model.for_nodes()
        task = self._task(number, plan, model, payload.manifest)
        reach = {self._cohort.name(node.key): node for node in chosen}
        self._record(
            RoundStarted(
                round=number,
                nodes=tuple(reach),
                learning_rate=task.schedule.rate(task.first_step),
                proximal_mu=task.proximal_mu,
                deadline_seconds=self._settings.rounds.round_deadline,
                reasons=plan.reasons,
                boosts={name: boost for name, boost in plan.boosts.items() if name in reach},
            )
        )
        before = self._before(number)
        keys = [node.key for node in chosen]
        self._transport.begin(task, payload, keys, self.late)
        counted = model.variate_rounds
        self._tasks = {}
        for name, node in reach.items():
            normalized = self._normalization.of(name, self._cohort.members[node.key])
            own = {
                "boost": plan.boosts.get(name, 1.0),
                "variate_round": counted.get(node.key, 0),
                "statistics": normalized,
                "statistics_sha256": normalized.sha256,
            }
            self._tasks[node.key] = task.model_copy(update=own)
        self._cohort.train(
            [(node, self._transport.task(self._tasks[node.key], node.key)) for node in chosen],
            number,
        )
        return RoundAnswers(
            task,
            plan,
            payload,
            model.norm,
            {node.key: node for node in chosen},
            settings=self._settings,
            cohort=self._cohort,
            spool=self._spool,
            transport=self._transport,
            record=self._record,
            standing=self._standing,
            clock=self._clock,
            late=self._late,
            before=before,
        )

    def _ask_again(self, node: Node) -> None:
        """Send the round under way to a node that went away in it and is back."""
        answers = self._answers
        if answers is None or not answers.wait_again_for(node):
            return
        task = self._tasks[node.key]
        left = task.deadline_seconds - (self._clock() - answers.sent)
        task = task.model_copy(update={"deadline_seconds": left})
        self._cohort.train_again(node, self._transport.task(task, node.key), task.round)

    def _before(self, number: int) -> RoundAnswers | None:
        """The last try of round ``number``, if that was not the first."""
        last = self._answers
        return last if last is not None and last.task.round == number else None

    def _task(self, number: int, plan: RoundPlan, model: GlobalModel, manifest: Manifest) -> Train:
        settings, last = self._settings, self._state.last
        whole = self._normalization.statistics.of("")
        return Train(
            run=self._state.run,
            round=number,
            spec=model.spec,
            base=manifest.sha256,
            hold=model.downlink.is_held,
            difference_to=model.downlink.held,
            statistics=whole,
            statistics_sha256=whole.sha256,
            training=settings.training,
            first_step=(number - 1) * settings.training.local_steps,
            schedule=plan.schedule,
            seed=settings.seed,
            proximal_mu=plan.proximal_mu,
            fresh=last is not None and last.rolled_back_to is not None,
            evaluation=settings.evaluation,
            deadline_seconds=settings.rounds.round_deadline * (1 + settings.rounds.max_staleness),
            dataset_uri=settings.dataset_uri,
        )

    def _take_update(self, key: str, number: int, answer: Message) -> None:
        if self._answers is not None and not self._answers.closed:
            self._answers.take(key, number, answer)
        elif work := self._late.done(key, number):
            self._late.keep(work, answer)

    def _take_measured(self, key: str, answer: Message | None) -> None:
        self.evaluations.take(key, answer)

    def _lose(self, key: str, number: int, reason: str) -> None:
        if self._answers is not None and not self._answers.closed:
            self._answers.lose(key, number, reason)
        elif work := self._late.done(key, number):
            self._late.lost_sight_of(key, work)
