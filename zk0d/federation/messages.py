"""What coordinator, node and learner say to each other, besides tensors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from zk0d.config.base import Settings
from zk0d.config.names import Alias, PolicyName
from zk0d.config.run import EvaluationSettings, TrainingSettings
from zk0d.learning.schedule import Schedule
from zk0d.learning.spec import (
    Adapter,
    PolicySpec,
    RecordingsSummary,
    RobotDescription,
    check_printable,
)
from zk0d.learning.statistics import RunStatistics, Statistics
from zk0d.record.events import DatasetResult, HeldOut, NodeFigures
from zk0d.record.summary import RunSummary

#: Raised when a message changes its meaning; both ends must speak the same.
PROTOCOL: Literal[10] = 10


#: A program's version; what a node sends becomes a metric's label.
Version = Annotated[str, Field(pattern=r"^[0-9A-Za-z.+!-]{0,40}$")]


#: A sentence of a node that the coordinator shows to people.
Notice = Annotated[str, Field(max_length=300), AfterValidator(check_printable)]


class Message(Settings):
    """Every message names its protocol, so that a version skew is said and not guessed."""

    # A loss that is no number must arrive as one: admission says so, by name.
    model_config = ConfigDict(ser_json_inf_nan="strings")

    protocol: Literal[10] = PROTOCOL


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

#: A file that mirrors may have is checked by blocks of so many bytes.
BLOCK_BYTES = 8 * 2**20


class Piece(Settings):
    """Bytes that do not travel in a message: a file of ``size`` bytes, named by its content."""

    sha256: Sha256
    size: PositiveInt
    blocks: Annotated[tuple[Sha256, ...], Field(max_length=4096)] = Field(
        (), description="The SHA-256 of each block, if mirrors may have it."
    )


class Mirror(Settings):
    """A cache that may have what comes down, and may be anybody's."""

    url: str
    down: str = Field(description="Its own capability, for what it does not have yet.")


class Route(Settings):
    """How a round's payloads travel; each may also be in the message."""

    mirrors: Annotated[tuple[Mirror, ...], Field(max_length=8)] = ()

    down: str = Field("", description="Capability to fetch what comes down.")
    up: str = Field("", description="Capability to send the update.")
    ticket: str = Field("", description="The name that the update's pieces have in common.")
    inside: NonNegativeInt = Field(description="Bytes that an update in a message has at most.")


class Refusal(Message):
    """A task that was not done, and why. ``reason`` is stable over versions."""

    reason: str
    message: str


class Query(Message):
    """Asked of a node once per run: can it train this policy, and on how much?"""

    run: str
    spec: PolicySpec
    dataset_uri: str = ""
    image_augmentation: bool = Field(
        False, description="Whether training changes pictures, so that their features cannot stay."
    )


class QueryReply(Message):
    """What a node trains on, in numbers."""

    name: Alias
    recordings: RecordingsSummary
    usable_frames: NonNegativeInt
    held_out: NonNegativeInt = Field(
        0, description="Episodes that its owner keeps out of training."
    )
    statistics: Statistics | None = Field(description="None if the owner does not share them.")
    version: Version = Field("", description="Of the node's zk0d.")
    robot: RobotDescription | None = Field(
        None, description="Joints and ranges; None if the owner does not tell."
    )
    notices: Annotated[tuple[Notice, ...], Field(max_length=16)] = ()


class NodeRejected(Message):
    """Tells a node that it has no part in a run, and why."""

    run: str
    reason: str
    message: str


class UpdateRejected(Message):
    """Tells a node that its update was refused, and why."""

    run: str
    round: PositiveInt
    reason: str
    message: str
    strikes: NonNegativeInt = Field(description="Refused updates so far.")
    sits_out_until: NonNegativeInt = Field(description="Last round without this node; 0: none.")


class Noted(Message):
    """The answer to an :class:`UpdateRejected` or a :class:`NodeRejected`."""


