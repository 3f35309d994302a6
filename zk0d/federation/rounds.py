"""Rounds with a run's nodes: wait for enough of them, send the model, collect their updates.

A round's updates wait on disk until the last is in or its deadline has passed, and count if enough
came.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Collection, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings
from zk0d.errors import ExitCode, Zk0dError
from zk0d.federation.admission import Standing
from zk0d.federation.answers import RoundAnswers
from zk0d.federation.cohort import Cohort
from zk0d.federation.messages import Query, QueryReply, Train
from zk0d.federation.model import GlobalModel
from zk0d.federation.nodes import Node
from zk0d.federation.normalization import Normalization
from zk0d.federation.schedule import RoundPlan
from zk0d.federation.spool import Spool
from zk0d.federation.transport import Transport
from zk0d.federation.update import Manifest
from zk0d.learning.spec import PolicySpec
from zk0d.record.events import AnyEvent, RoundFailed, RoundStarted
from zk0d.record.reasons import Reason
from zk0d.record.state import RunState

#: Once enough nodes can train, seconds that the others still have to answer the first query.
QUERY_GRACE = 60.0
#: A deadline that follows the nodes' pace is never shorter.
SHORTEST_DEADLINE = 10.0


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
        *,
        closed: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
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
        query = Query(run=state.run, spec=spec, dataset_uri=settings.dataset_uri)
        self._cohort = Cohort(
            grid,
            record,
            query,
            self._take_update,
            self._lose,
            clock,
            check=normalization.check,
            names=state.names,
            robots=state.robots,
            mixed_units=settings.admission.allow_mixed_units,
        )
        self._answers: RoundAnswers | None = None

    def gather(self) -> dict[str, QueryReply]:
        """Wait for enough nodes that can train; what they answered, by name and in its order.

        Raises
        ------
        RunFailedError
            If there are too few after the run's ``node-wait``.
        """
        wanted, members = self._settings.rounds.min_fit_clients, self._cohort.members
        enough_since: list[float] = []

        def ready() -> bool:
            if len(members) < wanted:
                return False
            enough_since.append(self._clock())
            return not self._cohort.waits or self._clock() - enough_since[0] > QUERY_GRACE

        self._wait_for(ready, lambda: f"{len(members)} of {wanted} nodes can train")
        return dict(sorted(self._cohort.named(members).items()))

    def train(
        self, number: int, plan: RoundPlan, model: GlobalModel
    ) -> tuple[RoundAnswers, dict[str, float]]:
        """One round's answers, and the seconds of its phases.

        Raises
        ------
        RunFailedError
            If too few nodes are there after the run's ``node-wait``.
        TryAgainError
            If the disk is full.
        """
        chosen = self._choose(number)
        began = self._clock()  # a wait for nodes is nothing that their deadline has to hold
        answers = self._answers = self._send(number, plan, model, chosen)
        deadline = began + answers.task.deadline_seconds
        while answers.open and self._clock() < deadline:
            self._cohort.query_newcomers()
            if not self._cohort.collect():
                self._sleep(self._poll_interval)
        answers.close()
        return answers, {"send": answers.sent - began, "collect": self._clock() - answers.sent}

    def is_enough(self, answers: RoundAnswers) -> bool:
        """Whether a round counts; one that does not has failed, and its updates are gone."""
        wanted = self._settings.rounds.min_fit_clients
        if len(answers.accepted) >= wanted:
            return True
        self._spool.clear()
        self._record(
            RoundFailed(
                round=answers.task.round,
                message=f"{len(answers.accepted)} of {wanted} needed updates came.",
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

    def _wait_for(
        self,
        ready: Callable[[], bool],
        state: Callable[[], str],
        sits_out: Callable[[str], bool] = lambda key: False,
    ) -> None:
        """Serve queries until ``ready``, or fail after the run's ``node-wait``.

        Where no other node can come, fail as soon as too few are left that do not sit out.
        """
        deadline = self._clock() + self._settings.rounds.node_wait
        while True:
            self._cohort.query_newcomers()
            self._cohort.collect()
            if ready():
                return
            refusals = sorted(self._cohort.refusals.items())
            left = sum(not sits_out(key) for key in self._cohort.left()) if self._closed else None
            gone = left is not None and left < self._settings.rounds.min_fit_clients
            if gone or self._clock() > deadline:
                waited = f" after waiting {self._settings.rounds.node_wait:.0f} s"
                said = state() + (", and no other can come" if gone else waited)
                reasons = [error.reason for _, error in refusals]
                raise RunFailedError(
                    said + self._why(refusals), reason="too_few_nodes", causes=reasons
                )
            self._sleep(self._poll_interval)

    def _why(self, refusals: Sequence[tuple[str, Zk0dError]]) -> str:
        """The end of a sentence: why too few nodes are left, and what to do."""
        if not self._closed:
            refused = "".join(f", {name} refused ({error.reason})" for name, error in refusals)
            return f"{refused}; start more nodes, or lower min-fit-clients."
        # Contributors with the same recordings say the same.
        causes = dict.fromkeys(error.message.rstrip(".") for _, error in refusals)
        return f": {'; '.join(causes)}." if causes else "; lower min-fit-clients."

    def _choose(self, number: int) -> list[Node]:
        """The members of this round: online, able to train, sampled by ``fraction-fit``."""
        wanted = self._settings.rounds.min_fit_clients

        def ready() -> list[Node]:
            standing = self._standing()
            return [n for n in self._cohort.ready() if not standing.sits_out(n.key, number)]

        self._wait_for(
            lambda: len(ready()) >= wanted,
            lambda: (
                f"{len(ready())} of {wanted} nodes are online and in good standing in round"
                f" {number}"
            ),
            lambda key: self._standing().sits_out(key, number),
        )
        nodes = ready()
        count = max(wanted, round(self._settings.rounds.fraction_fit * len(nodes)))
        if count < len(nodes):
            sampler = random.Random(f"{self._settings.seed}/{number}")
            chosen = sampler.sample(nodes, count)
            nodes = [node for node in nodes if node in chosen]
        return nodes

    def _standing(self) -> Standing:
        admission = self._settings.admission
        return Standing(self._state.refusals, admission.max_strikes, admission.strike_cooldown)

    def _send(
        self, number: int, plan: RoundPlan, model: GlobalModel, chosen: list[Node]
    ) -> RoundAnswers:
        """Send a round's message: weights once, and what each node is told for itself."""
        payload = model.payload(self._settings.aggregation.downlink_codec)
        task = self._task(number, plan, model, payload.manifest)
        reach = {self._cohort.name(node.key): node for node in chosen}
        self._record(
            RoundStarted(
                round=number,
                nodes=tuple(reach),
                learning_rate=task.schedule.rate(task.first_step),
                proximal_mu=task.proximal_mu,
                deadline_seconds=task.deadline_seconds,
                reasons=plan.reasons,
                boosts={name: boost for name, boost in plan.boosts.items() if name in reach},
            )
        )
        self._transport.begin(task, payload, [node.key for node in chosen])
        counted = model.variate_rounds
        records = []
        for name, node in reach.items():
            normalized = self._normalization.of(name, self._cohort.members[node.key])
            own = {
                "boost": plan.boosts.get(name, 1.0),
                "variate_round": counted.get(node.key, 0),
                "statistics": normalized,
                "statistics_sha256": normalized.sha256,
            }
            message = self._transport.task(task.model_copy(update=own), node.key)
            records.append((node, message))
        self._cohort.train(records)
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
        )

    def _task(self, number: int, plan: RoundPlan, model: GlobalModel, manifest: Manifest) -> Train:
        settings, last = self._settings, self._state.last
        whole = self._normalization.statistics.of("")
        return Train(
            run=self._state.run,
            round=number,
            spec=model.spec,
            base=manifest.sha256,
            statistics=whole,
            statistics_sha256=whole.sha256,
            training=settings.training,
            first_step=(number - 1) * settings.training.local_steps,
            schedule=plan.schedule,
            seed=settings.seed,
            proximal_mu=plan.proximal_mu,
            fresh=last is not None and last.rolled_back_to is not None,
            evaluation=settings.evaluation,
            deadline_seconds=self._deadline(),
            dataset_uri=settings.dataset_uri,
        )

    def _deadline(self) -> float:
        """Seconds that this round may take."""
        rounds, last = self._settings.rounds, self._state.last
        paces = [node.answer_seconds for node in last.nodes] if last else []
        if not rounds.round_deadline_factor or not paces:
            return rounds.round_deadline
        pace = rounds.round_deadline_factor * float(statistics.median(paces))
        return min(rounds.round_deadline, max(pace, SHORTEST_DEADLINE))

    def _take_update(self, key: str, answer: Message) -> None:
        if self._answers is not None:
            self._answers.take(key, answer)

    def _lose(self, key: str, reason: str) -> None:
        if self._answers is not None:
            self._answers.lose(key, reason)
