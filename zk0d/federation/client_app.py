"""The ClientApp: hands a message to the learner and its answer back. No torch, so it starts fast.

Flower restarts it for every message. What stays between messages is the learner's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from zk0d.config.machine import AUTHORITIES_KEY, DEFAULT_SOCKET, SOCKET_KEY, SOCKET_VARIABLE
from zk0d.errors import Zk0dError
from zk0d.federation.envelope import from_record, kind_of, to_record
from zk0d.federation.learner_client import LearnerClient, NodeLearner
from zk0d.federation.line import line_of
from zk0d.federation.messages import (
    NodeRejected,
    Noted,
    Query,
    Refusal,
    UpdateRejected,
)
from zk0d.federation.own_rounds import OwnRoundNotes
from zk0d.federation.resting import check_rest
from zk0d.federation.transport import NodeEnd, carrier_of
from zk0d.federation.tries import Tries
from zk0d.federation.update import UpdateError
from zk0d.learning.progress import CacheUse, told_by
from zk0d.record.reasons import Reason

app = ClientApp()
log = logging.getLogger("flwr")
_PROGRESS_LOG_SECONDS = 5.0


@app.query()  # type: ignore[untyped-decorator]
def query(message: Message, context: Context) -> Message:
    """Ask the learner whether and on what it can train the run's policy; or read a told."""
    kind = kind_of(message.content)
    if kind == UpdateRejected.__name__:
        return _note(message)
    if kind == NodeRejected.__name__:
        return _note_rejected(message)

    def ask(learner: NodeLearner) -> RecordDict:
        check_rest()
        task, _ = from_record(message.content, Query)
        line_of().check(task.run)
        return to_record(learner.query(task, _progress_log()))

    return _answer(message, context, ask)


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Let the learner take a round's steps and send its update."""

    def ask(learner: NodeLearner) -> RecordDict:
        check_rest()
        task, payload = way.task(message.content, learner.held)
        if payload is None:
            raise UpdateError("the round has no weights.")
        own = OwnRoundNotes()
        tries = Tries(task.deadline_seconds, own.hearing(_progress_log()))
        while True:
            try:
                reply, update = learner.train(task, payload, tries.take)
                own.note(task.run, reply)
                # The update comes from the learner while it is sent.
                return way.answer(reply, update)
            except Zk0dError as error:
                if error.reason == Reason.BASE_LOST and payload.manifest.kind != "weights":
                    log.warning("zk0d: %s The whole weights are fetched.", error.message)
                    payload = way.whole()
                else:
                    task = tries.again(task, learner, error)
                    payload = way.again(learner.held)

    with contextlib.closing(_way(context)) as way:
        return _answer(message, context, ask)


@app.evaluate()  # type: ignore[untyped-decorator]
def evaluate(message: Message, context: Context) -> Message:
    """Let the learner evaluate weights on its owner's held-out episodes."""

    def ask(learner: NodeLearner) -> RecordDict:
        check_rest()
        task, payload = way.measure(message.content)
        if payload is None:
            raise UpdateError("there are no weights to evaluate.")
        return to_record(learner.measure(task, payload, _progress_log()))

    with contextlib.closing(_way(context)) as way:
        return _answer(message, context, ask)


def _way(context: Context) -> NodeEnd:
    """The node's end of the way to the coordinator's files."""
    authorities = str(context.node_config.get(AUTHORITIES_KEY, ""))
    return NodeEnd(partial(carrier_of, authorities=authorities), line_of())


def _note(message: Message) -> Message:
    """Say in this node's log what the coordinator has against its updates."""
    told, _ = from_record(message.content, UpdateRejected)
    sits_out = (
        f"; this node sits out until round {told.sits_out_until}" if told.sits_out_until else ""
    )
    log.error(
        "zk0d: the coordinator refused this node's update of round %d (%s, strike %d): %s%s",
        told.round,
        told.reason,
        told.strikes,
        told.message,
        sits_out,
    )
    return Message(to_record(Noted()), reply_to=message)


def _note_rejected(message: Message) -> Message:
    """Say in this node's log why the coordinator leaves this node out of a run."""
    told, _ = from_record(message.content, NodeRejected)
    log.error(
        "zk0d: the coordinator leaves this node out of run %s (%s): %s",
        told.run,
        told.reason,
        told.message,
    )
    return Message(to_record(Noted()), reply_to=message)


def _answer(
    message: Message, context: Context, ask: Callable[[NodeLearner], RecordDict]
) -> Message:
    """The learner's answer, or a :class:`Refusal` with its reason: the round lacks this node."""
    try:
        with _reach.get()(context) as learner:
            record = ask(learner)
    except Zk0dError as error:
        level = logging.INFO if error.reason == Reason.PREPARING else logging.ERROR
        log.log(level, "zk0d: %s", error.message)
        record = to_record(Refusal(reason=error.reason, message=error.message))
    return Message(record, reply_to=message)


def _over_socket(context: Context) -> AbstractContextManager[NodeLearner]:
    configured = context.node_config.get(SOCKET_KEY) or os.environ.get(SOCKET_VARIABLE)
    return LearnerClient(str(configured or DEFAULT_SOCKET), streams=True)


Reach = Callable[[Context], AbstractContextManager[NodeLearner]]
#: How the app reaches its learner.
_reach: ContextVar[Reach] = ContextVar("reach", default=_over_socket)


@contextmanager
def reached_by(reach: Reach) -> Iterator[None]:
    """Another way to the learner: a simulation has many in its own process."""
    token = _reach.set(reach)
    try:
        yield
    finally:
        _reach.reset(token)


def _progress_log() -> Any:
    last = float("-inf")

    def progress(event: dict[str, Any]) -> None:
        nonlocal last
        check_rest(under_way=True)  # an event comes every two seconds at least
        told = told_by(event)
        if isinstance(told, CacheUse):
            log.info("zk0d: %s", told)
        elif told is not None and time.monotonic() - last > _PROGRESS_LOG_SECONDS:
            last = time.monotonic()
            log.info("zk0d: %s", told)

    return progress