class WithWeights(Message):
    """A task with the policy's weights, which come as the payload."""

    run: str
    round: PositiveInt = Field(description="The round under way, or the next.")
    spec: PolicySpec
    base: str = Field(description="Manifest hash of the global weights that come with it.")
    hold: bool = Field(False, description="Keep these weights: a difference to them may follow.")
    difference_to: str = Field(
        "", description="Manifest hash of the weights that the difference is to; empty: of none."
    )
    statistics: Statistics
    statistics_sha256: str
    seed: NonNegativeInt
    evaluation: EvaluationSettings = Field(description="Of the weights, on held-out episodes.")
    deadline_seconds: PositiveFloat = Field(description="Later answers are of no use.")
    dataset_uri: str = ""


class Train(WithWeights):
    """One round of local steps. The weights come as the payload, the mean variate beside them.

    Between the two may be a difference, for a node that holds the weights that it is to. Its
    learner gets that as the payload, and one without tensors if it holds the round's own weights.

    The same for every node but for ``boost`` and ``variate_round``.
    """

    training: TrainingSettings
    first_step: NonNegativeInt = Field(
        description="The schedule's clock at the round's begin; a round moves it by local-steps."
    )
    schedule: Schedule
    boost: PositiveFloat = Field(
        1.0, description="What this node's learning rate is multiplied by."
    )
    variate_round: NonNegativeInt = Field(
        0, description="The round of this node's variate that counts; 0: none."
    )
    proximal_mu: NonNegativeFloat
    fresh: bool = Field(False, description="The weights went back: begin with new moments.")


class TrainReply(Message):
    """A node's word on its update, which comes as the payload; its variate is beside it."""

    name: Alias
    round: PositiveInt
    base: str
    figures: NodeFigures


class Measure(WithWeights):
    """Evaluate weights on the node's own held-out episodes, and train nothing."""

    of: NonNegativeInt = Field(description="The committed round that left these weights.")
    image_augmentation: bool = Field(False, description="As in the query.")


class MeasureReply(Message):
    """What a node found."""

    name: Alias
    of: NonNegativeInt
    base: str
    held_out: HeldOut
    seconds: NonNegativeFloat = 0.0


class Start(Message):
    """Asked of the evaluator once per run: the policy's shape and its first weights."""

    policy: PolicyName
    model_name: str
    seed: NonNegativeInt
    adapter: Adapter | None = None
    start_from: str = ""


class StartReply(Message):
    """The policy's shape and hash; its trainable weights come as the payload."""

    spec: PolicySpec
    robot: RobotDescription | None = Field(None, description="Of the held-out recordings.")
    start_from: str = Field("", description="The release that they are of, as RUN/ROUND.")


class Evaluate(Message):
    """Seeded evaluation of the weights that come with it, on the evaluator's own datasets."""

    run: str
    round: NonNegativeInt
    spec: PolicySpec
    base: str
    statistics: RunStatistics
    evaluation: EvaluationSettings
    seed: NonNegativeInt


class EvaluateReply(Message):
    """Results by dataset, in the order of the evaluator's settings."""

    datasets: tuple[DatasetResult, ...]
    seconds: NonNegativeFloat = 0.0

    @property
    def loss(self) -> float | None:
        """Unweighted mean over the datasets; missing if any dataset's is."""
        losses = [dataset.loss for dataset in self.datasets]
        if not losses or any(loss is None for loss in losses):
            return None
        return sum(loss for loss in losses if loss is not None) / len(losses)

    @property
    def success(self) -> float | None:
        """Unweighted mean over the datasets that have a simulator."""
        rates = [d.success for d in self.datasets if d.success is not None]
        return sum(rates) / len(rates) if rates else None


class Release(Message):
    """Have the evaluator write the weights that come with it as a checkpoint."""

    run: str
    round: NonNegativeInt
    spec: PolicySpec
    base: str
    statistics: RunStatistics
    summary: RunSummary
    keep: PositiveInt = Field(description="Checkpoints of a run that stay, besides the best.")


class ReleaseReply(Message):
    """What became of it. ``folder`` is the checkpoint's own name, no path."""

    folder: str
    passed: bool
    reasons: tuple[str, ...]
    seconds: NonNegativeFloat = 0.0
