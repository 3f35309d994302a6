"""The nodes of one run: who can train, what they were asked, who is gone."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from zk0d.errors import DataError, Zk0dError
from zk0d.federation.envelope import from_record, to_record
from zk0d.federation.messages import NodeRejected, Query, QueryReply, UpdateRejected
from zk0d.federation.nodes import Node, nodes_of
from zk0d.learning.robot import check_robot, merge_robots
from zk0d.learning.spec import RobotDescription
from zk0d.record.events import AnyEvent, NodeJoined, NodeLeftOut, NodePreparing, NodeRefused
from zk0d.record.reasons import Effect, Reason

log = logging.getLogger("flwr")

#: Seconds between two looks at who is online.
PRESENCE_INTERVAL = 2.0
#: Seconds until a node that refused in passing is asked again; doubles up to the second number.
ASK_AGAIN = (2.0, 60.0)
#: A query is answered in seconds. One that an online node leaves unanswered for so long may have
#: been lost on its way, and is sent again; the next after twice as long, and so on. Any answer
#: counts.
UNANSWERED_SECONDS = 300.0
#: Seconds between two records of how far a node is that prepares: it may do so for hours.
PREPARING_INTERVAL = 120.0
#: Why no answer will come from a node that the SuperLink does not see any more.
OFFLINE = "offline"
#: What a node is told needs no answer that anybody waits for.
_TOLD = "told"


@dataclass
class _Pending:
    """A message that waits for its answer."""

    node: Node
    kind: str
    sent: float
    round: int = 0  #: that a node is asked to train
    lost: bool = False  #: the node went offline; it may have slept, and answer yet
    overdue: bool = False  #: the node is asked again, and may answer this one yet


@dataclass
class _Delay:
    """When a node that refused in passing is asked again."""

    until: float
    seconds: float
    error: Zk0dError


@dataclass
class _Preparing:
    """How far a node was that decodes its recordings, when that was written last."""

    message: str
    at: float


@dataclass
class _LeftOut:
    """A node that refused for a reason that stays, until it restarts."""

    error: Zk0dError
    activated: float  #: when its session began


class Cohort:
    """The nodes of a run and the messages that are on their way.

    Parameters
    ----------
    grid
        Flower's way to the nodes.
    record
        Takes each event of the run.
    query
        What every node is asked once.
    on_update, on_lost
        Take a node's answer to a round, and the news that it is not to be waited for; by key and
        round. An answer may come after such news.
    on_back
        Takes a node that was lost in the round under way, and can train again.
    on_measured
        Takes a node's answer to :meth:`measure` by key; ``None`` if it will not come.
    clock
        Seconds; replaced in tests.
    check
        Refuses, by a ``DataError``, what a node of this run cannot do without.
    names
        What an interrupted run called its nodes, by key.
    robots
        Those that take part before any node is asked.
    mixed_units
        Whether robots may differ in their scales.
    """

    def __init__(
        self,
        grid: Grid,
        record: Callable[[AnyEvent], object],
        query: Query,
        on_update: Callable[[str, int, Message], None],
        on_lost: Callable[[str, int, str], None],
        on_back: Callable[[Node], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        on_measured: Callable[[str, Message | None], None] = lambda key, answer: None,
        check: Callable[[QueryReply], None] = lambda reply: None,
        names: Mapping[str, str] | None = None,
        robots: Sequence[RobotDescription] = (),
        mixed_units: bool = False,
    ) -> None:
        self._grid = grid
        self._record = record
        self._query = query
        self._on_update = on_update
        self._on_lost = on_lost
        self._on_back = on_back
        self._on_measured = on_measured
        self._clock = clock
        self._check = check
        self._former_names = dict(names or {})
        self._robots = list(robots)
        self._mixed_units = mixed_units
        self._pending: dict[str, _Pending] = {}
        self._names: dict[str, str] = {}
        self._enrolled: dict[str, str] = {}  #: the roster's names, by key
        self._left_out: dict[str, _LeftOut] = {}  # by key
        self._delays: dict[str, _Delay] = {}
        self._preparing: dict[str, _Preparing] = {}  # by key
        self._lost: set[str] = set()  #: keys of those that went away in the round under way
        self._last_look = self._last_presence = float("-inf")
        self.members: dict[str, QueryReply] = {}  #: nodes that can train, by key

    @property
    def preparing(self) -> dict[str, str]:
        """What the nodes do, by name, that have not said whether they can train."""
        asked = [p.node for p in self._pending.values() if p.kind == MessageType.QUERY]
        doing = {
            self._names.get(node.key, node.name): "getting ready"
            for node in asked
            if node.key not in self._delays  # what it said last says more
        }
        doing |= {self.name(key): each.message for key, each in self._preparing.items()}
        return dict(sorted(doing.items()))

    @property
    def waits(self) -> bool:
        """Whether an answer is still to come."""
        waits = any(not pending.lost for pending in self._pending.values())
        return waits or bool(self._preparing)

    def name(self, key: str) -> str:
        """What a node is called in this run; no two the same."""
        return self._names.get(key, key[:12])

    def named[V](self, by_key: dict[str, V]) -> dict[str, V]:
        """The same, by name."""
        return {self.name(key): value for key, value in by_key.items()}

    @property
    def refusals(self) -> dict[str, Zk0dError]:
        """Why nodes cannot train: now, or in this run at all; by name."""
        passing = {
            key: delay.error for key, delay in self._delays.items() if key not in self._preparing
        }
        lasting = {key: each.error for key, each in self._left_out.items()}
        return self.named({**passing, **lasting})

    def left(self) -> list[str]:
        """Keys of the nodes that are online and may yet have a part in this run."""
        return [
            key
            for key, node in nodes_of(self._grid).items()
            if node.online and not self._is_left_out(node)
        ]

    def _is_left_out(self, node: Node) -> bool:
        """Whether it is not asked: it refused for a reason that stays, and is what it was."""
        left_out = self._left_out.get(node.key)
        return left_out is not None and left_out.activated == node.activated

    def ready(self) -> list[Node]:
        """The nodes that can train and are online, by name."""
        nodes = nodes_of(self._grid)
        there = [nodes[key] for key in self.members if key in nodes and nodes[key].online]
        return sorted(there, key=lambda node: self.name(node.key))

    def query_newcomers(self) -> None:
        """Ask every node that was not asked in this run; a late one joins the next round.

        So is a node asked that went away in the round under way: is its learner there, too?
        """
        if self._clock() - self._last_look < PRESENCE_INTERVAL:
            return
        self._last_look = self._clock()
        self._look_for_overdue()
        asked = {
            pending.node.key
            for pending in self._pending.values()
            if not pending.lost and not pending.overdue
        }
        nodes = nodes_of(self._grid)
        there = {key for key, node in nodes.items() if node.online}
        for key in self._preparing.keys() - there:
            del self._preparing[key], self._delays[key]
        newcomers = [
            node
            for key, node in sorted(nodes.items())
            if node.online
            and (key not in self.members or key in self._lost)
            and key not in asked
            and not self._is_left_out(node)
            and (key not in self._delays or self._clock() >= self._delays[key].until)
        ]
        if newcomers:
            record = to_record(self._query)
            self._send([(node, record) for node in newcomers], MessageType.QUERY, MessageType.QUERY)

    def _look_for_overdue(self) -> None:
        """Have nodes asked again that left a query unanswered for long."""
        queries = [each for each in self._pending.values() if each.kind == MessageType.QUERY]
        times = Counter(each.node.key for each in queries if each.overdue)
        for each in queries:
            seconds = UNANSWERED_SECONDS * 2 ** times[each.node.key]
            if not each.overdue and self._clock() - each.sent > seconds:
                each.overdue = True
                log.warning(
                    "node %s has not said for %.0f s whether it can train; it is asked again",
                    self.name(each.node.key),
                    seconds,
                )

    def train(self, records: list[tuple[Node, RecordDict]], number: int) -> None:
        """Send a round to its nodes."""
        self._lost.clear()
        self._send(records, MessageType.TRAIN, MessageType.TRAIN, number)

    def train_again(self, node: Node, record: RecordDict, number: int) -> None:
        """Send the round under way to a node that is back."""
        self._send([(node, record)], MessageType.TRAIN, MessageType.TRAIN, number)

    def measure(self, records: list[tuple[Node, RecordDict]]) -> None:
        """Ask nodes to evaluate weights."""
        self._send(records, MessageType.EVALUATE, MessageType.EVALUATE)

    def give_up_measuring(self) -> None:
        """Wait no longer for what nodes were asked to evaluate."""
        for message_id, pending in list(self._pending.items()):
            if pending.kind == MessageType.EVALUATE:
                del self._pending[message_id]

    def notify(self, node: Node, told: UpdateRejected | NodeRejected) -> None:
        """Tell a node something; its answer is taken and forgotten."""
        self._send([(node, to_record(told))], MessageType.QUERY, _TOLD)

    def _send(
        self, records: list[tuple[Node, RecordDict]], kind: str, waits_for: str, number: int = 0
    ) -> None:
        messages = [
            Message(record, dst_node_id=node.id, message_type=kind) for node, record in records
        ]
        for (node, _), message_id in zip(records, self._grid.push_messages(messages), strict=True):
            self._names.setdefault(node.key, node.name)
            self._enrolled[node.key] = node.enrolled
            if message_id:
                self._pending[message_id] = _Pending(node, waits_for, self._clock(), number)

    def collect(self) -> bool:
        """Take the answers that are there; whether there was any.

        Flower is asked once for all messages, and again while it has more: it gives some at a time
        (:mod:`zk0d.flower.replies`), so that few are in memory.
        """
        any_came = False
        while self._pull(self._pending):
            any_came = True
        self._give_up_lost()
        return any_came

    def _pull(self, message_ids: Iterable[str]) -> bool:
        """Take answers to some of these messages; whether there was any."""
        asked = list(message_ids)
        answers = list(self._grid.pull_messages(asked)) if asked else []
        came = bool(answers)
        while answers:
            answer = answers.pop(0)  # and out of memory
            # Losing a node may have dropped it meanwhile.
            pending = self._pending.pop(answer.metadata.reply_to_message_id, None)
            if pending is None or pending.kind == _TOLD:
                continue
            if pending.kind == MessageType.QUERY:
                self._drop_queries(pending.node.key)
                self._take_query(pending.node, answer)
            elif answer.has_error() and _is_lost(pending.node, nodes_of(self._grid)):
                self._lose(pending)  # Flower says so before our own look does
            elif pending.kind == MessageType.EVALUATE:
                self._on_measured(pending.node.key, answer)
            else:
                self._on_update(pending.node.key, pending.round, answer)
        return came

    def _drop_queries(self, key: str) -> None:
        """A node that has answered need not answer once more."""
        for message_id, pending in list(self._pending.items()):
            if pending.kind == MessageType.QUERY and pending.node.key == key:
                del self._pending[message_id]

    def give_up(self, key: str, number: int) -> None:
        """Wait no longer for a node's answer to round ``number``."""
        for message_id, pending in list(self._pending.items()):
            asked = pending.kind == MessageType.TRAIN and pending.round == number
            if asked and pending.node.key == key:
                del self._pending[message_id]

    def leave_out(self, key: str, error: Zk0dError) -> None:
        """A node that refuses for a reason that stays is not asked again until it restarts."""
        self._record(NodeLeftOut(node=self.name(key), reason=error.reason))
        node = nodes_of(self._grid).get(key)
        self._left_out[key] = _LeftOut(error, node.activated if node else 0.0)
        self.members.pop(key, None)
        self._lost.discard(key)

    def requery_unavailable(self, refused: dict[str, str]) -> None:
        """Ask nodes whether they can train, before they get a round again.

        Only those, by key, whose reason to refuse the last one was a learner that takes no task: a
        round that fails at once would be sent again before any learner has started.
        """
        for key, reason in refused.items():
            if Reason.of(reason).effect is Effect.AWAY:
                self.members.pop(key, None)

    def _take_query(self, node: Node, answer: Message) -> None:
        try:
            reply, _ = from_record(content(answer), QueryReply)
            notices = self._compare(node, reply)
        except Zk0dError as error:
            last = self._delays.get(node.key)
            prepares = Reason.of(error.reason) is Reason.PREPARING
            if prepares:
                self._take_preparing(node, error.message)
            else:
                self._preparing.pop(node.key, None)
            said = (last.error.reason, last.error.message) if last else None
            if not prepares and said != (
                error.reason,
                error.message,
            ):  # a node may say the same for weeks
                self._record(
                    NodeRefused(
                        node=node.name, key=node.key, reason=error.reason, message=error.message
                    )
                )
            if Reason.of(error.reason).passes:
                seconds = min(2 * last.seconds, ASK_AGAIN[1]) if last else ASK_AGAIN[0]
                self._delays[node.key] = _Delay(self._clock() + seconds, seconds, error)
            else:
                self.leave_out(node.key, error)
            return
        self._delays.pop(node.key, None)
        self._preparing.pop(node.key, None)
        self._left_out.pop(node.key, None)
        self._replace_former_key(node, reply.name)
        self.members[node.key] = reply
        others = {name for key, name in self._names.items() if key != node.key}
        name = self._former_names.get(node.key, reply.name)
        if name in others:
            name = f"{reply.name}-{node.key[:6]}"
        self._names[node.key] = name
        self._record(
            NodeJoined(
                node=name,
                key=node.key,
                enrolled=node.enrolled,
                frames=reply.usable_frames,
                episodes=reply.recordings.episodes,
                held_out=reply.held_out,
                shares_statistics=reply.statistics is not None,
                version=reply.version,
                robot=reply.robot,
                notices=(*(f"node {name}: {notice}" for notice in reply.notices), *notices),
            )
        )
        if node.key in self._lost:
            self._lost.discard(node.key)
            self._on_back(node)

    def _replace_former_key(self, node: Node, name: str) -> None:
        """Give the name of a node that changed its key to the new one."""
        if not node.enrolled:
            return
        for key, enrolled in self._enrolled.items():
            if key != node.key and enrolled == node.enrolled:
                self.members.pop(key, None)
                if self._names.get(key) == name:
                    self._names[key] = f"{name}-{key[:6]}"

    def _take_preparing(self, node: Node, message: str) -> None:
        """A node decodes its recordings: say how far it is, but not each time that it is asked."""
        last, now = self._preparing.get(node.key), self._clock()
        if last is None or now - last.at >= PREPARING_INTERVAL:
            self._preparing[node.key] = _Preparing(message, now)
            self._record(NodePreparing(node=node.name, key=node.key, message=message))

    def _compare(self, node: Node, reply: QueryReply) -> list[str]:
        """Take a node's robot into the cohort, or refuse and tell it; what is unknown of it."""
        cohort = merge_robots(self._robots)
        try:
            self._check(reply)
            notices = check_robot(
                reply.robot,
                cohort,
                where=f"node {reply.name}",
                whose="the run's cohort",
                mixed_units=self._mixed_units,
            )
        except DataError as error:
            told = NodeRejected(run=self._query.run, reason=error.reason, message=error.message)
            self.notify(node, told)
            raise
        if reply.robot is not None:
            self._robots.append(reply.robot)
        return notices

    def _give_up_lost(self) -> None:
        """Stop waiting for nodes that, by the SuperLink's view, may not answer any more.

        The SuperLink cannot tell a machine that slept, and goes on where it was, from one that
        restarted. So a round's message stays open until somebody gives it up.
        """
        if not self._pending or self._clock() - self._last_presence < PRESENCE_INTERVAL:
            return
        self._last_presence = self._clock()
        nodes = nodes_of(self._grid)
        lost = [
            each
            for each, pending in self._pending.items()
            if not pending.lost and _is_lost(pending.node, nodes)
        ]
        # They may have answered and left since the look for their answers.
        while self._pull(each for each in lost if each in self._pending):
            pass
        for message_id in lost:
            pending = self._pending.get(message_id)
            if pending is None:
                continue
            if pending.kind == MessageType.TRAIN:
                self._lose(pending)
                continue
            del self._pending[message_id]
            if pending.kind == MessageType.EVALUATE:
                self._lose(pending)

    def _lose(self, pending: _Pending) -> None:
        """Say once that nobody waits for this answer."""
        if pending.kind == MessageType.EVALUATE:
            self._on_measured(pending.node.key, None)
        elif not pending.lost:
            pending.lost = True
            self._lost.add(pending.node.key)
            self._on_lost(pending.node.key, pending.round, OFFLINE)


def _is_lost(node: Node, nodes: Mapping[str, Node]) -> bool:
    """Whether a node, by the SuperLink's view, may never answer a message that it was sent."""
    now = nodes.get(node.key)
    if now is None or not now.online or now.id != node.id:
        return True
    # Another session has never seen the message, unless the machine only slept.
    return now.activated != node.activated


def content(answer: Message) -> RecordDict:
    """An answer's content; raises what Flower reports in its place."""
    if answer.has_error():
        reason = (answer.error.reason or "").splitlines()
        raise Zk0dError(
            f"Flower reports error {answer.error.code}: {reason[0] if reason else 'no reason'}",
            reason="flower_error",
        )
    return answer.content
