"""What a checkpoint tells of its run: made from its journal, sent to the evaluator, no secrets."""

from __future__ import annotations

import time
from collections import Counter
from importlib.metadata import version
from statistics import fmean

from pydantic import Field, NonNegativeInt

from zk0d.config.base import Settings
from zk0d.config.run import RunSettings, stored_settings
from zk0d.record.state import RunState


class Point(Settings):
    """One evaluation. Losses by dataset; ``None`` was not measured."""

    round: NonNegativeInt
    loss: float | None
    losses: dict[str, float | None]
    #: Standard error of each loss over its frames.
    spreads: dict[str, float | None]
    #: The group whose statistics normalized each; empty for those of all nodes.
    statistics: dict[str, str] = Field(default_factory=dict)
    success: float | None = None


class NodePoint(Settings):
    """What one node found of the weights after a round, on its own held-out episodes."""

    round: NonNegativeInt
    node: str
    loss: float
    frames: NonNegativeInt
    losses: tuple[float, ...]  #: of each episode
    mark: str  #: the same if frames, noise and normalization were the same


class RoundPoint(Settings):
    """One round's training: unweighted means over its nodes."""

    round: NonNegativeInt
    nodes: NonNegativeInt
    train_loss: float
    learning_rate: float
    proximal_mu: float
    update_norm: float


class Part(Settings):
    """What one node contributed, by its alias."""

    name: str
    rounds: NonNegativeInt
    samples: NonNegativeInt


class RunSummary(Settings):
    """A run up to one of its rounds."""

    run: str
    round: NonNegativeInt
    began: str  #: UTC, ISO 8601
    settings: dict[str, str | int | float | bool]
    versions: dict[str, str]
    evaluations: tuple[Point, ...]
    rounds: tuple[RoundPoint, ...]
    nodes: tuple[Part, ...]
    refused: dict[str, NonNegativeInt]
    lost: NonNegativeInt
    notes: tuple[str, ...] = ()  #: what the schedule did, and why
    start_from: str = ""  #: the release that the run began with, RUN/ROUND
    measured: tuple[NodePoint, ...] = ()  #: of round 0 and of the summary's own round
    not_measured: dict[str, str] = Field(default_factory=dict)  #: of its own round, by name: why
    robot_types: tuple[str, ...] = ()  #: of the nodes that told theirs

    @property
    def has_evaluations(self) -> bool:
        """Whether the coordinator has recordings of its own to evaluate on."""
        return any(point.losses for point in self.evaluations)

    @property
    def comparable(self) -> dict[str, object]:
        """What two evaluations must share to be compared."""
        settings = stored_settings(self.settings)
        keys = ("seed", "eval-frames", "normalize-by")
        datasets = sorted(self.evaluations[-1].losses) if self.evaluations else []
        return {"datasets": datasets, **{key: settings[key] for key in keys}}


def summary_of(state: RunState, number: int, settings: RunSettings) -> RunSummary:
    """The summary of a run, read whole, up to its round ``number``."""
    events = [state.rounds[n] for n in sorted(state.rounds) if n <= number]
    samples: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    trained, notes = [], []
    for event in events:
        for node in event.nodes:
            samples[node.node] += node.samples
            parts[node.node] += 1
        if event.nodes:
            trained.append(
                RoundPoint(
                    round=event.round,
                    nodes=len(event.nodes),
                    train_loss=fmean(node.policy_loss for node in event.nodes),
                    learning_rate=event.learning_rate or 0.0,
                    proximal_mu=event.proximal_mu or 0.0,
                    update_norm=event.mean_update_norm or 0.0,
                )
            )
        notes += [f"round {event.round}: {reason}" for reason in event.reasons]
    return RunSummary(
        run=state.run,
        round=number,
        began=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(state.began)),
        settings=settings.public(),
        versions={name: version(name) for name in ("zk0d", "flwr", "lerobot", "torch")},
        evaluations=tuple(
            Point(
                round=event.round,
                loss=event.evaluation.loss,
                losses={each.name: each.loss for each in event.evaluation.datasets},
                spreads={each.name: each.spread for each in event.evaluation.datasets},
                statistics={each.name: each.statistics for each in event.evaluation.datasets},
                success=event.evaluation.success,
            )
            for event in events
            if event.evaluation
        ),
        rounds=tuple(trained),
        nodes=tuple(
            Part(name=name, rounds=parts[name], samples=samples[name]) for name in sorted(parts)
        ),
        refused=dict(Counter(event.reason for event in state.refusals if event.round <= number)),
        lost=sum(len(event.lost) for event in events),
        notes=tuple(notes),
        start_from=state.start_from,
        measured=tuple(
            NodePoint(
                round=each.round,
                node=each.node,
                loss=each.loss,
                frames=each.frames,
                losses=each.losses,
                mark=each.mark,
            )
            for of in sorted({0, number})
            for each in sorted(state.measured.get(of, {}).values(), key=lambda each: each.node)
            if each.loss is not None
        ),
        not_measured=dict(sorted(state.not_measured.get(number, {}).items())),
        robot_types=tuple(sorted({r.robot_type for r in state.robots if r.robot_type})),
    )
