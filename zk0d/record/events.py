"""The lines of a run's journal, one type for each kind.

Fields have defaults where earlier versions did not write them, and a reader leaves out kinds and
fields that it does not know, so that journals of other versions are read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from zk0d.learning.spec import PolicySpec, RobotDescription

VERSION = 1


#: A node tells the loss of so many held-out episodes.
MOST_EPISODES = 256


class _Content(BaseModel):
    # A loss that is no number must travel as one: admission says so, by name.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class AnyEvent(_Content):
    """What every line has. The journal fills in when, and of which run."""

    v: int = VERSION
    time: float = 0.0  #: seconds since 1970
    run: str = ""


# --- the run --------------------------------------------------------------------------------------


class RunStarted(AnyEvent):
    """A run begins, with these settings in Flower's flat spelling."""

    kind: Literal["run.started"] = "run.started"
    settings: dict[str, str | int | float | bool]


class RunResumed(AnyEvent):
    """The run was interrupted and continues after ``round``; later rounds never were."""

    kind: Literal["run.resumed"] = "run.resumed"
    round: int
    flower_run: str


class RunFinished(AnyEvent):
    """All rounds are trained, or patience ended."""

    kind: Literal["run.finished"] = "run.finished"
    rounds: int = 0
    reason: str = "rounds"
    best_round: int | None = None


class RunFailed(AnyEvent):
    """The run ended before its last round."""

    kind: Literal["run.failed"] = "run.failed"
    reason: str
    message: str


class RunWaiting(AnyEvent):
    """The run cannot continue now. It tries again, and continues once the cause is gone."""

    kind: Literal["run.waiting"] = "run.waiting"
    reason: str
    message: str  #: for what it waits
    until: str  #: when it continues
    since: float  #: seconds since 1970, over restarts
    next_try: float = 0.0  #: seconds since 1970; 0 if it looks all the time


class RunStopped(AnyEvent):
    """Somebody stopped the run while no ServerApp worked on it, and it would have been resumed."""

    kind: Literal["run.stopped"] = "run.stopped"


class RunContinued(AnyEvent):
    """The run waited for ``reason`` and continues."""

    kind: Literal["run.continued"] = "run.continued"
    reason: str
    seconds: float


class ModelReady(AnyEvent):
    """The evaluator has built the policy."""

    kind: Literal["model.ready"] = "model.ready"
    spec: PolicySpec
    robot: RobotDescription | None = None  #: of the held-out recordings
    start_from: str = ""  #: the release that it begins with, RUN/ROUND; empty: the base model


class StatisticsMerged(AnyEvent):
    """The run's normalization statistics are committed; again when a group was added."""

    kind: Literal["statistics.merged"] = "statistics.merged"
    nodes: int
    sha256: str
    groups: tuple[str, ...] = ()  #: that have their own


# --- nodes ----------------------------------------------------------------------------------------


class NodeJoined(AnyEvent):
    """A node can train. Journals of the first versions have no key."""

    kind: Literal["node.joined"] = "node.joined"
    node: str
    key: str = ""
    enrolled: str = ""  #: the roster's name, which stays if the node changes its key
    frames: int = 0
    episodes: int = 0
    held_out: int = 0  #: episodes that it keeps out of training
    shares_statistics: bool = True
    version: str = ""
    robot: RobotDescription | None = None
    notices: tuple[str, ...] = ()


class NodePreparing(AnyEvent):
    """A node decodes its recordings and is asked again; told now and then while it does."""

    kind: Literal["node.preparing"] = "node.preparing"
    node: str
    key: str = ""
    message: str  #: how far it is, as a sentence goes on after the node's name and "is"


class NodeRefused(AnyEvent):
    """A node cannot train this run, by its own word or because its robot is another."""

    kind: Literal["node.refused"] = "node.refused"
    node: str
    key: str = ""
    reason: str
    message: str


class NodeLeftOut(AnyEvent):
    """A node is not asked again in this run."""

    kind: Literal["node.left_out"] = "node.left_out"
    node: str
    reason: str


class NodeLost(AnyEvent):
    """No answer will come from a node of this round."""

    kind: Literal["node.lost"] = "node.lost"
    round: int = 0
    node: str
    reason: str


class NodeSitsOut(AnyEvent):
    """A node had too many updates refused; ``until`` is the last round without it."""

    kind: Literal["node.sits_out"] = "node.sits_out"
    round: int
    node: str
    key: str = ""
    until: int


