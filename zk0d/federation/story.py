"""What a checkpoint tells of its run: made from the journal, sent to the evaluator, no secrets."""

from __future__ import annotations

import time
from collections import Counter
from importlib.metadata import version

from pydantic import NonNegativeInt

from zk0d.config.base import Settings
from zk0d.config.run import RunSettings
from zk0d.federation.history import History


class Point(Settings):
    """One evaluation. Losses by dataset; ``None`` was not measured."""

    round: NonNegativeInt
    loss: float | None
    losses: dict[str, float | None]
    #: Standard error of each loss over its frames.
    spreads: dict[str, float | None]
    success: float | None = None


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


class Story(Settings):
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

    @property
    def comparable(self) -> dict[str, object]:
        """What two evaluations must share to be compared."""
        keys = ("seed", "eval-mode", "eval-frames", "eval-episodes")
        datasets = sorted(self.evaluations[-1].losses) if self.evaluations else []
        return {"datasets": datasets, **{key: self.settings[key] for key in keys}}


def story_of(history: History, run: str, number: int, settings: RunSettings) -> Story:
    """The story of ``run`` up to round ``number``."""
    lines = [history.rounds[n] for n in sorted(history.rounds) if n <= number]
    samples: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    trained, notes = [], []
    for line in lines:
        nodes = line.get("nodes") or []
        for node in nodes:
            samples[node["node"]] += node["samples"]
            parts[node["node"]] += 1
        if nodes:
            trained.append(
                RoundPoint(
                    round=line["round"],
                    nodes=len(nodes),
                    train_loss=sum(node["policy_loss"] for node in nodes) / len(nodes),
                    learning_rate=line.get("learning_rate") or 0.0,
                    proximal_mu=line.get("proximal_mu") or 0.0,
                    update_norm=line.get("mean_update_norm") or 0.0,
                )
            )
        notes += [f"round {line['round']}: {reason}" for reason in line.get("reasons", [])]
    began = time.gmtime(history.began)
    return Story(
        run=run,
        round=number,
        began=time.strftime("%Y-%m-%dT%H:%M:%SZ", began),
        settings=settings.public(),
        versions={name: version(name) for name in ("zk0d", "flwr", "lerobot", "torch")},
        evaluations=tuple(
            Point(
                round=line["round"],
                loss=line["evaluation"]["loss"],
                losses={d["name"]: d["loss"] for d in line["evaluation"]["datasets"]},
                spreads={d["name"]: d.get("spread") for d in line["evaluation"]["datasets"]},
                success=line["evaluation"]["success"],
            )
            for line in lines
            if line["evaluation"]
        ),
        rounds=tuple(trained),
        nodes=tuple(
            Part(name=name, rounds=parts[name], samples=samples[name]) for name in sorted(parts)
        ),
        refused=dict(
            Counter(line["reason"] for line in history.refused if line["round"] <= number)
        ),
        lost=sum(len(line.get("lost") or {}) for line in lines),
        notes=tuple(notes),
    )
