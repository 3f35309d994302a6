"""Why a node's answer has no part in a round, or a run waits or ended, and what follows from it."""

from __future__ import annotations

import sys
from enum import Enum, StrEnum
from pathlib import Path
from typing import Self

from zk0d.errors import ExitCode


class Effect(Enum):
    """What a reason means for the node that it is about."""

    PASSES = "passes: the node is asked again after a pause"
    AWAY = "passes: the node is first asked whether its learner takes tasks again"
    STRIKE = "strike: after max-strikes the node sits out"
    LEAVES = "leaves the run until it restarts, because it would only refuse again"
    NONE = "is of no node"


class Reason(StrEnum):
    """A short name, stable over versions.

    A node may give any; what is not known here is :attr:`OTHER`, so that what a node writes cannot
    make metrics without end.
    """

    effect: Effect
    text: str
    until: str  #: when a run continues that waits for it; empty if a run fails for it

    def __new__(cls, value: str, effect: Effect, text: str, until: str = "") -> Self:
        """A member with what it means."""
        made = str.__new__(cls, value)
        made._value_ = value
        made.effect, made.text, made.until = effect, text, until
        return made

    # What a run alone meets.
    TOO_FEW_NODES = (
        "too_few_nodes",
        Effect.NONE,
        "fewer nodes than min-fit-clients can train",
        "when enough nodes can train",
    )
    ROUNDS_FAILED = (
        "rounds_failed",
        Effect.NONE,
        "rounds fail, because too few updates came",
        "when enough updates of a round come",
    )
    INTERRUPTED = (
        "interrupted",
        Effect.NONE,
        "the run's ServerApp ended without a word",
        "when it is resumed",
    )

    # Passing conditions of a machine.
    DEADLINE = (
        "deadline",
        Effect.PASSES,
        "the round's deadline has passed, or would before the node is done",
    )
    LATE = (
        "late",
        Effect.PASSES,
        "the round closed before the update came, which may count in a later round",
    )
    DISK_FULL = "disk_full", Effect.PASSES, "a disk is full", "when there is room"
    DROPPED = "dropped", Effect.PASSES, "the coordinator does not wait for the task any more"
    FLOWER_ERROR = "flower_error", Effect.PASSES, "Flower reports an error instead of an answer"
    OUT_OF_MEMORY = (
        "out_of_memory",
        Effect.PASSES,
        "a GPU's or machine's memory does not suffice",
        "when there is memory",
    )
    HUB_UNREACHABLE = (
        "hub_unreachable",
        Effect.PASSES,
        "a model is not here and could not be fetched",
        "when zk0d fetch has got the model",
    )
    TRY_AGAIN = "try_again", Effect.PASSES, "something passing", "when a try succeeds"
    GPU_FAILED = (
        "gpu_failed",
        Effect.AWAY,
        "the GPU failed and the learner restarts",
        "when the evaluator is back",
    )
    LEARNER_BUSY = (
        "learner_busy",
        Effect.AWAY,
        "the learner does another task",
        "when the evaluator is free",
    )
    LEARNER_GONE = (
        "learner_gone",
        Effect.AWAY,
        "the learner does not run",
        "when the evaluator is back",
    )
    LEARNER_SILENT = (
        "learner_silent",
        Effect.AWAY,
        "the learner says nothing",
        "when the evaluator is back",
    )
    PREPARING = (
        "preparing",
        Effect.PASSES,
        "the learner decodes recordings before its first round, which may take hours",
    )
    BASE_LOST = (
        "base_lost",
        Effect.PASSES,
        "the learner has lost the weights that a difference is to",
    )
    RESTING = (
        "resting",
        Effect.AWAY,
        "the owner needs the machine: it is another hour, somebody uses it, a program comes first,"
        " or it runs on a battery",
    )
    LINE_RESTS = (
        "line_rests",
        Effect.AWAY,
        "the owner's line rests: the day's bytes are spent, it is another hour, or the connection"
        " is metered",
    )

    SITS_OUT = (
        "sits_out",
        Effect.NONE,
        "the node sits out, because updates of it were refused, and evaluates no weights either",
    )
    NOTHING_HELD_OUT = (
        "nothing_held_out",
        Effect.NONE,
        "the node keeps no episodes out of training, so it evaluates no weights",
    )

    # What admission refuses.
    MANIFEST_MISMATCH = (
        "manifest_mismatch",
        Effect.STRIKE,
        "a tensor is missing, extra, of another shape or type, or altered on the way",
    )
    WRONG_ROUND = "wrong_round", Effect.STRIKE, "the answer is to another round"
    WRONG_BASE = "wrong_base", Effect.STRIKE, "the update is against other weights"
    WRONG_CODEC = "wrong_codec", Effect.STRIKE, "encoded in another way than was asked for"
    WRONG_KIND = "wrong_kind", Effect.STRIKE, "weights where a difference was asked for"
    NO_PAYLOAD = "no_payload", Effect.STRIKE, "an answer without an update"
    NO_VARIATE = (
        "no_variate",
        Effect.STRIKE,
        "an update without the variate that the round asks for",
    )
    NOT_FINITE = (
        "not_finite",
        Effect.STRIKE,
        "NaN, infinity or a norm that overflows, or losses that are not numbers",
    )
    IMPLAUSIBLE_SAMPLES = (
        "implausible_samples",
        Effect.STRIKE,
        "more samples than were asked for",
    )
    ZERO_UPDATE = "zero_update", Effect.STRIKE, "the update changes nothing"
    NORM_CAP = "norm_cap", Effect.STRIKE, "longer than max-update-ratio times the weights"
    NORM_OUTLIER = (
        "norm_outlier",
        Effect.STRIKE,
        "longer than norm-outlier-factor times the round's median, where three or more came",
    )
    NOT_ADMITTED = "not_admitted", Effect.STRIKE, "the update has another fault"
    BAD_BODY = "bad_body", Effect.STRIKE, "the answer cannot be read"
    BAD_MESSAGE = "bad_message", Effect.STRIKE, "the answer is not a message of this protocol"

    # Of what a node says of its recordings.
    ROBOT_MISMATCH = (
        "robot_mismatch",
        Effect.LEAVES,
        "another robot than the cohort's, other joints or another order",
    )
    UNITS_MISMATCH = "units_mismatch", Effect.LEAVES, "joints on another scale than the cohort's"

    # What a node says of itself and what stays so.
    BUG = "bug", Effect.LEAVES, "a bug in zk0d on the node"
    CONFIG_ERROR = "config_error", Effect.LEAVES, "the node's settings are wrong"
    DATA_ERROR = "data_error", Effect.LEAVES, "the recordings cannot be used"
    FORBIDDEN = "forbidden", Effect.LEAVES, "a folder or file that the process has no right to"
    LIMIT_EXCEEDED = "limit_exceeded", Effect.LEAVES, "the run asks for more than the owner allows"
    MODEL_MISMATCH = "model_mismatch", Effect.LEAVES, "the base model is not the coordinator's"
    MODEL_NOT_ALLOWED = "model_not_allowed", Effect.LEAVES, "the site does not list the model"
    MODEL_UNAVAILABLE = "model_unavailable", Effect.LEAVES, "the model is not here, or not whole"
    MODEL_UNSAFE = "model_unsafe", Effect.LEAVES, "the model's folder holds code"
    NOT_FETCHED = "not_fetched", Effect.LEAVES, "the dataset was not fetched"
    NO_DATASET = "no_dataset", Effect.LEAVES, "the node names no recordings"
    NO_STATISTICS = "no_statistics", Effect.LEAVES, "no statistics to normalize with"
    POLICY_NOT_ALLOWED = "policy_not_allowed", Effect.LEAVES, "the site trains other policies"
    PROTOCOL_MISMATCH = "protocol_mismatch", Effect.LEAVES, "another version of the protocol"
    RUN_DATASET_REFUSED = "run_dataset_refused", Effect.LEAVES, "nodes train on their own data"
    STATISTICS_MISMATCH = "statistics_mismatch", Effect.LEAVES, "other statistics than announced"
    STOPPED = "stopped", Effect.LEAVES, "the task was ended"
    UNAVAILABLE = "unavailable", Effect.LEAVES, "something needed is missing"
    OTHER = "other", Effect.LEAVES, "anything else"

    @classmethod
    def of(cls, text: str) -> Reason:
        """The reason that a machine gave."""
        return next((reason for reason in cls if reason.value == text), cls.OTHER)

    @property
    def passes(self) -> bool:
        """Whether the node is worth asking again."""
        return self.effect in (Effect.PASSES, Effect.AWAY)

    @property
    def waits(self) -> bool:
        """Whether a run that meets it, by its evaluator, disk or nodes, waits; else it fails."""
        return bool(self.until)

    @property
    def exit_code(self) -> ExitCode:
        """What a program ends with for this reason: whether to try the same again."""
        again = self.passes or self.waits or self is Reason.FORBIDDEN
        return ExitCode.TRY_AGAIN if again else ExitCode.UNAVAILABLE


BEGIN, END = "<!-- reasons: make reference writes this table -->", "<!-- reasons end -->"


def table() -> str:
    """The reasons as Markdown."""
    lines = ["| reason | what it says | the node | the run waits until |", "|---|---|---|---|"]
    lines += [
        f"| `{r.value}` | {r.text} | {r.effect.value} | {r.until.removeprefix('when ') or '–'} |"
        for r in Reason
    ]
    return "\n".join(lines)


def write_table(page: Path) -> None:
    """Put the table between its marks in a page."""
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{table()}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    write_table(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/architecture.md"))