# --- rounds ---------------------------------------------------------------------------------------


class RoundStarted(AnyEvent):
    """A round was sent to its nodes."""

    kind: Literal["round.started"] = "round.started"
    round: int
    nodes: tuple[str, ...]
    learning_rate: float
    proximal_mu: float = 0.0
    deadline_seconds: float = 0.0
    reasons: tuple[str, ...] = ()  #: of the schedule
    boosts: dict[str, float] = Field(default_factory=dict)


class RoundFailed(AnyEvent):
    """Too few updates came; the round is tried again."""

    kind: Literal["round.failed"] = "round.failed"
    round: int
    reason: str = "quorum"
    message: str
    refused: dict[str, str] = Field(default_factory=dict)
    lost: dict[str, str] = Field(default_factory=dict)


class UpdateAccepted(AnyEvent):
    """A node's update counts, as far as it was checked."""

    kind: Literal["update.accepted"] = "update.accepted"
    round: int
    node: str = ""
    loss: float = 0.0
    samples: int = 0
    norm: float = 0.0
    staleness: int = 0


class UpdateRefused(AnyEvent):
    """A node's answer has no part in the round."""

    kind: Literal["update.refused"] = "update.refused"
    round: int
    node: str
    key: str = ""
    reason: str
    message: str = ""
    strike: bool = False


def figure(text: str, metric: str = "", **more: Any) -> Any:
    """A figure of a node: what it is, and the Prometheus gauge that shows it (``zk0d_METRIC``)."""
    extra: dict[str, Any] | None = {"metric": metric} if metric else None
    return Field(description=text, json_schema_extra=extra, **more)


class HeldOut(_Content):
    """What a node finds of some weights on its own held-out episodes."""

    loss: float | None = Field(None, description="Mean over the frames.")
    frames: int = Field(0, ge=0)
    losses: tuple[float, ...] = Field(
        (), max_length=MOST_EPISODES, description="Of each episode, in their order."
    )
    mark: str = Field(
        "",
        pattern=r"^[0-9a-f]{0,16}$",
        description="The same if frames, noise and normalization were the same. It is of a secret"
        " of the learner's process, so it tells nothing else.",
    )


class NodeMeasured(AnyEvent, HeldOut):
    """A node has evaluated the weights after ``round``."""

    kind: Literal["node.measured"] = "node.measured"
    round: int
    node: str
    key: str = ""
    seconds: float = 0.0


class NodeNotMeasured(AnyEvent):
    """A node holds out episodes and has not evaluated the weights after ``round``."""

    kind: Literal["node.not_measured"] = "node.not_measured"
    round: int
    node: str
    key: str = ""
    reason: str
    message: str = ""


class NodeFigures(_Content):
    """What a learner says of a round it trained. Losses and norms are means over its steps.

    This is the one place where a figure of a node is declared: the reply, the journal, the metrics
    and Weights & Biases have it from here.
    """

    steps: int = figure("Optimizer steps taken.", default=0, ge=0)
    samples: int = figure("Frames trained on.", default=0, ge=0)
    dataset_frames: int | None = figure(
        "Frames that the node could sample from.", default=None, ge=0
    )
    loss: float = figure("Loss that was minimized.")
    policy_loss: float = figure("Training loss of the node's last round.", "train_loss")
    proximal_loss: float = figure("FedProx's part of the loss.", "proximal_loss", default=0.0)
    grad_norm: float = figure("Mean gradient norm of the node's last round.", "grad_norm")
    learning_rate: float = figure("Learning rate of the last step.", default=0.0, ge=0.0)
    bad_batches: int = figure("Batches with a loss that was not a number.", default=0, ge=0)
    holdout_loss: float | None = figure(
        "Loss of the round's first weights on the node's own held-out episodes.", default=None
    )
    holdout_frames: int = figure("Frames of that evaluation.", default=0, ge=0)
    holdout_losses: tuple[float, ...] = Field(
        (), max_length=MOST_EPISODES, description="That loss of each episode."
    )
    holdout_mark: str = Field(
        "", pattern=r"^[0-9a-f]{0,16}$", description="As in what nodes measure."
    )
    variate: Literal["", "kept", "new", "lost"] = Field(
        "",
        description="The variate that drift correction began with: the node's own (kept), none yet"
        " (new), or none any more because its learner restarted (lost).",
    )
    weights: Literal["", "whole", "difference", "held"] = Field(
        "",
        description="How the round's weights came: whole, as a difference to those that the node"
        " held, or not at all, because it held them (a round that was sent again).",
    )
    seconds: dict[str, float] = Field(default_factory=dict, description="Seconds by phase.")

    @property
    def held_out(self) -> HeldOut:
        """What it found of the round's first weights."""
        return HeldOut(
            loss=self.holdout_loss,
            frames=self.holdout_frames,
            losses=self.holdout_losses,
            mark=self.holdout_mark,
        )


