"""The newest run: each of its events logged and audited, and its end seen if it wrote none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from zk0d.errors import Zk0dError
from zk0d.flower.control import FINISHED, STOPPED, Control
from zk0d.record.events import (
    Event,
    ModelReady,
    NodeJoined,
    NodeMeasured,
    NodeNotMeasured,
    NodePreparing,
    NodeRefused,
    NodeSitsOut,
    RoundCommitted,
    RoundFailed,
    RunContinued,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    RunStopped,
    RunWaiting,
    UpdateRefused,
)
from zk0d.record.state import NewestRun, RunState

log = logging.getLogger("zk0d")

END_LOOK_SECONDS = 5.0
#: Lines of a run's journal that the audit log has as well.
AUDITED = {
    "run.started",
    "run.resumed",
    "run.finished",
    "run.failed",
    "run.stopped",
    "update.refused",
    "node.left_out",
    "node.sits_out",
    "checkpoint.written",
}
AUDITED_FACTS = ("run", "round", "node", "reason")


class RunWatch:
    """Looks at the newest run.

    Parameters
    ----------
    note
        Takes an entry for the audit log: its kind, and facts.
    """

    def __init__(self, newest: NewestRun, control: Control, note: Callable[..., None]) -> None:
        self._newest = newest
        self._control = control
        self._note = note
        self._next_end_look = 0.0
        newest.look()  # what was written before is no news

    def look(self) -> RunState | None:
        """The newest run; ``None`` if there is none."""
        run = self._newest.look()
        for event in self._newest.fresh:
            log_event(event)
            if event.kind in AUDITED:
                facts = {k: getattr(event, k) for k in AUDITED_FACTS if hasattr(event, k)}
                self._note(event.kind, **facts)
        if run is not None and run.goes_on:
            self._look_for_its_end(run)
        return run

    def _look_for_its_end(self, run: RunState) -> None:
        """A ServerApp that was killed wrote no last line: Flower knows that its run is over."""
        now = time.monotonic()
        if now < self._next_end_look:
            return
        self._next_end_look = now + END_LOOK_SECONDS
        try:
            known = {str(state.run_id): state for state in self._control.runs()}
        except Zk0dError:  # the next look says what is wrong
            return
        flowers = known.get(run.flower)
        if flowers is None:
            run.interrupt("the SuperLink does not know the run any more")
        elif flowers.status == FINISHED and flowers.outcome == STOPPED:
            run.stop()
        elif flowers.status == FINISHED:
            why = flowers.details or "its ServerApp ended"
            run.interrupt(f"{why.rstrip('.')} (every committed round is kept)")
        if not run.goes_on:
            log.error("%s", run.sentence(), extra={"run": run.run, "round": run.round})


def not_measured_sentence(event: NodeNotMeasured) -> str:
    """Why a node's held-out episodes have no say."""
    said = f"{event.node} has not evaluated the weights of round {event.round} ({event.reason})"
    return f"{said}: {event.message}" if event.message else said


def log_event(event: Event) -> None:
    """One line of the log for an event of a run, with its fields."""
    where = {key: getattr(event, key, None) for key in ("run", "round", "node")}
    match event:
        case RoundCommitted():
            measured = event.evaluation.loss if event.evaluation else None
            loss = f", policy loss {measured:.4f}" if measured is not None else ""
            log.info("round %d is committed%s", event.round, loss, extra=where)
        case ModelReady() if event.spec.notice:
            log.warning("%s", event.spec.notice, extra=where)
        case NodePreparing():
            log.info("%s is %s", event.node, event.message, extra=where)
        case NodeRefused():
            log.warning("%s cannot train: %s", event.node, event.message, extra=where)
        case NodeJoined():
            for notice in event.notices:
                log.warning("%s", notice, extra=where)
        case NodeMeasured():
            log.info(
                "%s has evaluated the weights of round %d, loss %.4f",
                event.node,
                event.round,
                event.loss,
                extra=where,
            )
        case NodeNotMeasured():
            log.warning("%s", not_measured_sentence(event), extra=where)
        case UpdateRefused():
            log.warning("the update of %s is refused: %s", event.node, event.message, extra=where)
        case RoundFailed() | RunFailed():
            log.error("%s: %s", event.kind.replace(".", " "), event.message, extra=where)
        case NodeSitsOut():
            log.warning(
                "%s sent too many bad updates: it sits out until round %d",
                event.node,
                event.until,
                extra=where,
            )
        case RunWaiting():
            log.warning(
                "the run waits: %s; it continues %s", event.message, event.until, extra=where
            )
        case RunStarted() | RunResumed() | RunFinished() | RunContinued() | RunStopped():
            log.info("%s", event.kind.replace(".", " "), extra=where)
