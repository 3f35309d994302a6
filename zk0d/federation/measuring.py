"""Nodes evaluate weights on their own held-out episodes, outside any round.

What a node finds is written at once, so that a run which is resumed asks only the others. A node
that is away, busy for too long or refuses is left out with a line in the journal: no run waits for
it, and none fails for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from flwr.app import Message

from zk0d.config.run import RunSettings
from zk0d.daemon.looks import Looks
from zk0d.errors import Zk0dError
from zk0d.federation.admission import Standing, check_measured
from zk0d.federation.cohort import OFFLINE, PRESENCE_INTERVAL, Cohort, content
from zk0d.federation.envelope import from_record
from zk0d.federation.messages import Measure, MeasureReply
from zk0d.federation.model import GlobalModel
from zk0d.federation.nodes import Node
from zk0d.federation.normalization import Normalization
from zk0d.federation.transport import Late, Transport
from zk0d.record.events import AnyEvent, NodeMeasured, NodeNotMeasured
from zk0d.record.reasons import Reason
from zk0d.record.state import RunState

#: A learner that is busy or restarts is asked again after so many seconds, until the deadline.
ASK_AGAIN_SECONDS = 10.0
#: After a restart of the ServerApp nodes have so long to say that they are there.
MEET_SECONDS = 60.0
#: Reasons for which it is: the owner's other wishes last longer than a run's end.
_SOON = (Reason.LEARNER_BUSY, Reason.LEARNER_GONE, Reason.LEARNER_SILENT, Reason.GPU_FAILED)


class NodeEvaluations:
    """A run's evaluations by its nodes.

    Parameters
    ----------
    state
        What the run did so far; whoever takes ``record``'s events keeps it up to date.
    serve
        Takes the answers that are there; whether there was any.
    late
        Nodes that are still at work on a round, which comes first.
    standing
        The nodes' strikes: one that sits out has no say.
    """

    def __init__(
        self,
        settings: RunSettings,
        state: RunState,
        cohort: Cohort,
        transport: Transport,
        normalization: Normalization,
        record: Callable[[AnyEvent], object],
        *,
        serve: Callable[[], bool],
        late: Callable[[], Late],
        standing: Callable[[], Standing],
        poll_interval: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._settings = settings
        self._state = state
        self._cohort = cohort
        self._transport = transport
        self._normalization = normalization
        self._record = record
        self._serve = serve
        self._late = late
        self._standing = standing
        self._poll_interval = poll_interval
        self._clock = clock
        self._sleep = sleep
        self._open: Measuring | None = None

    def take(self, key: str, answer: Message | None) -> None:
        """A node's answer; ``None`` if it went away."""
        if self._open is not None:
            self._open.take(key, answer)

    def measure(self, of: int, model: GlobalModel, only: Collection[str] | None = None) -> None:
        """Have nodes evaluate the weights of round ``of``, which ``model`` has.

        What each finds, or why it does not, is in the run's record then.

        Parameters
        ----------
        only
            Keys of the nodes to ask; by default all that hold out episodes and have not answered
            yet.
        """
        holding_out = self._state.holding_out
        if only is None:
            only = holding_out.keys() - self._state.measured.get(of, {}).keys()
        wanted = {key: name for key, name in holding_out.items() if key in only}
        if not wanted:
            return
        self._meet(wanted)
        ready = {node.key: node for node in self._cohort.ready()}
        standing, late, nodes = self._standing(), self._late(), {}
        for key, name in wanted.items():
            if standing.sits_out(key, self._state.round + 1):
                self._record(not_measured(of, name, key, Reason.SITS_OUT))
            elif key in late:
                self._record(not_measured(of, name, key, Reason.LATE))
            elif key in ready:
                nodes[key] = ready[key]
            else:
                self._record(not_measured(of, name, key, OFFLINE))
        if nodes:
            self._ask(of, model, nodes)

    def _meet(self, wanted: Collection[str]) -> None:
        """Let nodes come that have not said yet whether they can train, as after a restart."""
        until = self._clock() + MEET_SECONDS
        while not all(key in self._cohort.members for key in wanted):
            self._serve()
            if (left := until - self._clock()) <= 0:
                return
            self._sleep(min(self._poll_interval, left))

    def _ask(self, of: int, model: GlobalModel, nodes: Mapping[str, Node]) -> None:
        payload, seconds = model.to_measure(), self._settings.rounds.round_deadline
        whole = self._normalization.statistics.of("")
        task = Measure(
            run=self._state.run,
            round=self._state.round + 1,
            of=of,
            spec=model.spec,
            base=payload.manifest.sha256,
            statistics=whole,
            statistics_sha256=whole.sha256,
            seed=self._settings.seed,
            evaluation=self._settings.evaluation,
            image_augmentation=self._settings.training.image_augmentation,
            deadline_seconds=seconds,
            dataset_uri=self._settings.dataset_uri,
        )
        self._transport.begin(task, payload, list(nodes), self._late())
        until = self._clock() + seconds
        asked = self._open = Measuring(task, nodes, self._cohort, self._record, self._clock, until)
        self._send(task, nodes.values(), asked.left)
        looks = Looks(self._poll_interval, PRESENCE_INTERVAL, self._clock)
        while not asked.is_over and (left := asked.left) > 0:
            if again := asked.due_again():
                self._send(task, again, left)
            if self._serve():
                looks.news()
            else:
                self._sleep(min(looks.wait, left))
        asked.close()
        self._open = None
        self._transport.close(self._late())
        self._transport.clear(self._late())

    def _send(self, task: Measure, nodes: Collection[Node], left: float) -> None:
        records = []
        for node in nodes:
            name, member = self._cohort.name(node.key), self._cohort.members[node.key]
            normalized = self._normalization.of(name, member)
            own = {
                "statistics": normalized,
                "statistics_sha256": normalized.sha256,
                "deadline_seconds": left,
            }
            record = self._transport.task(task.model_copy(update=own), node.key)
            records.append((node, record))
        self._cohort.measure(records)