class NodeRound(NodeFigures):
    """A node's part in a committed round: its own figures, and what the coordinator saw."""

    node: str
    key: str = ""
    update_norm: float = figure("Norm of the node's last update.", "update_norm")
    agreement: float | None = figure(
        "Cosine of the node's last update and the combined one.", "update_cosine", default=None
    )
    staleness: int = figure(
        "Rounds that the node's last update was late.", "update_staleness", default=0, ge=0
    )
    bytes_up: int = 0
    bytes_down: int = 0
    sha256: str = ""
    answer_seconds: float = figure(
        "From sending the node's last round to its answer.", "node_answer_seconds", default=0.0
    )


class DatasetResult(_Content):
    """One evaluation dataset. What could not be measured is missing, with the error beside it."""

    name: str
    loss: float | None = None
    spread: float | None = Field(None, description="Standard error of the loss over its frames.")
    frames: int = 0
    success: float | None = None
    rollouts: int = 0
    statistics: str = Field(
        "", description="The group whose statistics normalized it; empty: those of all nodes."
    )
    error: str | None = None


class Evaluation(_Content):
    """A round's evaluation: unweighted means, and each dataset."""

    loss: float | None
    success: float | None = None
    datasets: tuple[DatasetResult, ...] = ()


class RoundCommitted(AnyEvent):
    """The round exists. Round 0 is the policy before any training: it has no nodes."""

    kind: Literal["round.committed"] = "round.committed"
    round: int
    nodes: tuple[NodeRound, ...] = ()
    refused: dict[str, str] = Field(default_factory=dict)
    lost: dict[str, str] = Field(default_factory=dict)
    samples: int = 0
    train_loss: float | None = None
    proximal_loss: float | None = None
    holdout_loss: float | None = None
    learning_rate: float | None = None
    proximal_mu: float | None = None
    reasons: tuple[str, ...] = ()
    boosts: dict[str, float] = Field(default_factory=dict)
    codec: dict[str, str] | None = None
    aggregation: str | None = None
    weights_norm: float | None = None
    mean_update_norm: float | None = None
    agreement: float | None = None  #: norm of the combined update over the mean of the updates' own
    variates: int = 0  #: nodes whose variate counts
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: dict[str, float] = Field(default_factory=dict)
    evaluation: Evaluation | None = None
    rolled_back_to: int | None = None


class EvaluationFailed(AnyEvent):
    """A round's evaluation gave nothing; the round counts."""

    kind: Literal["evaluation.failed"] = "evaluation.failed"
    round: int
    reason: str
    message: str


class CheckpointWritten(AnyEvent):
    """A round's weights lie as a checkpoint in ``folder``."""

    kind: Literal["checkpoint.written"] = "checkpoint.written"
    round: int
    folder: str
    passed: bool
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0


class CheckpointFailed(AnyEvent):
    """No checkpoint of this round."""

    kind: Literal["checkpoint.failed"] = "checkpoint.failed"
    round: int
    reason: str
    message: str


Event = Annotated[
    RunStarted
    | RunResumed
    | RunFinished
    | RunFailed
    | RunWaiting
    | RunContinued
    | RunStopped
    | ModelReady
    | StatisticsMerged
    | NodeJoined
    | NodePreparing
    | NodeRefused
    | NodeLeftOut
    | NodeLost
    | NodeSitsOut
    | RoundStarted
    | RoundFailed
    | UpdateAccepted
    | UpdateRefused
    | RoundCommitted
    | NodeMeasured
    | NodeNotMeasured
    | EvaluationFailed
    | CheckpointWritten
    | CheckpointFailed,
    Field(discriminator="kind"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
KINDS = frozenset(EVENT.json_schema()["discriminator"]["mapping"])