class Measuring:
    """What nodes find of the same weights.

    Parameters
    ----------
    task
        What they were asked.
    nodes
        Those that were asked, by key.
    record
        Takes each event of the run.
    until
        When nobody is waited for any more, by ``clock``.
    """

    def __init__(
        self,
        task: Measure,
        nodes: Mapping[str, Node],
        cohort: Cohort,
        record: Callable[[AnyEvent], object],
        clock: Callable[[], float],
        until: float,
    ) -> None:
        self._task = task
        self._open = dict(nodes)
        self._again: dict[str, float] = {}  #: when a node is asked again, by key
        self._said: dict[str, Zk0dError] = {}  #: why it was not done yet, by key
        self._cohort = cohort
        self._record = record
        self._clock = clock
        self._until = until

    @property
    def is_over(self) -> bool:
        """Whether all have answered, or were given up."""
        return not self._open

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self._until - self._clock()

    def due_again(self) -> list[Node]:
        """The nodes that are to be asked once more now."""
        due = [key for key, at in self._again.items() if self._clock() >= at]
        for key in due:
            del self._again[key]
        return [self._open[key] for key in due if key in self._open]

    def take(self, key: str, answer: Message | None) -> None:
        """A node's answer; ``None`` if it went away."""
        if key not in self._open:
            return
        if answer is None:
            self._leave_out(key, OFFLINE)
            return
        try:
            reply, _ = from_record(content(answer), MeasureReply)
            check_measured(self._task, reply)
        except Zk0dError as error:
            if Reason.of(error.reason) in _SOON:
                self._said[key] = error
                self._again[key] = self._clock() + ASK_AGAIN_SECONDS
            else:
                self._leave_out(key, error.reason, error.message)
            return
        del self._open[key]
        self._record(
            NodeMeasured(
                **reply.held_out.model_dump(),
                round=self._task.of,
                node=self._cohort.name(key),
                key=key,
                seconds=reply.seconds,
            )
        )

    def close(self) -> None:
        """Wait no longer."""
        self._cohort.give_up_measuring()
        for key in list(self._open):
            said = self._said.get(key)
            self._leave_out(key, said.reason if said else Reason.DEADLINE)

    def _leave_out(self, key: str, reason: str, message: str = "") -> None:
        self._open.pop(key, None)
        self._record(not_measured(self._task.of, self._cohort.name(key), key, reason, message))


def not_measured(
    number: int, name: str, key: str, reason: str, message: str = ""
) -> NodeNotMeasured:
    """The line for a node that holds out episodes and has not evaluated these weights."""
    return NodeNotMeasured(round=number, node=name, key=key, reason=reason, message=message)
