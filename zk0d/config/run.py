"""The settings of a training run: tables in the code, flat keys wherever someone writes them.

A command line, ``[run]`` and Flower know ``batch-size``; the code knows ``training.batch_size``.
``pyproject.toml`` lists every key with its default, because a SuperLink refuses overrides of keys
that the bundle does not name; a test keeps the two equal. Flower's values are int, float, bool and
str, so an optional setting has a sentinel default (``""`` or ``0``), never a missing key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    GetJsonSchemaHandler,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from zk0d.config.base import (
    FlatSettings,
    Scalar,
    Settings,
    known_keys,
    parse_words,
    suggest,
    wrong,
)
from zk0d.config.families import FAMILIES, NEW, PolicyFamily, family_of
from zk0d.config.names import DatasetUri, PolicyName, check_repository
from zk0d.errors import ConfigError

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
CodecName = Literal["fp32", "bf16", "int8", "int4"]
#: Encodings of the weights on their way down; :data:`DELTA` is a difference where it can be.
DownlinkName = Literal["fp32", "bf16", "int8-delta"]
DELTA: Literal["int8-delta"] = "int8-delta"
RuleName = Literal["mean", "trimmed-mean", "median"]
AdapterName = Literal["none", "lora"]
NormalizeBy = Literal["cohort", "robot-type", "node"]
#: LeRobot's own default.
ADAPTER_RANK = 16
#: Updates that a rule needs, where one is not enough.
LEAST_UPDATES: Mapping[str, int] = {"trimmed-mean": 3}

#: Where ``start-from`` begins with the latest release, and with the base model before the first.
LATEST_OR_BASE = "latest-or-base"

#: In place of a value that the rest of the run's settings decides.
AUTO = "auto"


class ByRun:
    """Marks a setting whose usual value follows from the run's other settings."""

    def of(self, run: RunSettings) -> Scalar:
        """The usual value."""
        raise NotImplementedError

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"const": AUTO}]}


@dataclass(frozen=True)
class ByFamily(ByRun):
    """By the run's policy family."""

    usual: Callable[[PolicyFamily], Scalar]

    def of(self, run: RunSettings) -> Scalar:
        return self.usual(family_of(run.policy))

    def __str__(self) -> str:
        told = (f"{name} {self.usual(family)}" for name, family in FAMILIES.items())
        return f"`{AUTO}`: {', '.join(told)}"


@dataclass(frozen=True)
class ByAdapter(ByRun):
    """By what trains: the policy itself, or an adapter."""

    policy: Scalar
    adapter: Scalar

    def of(self, run: RunSettings) -> Scalar:
        return self.policy if run.adapter == "none" else self.adapter

    def __str__(self) -> str:
        return f"`{AUTO}`: {self.policy}, with an adapter {self.adapter}"


#: Steps that a node may take with ``round-minutes``, as multiples of ``local-steps``: fewer are
#: mostly noise, and more lead it too far from the others (docs/results.md).
FEWEST_SHARE, MOST_SHARE = 0.125, 2.0


@dataclass(frozen=True)
class StepBounds:
    """The fewest and most optimizer steps that a node may take in a round."""

    fewest: int
    most: int

    def at_most(self, most: int) -> StepBounds:
        """The same for a machine whose owner lends no more than ``most``."""
        return StepBounds(self.fewest, min(self.most, most))


class RoundsSettings(Settings):
    """Rounds, nodes and deadlines."""

    num_server_rounds: PositiveInt = Field(30, description="Rounds to train.")
    fraction_fit: Fraction = Field(1.0, description="Share of the online nodes asked each round.")
    min_fit_clients: PositiveInt = Field(
        2, description="Nodes that must be online to start a round and must answer to complete it."
    )
    round_deadline: PositiveFloat = Field(3600.0, description="Seconds a round may take.")
    quorum: Fraction = Field(
        1.0,
        description="Share of a round's nodes whose updates close it; the others are late. Never"
        " fewer than min-fit-clients.",
    )
    max_staleness: NonNegativeInt = Field(
        2,
        description="Rounds that an update may be late and still count, by 1 / (1 + rounds) of its"
        " weight; 0: late updates are dropped.",
    )
    node_wait: PositiveFloat = Field(
        600.0,
        description="Seconds that a simulation waits for min-fit-clients nodes before it fails; a"
        " run with real nodes waits on.",
    )


class TrainingSettings(Settings):
    """A node's work in a round; nodes receive this table unchanged."""

    local_steps: PositiveInt = Field(
        40,
        description="Optimizer steps of a node per round, and what a round moves the learning"
        " rate's schedule by.",
    )
    round_minutes: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        0.0,
        description="Minutes of training that a round asks of each node, which takes as many steps"
        f" as it can in them: {FEWEST_SHARE:g} to {MOST_SHARE:g} times local-steps; 0: local-steps"
        " of every node.",
    )
    batch_size: Annotated[PositiveInt, ByFamily(lambda family: family.usual.batch_size)] = Field(
        32, description="Frames per optimizer step."
    )
    weight_decay: Annotated[
        NonNegativeFloat, ByFamily(lambda family: family.usual.weight_decay)
    ] = Field(1e-10, description="AdamW's decoupled weight decay.")
    backbone_lr_factor: PositiveFloat = Field(
        1.0,
        description="Learning rate of a vision backbone that trains (ACT's), as a multiple of the"
        " others'.",
    )
    grad_clip_norm: PositiveFloat = Field(10.0, description="Global gradient norm limit.")
    image_augmentation: bool = Field(
        False,
        description="Change brightness, contrast, saturation, hue, sharpness and position of"
        " pictures at random in training, by LeRobot's image transforms.",
    )
    uplink_codec: CodecName = Field(
        "int8",
        description="Encoding of the nodes' updates; the next update carries the rounding error.",
    )
    drift_correction: Annotated[
        Literal["none", "control-variates"], ByAdapter(policy="control-variates", adapter="none")
    ] = Field(
        "control-variates",
        description="How nodes with unlike recordings are kept together: each corrects its"
        " gradients by the difference of all nodes' mean gradient and its own (SCAFFOLD).",
    )
    variate_codec: CodecName = Field(
        "int8", description="How these mean gradients are sent, both ways."
    )

    @property
    def frames(self) -> int:
        """Frames that a node sees in a round."""
        return self.local_steps * self.batch_size

    @property
    def step_bounds(self) -> StepBounds:
        """What a node may take in a round."""
        if not self.round_minutes:
            return StepBounds(self.local_steps, self.local_steps)
        fewest = math.ceil(FEWEST_SHARE * self.local_steps)
        return StepBounds(fewest, math.floor(MOST_SHARE * self.local_steps))


class ScheduleSettings(Settings):
    """Learning rate and proximal term over the rounds."""

    initial_lr: Annotated[PositiveFloat, ByFamily(lambda family: family.usual.initial_lr)] = Field(
        1e-4, description="Peak learning rate."
    )
    warmup_steps: Annotated[NonNegativeInt, ByFamily(lambda family: family.usual.warmup_steps)] = (
        Field(20, description="Global steps of linear warm-up, once at the start of the run.")
    )
    final_lr_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.05, description="Learning rate at the end of the run's cosine, as a fraction of the peak."
    )
    scheduler_type: Literal["cosine", "cosine-warm-restarts", "reduce-on-plateau"] = Field(
        "cosine", description="Schedule of the learning rate over the rounds."
    )
    proximal_mu: NonNegativeFloat = Field(
        0.0, description="FedProx's mu; 0: off (it hurts on SoReach)."
    )
    dynamic_training_decay: bool = Field(
        False, description="Lower learning rate and mu when the evaluated loss stalls."
    )
    adaptive_lr_enabled: bool = Field(
        False, description="Raise the learning rate of nodes with a loss far above the mean."
    )
    adaptive_mu_enabled: bool = Field(
        False, description="Raise mu when the nodes' losses lie far apart."
    )
    rollback_factor: NonNegativeFloat = Field(
        0.0,
        description="Return to the best round's weights after two evaluations in a row with a loss"
        " above this many times the best; 0: never, else more than 1.",
    )
    early_stopping_patience: NonNegativeInt = Field(
        0, description="End the run after this many evaluations without a better loss; 0: never."
    )

    @model_validator(mode="after")
    def _rolls_back_to_better(self) -> Self:
        if 0.0 < self.rollback_factor <= 1.0:
            raise ValueError("rollback-factor must be more than 1, or 0 for never")
        return self


class AggregationSettings(Settings):
    """From updates to the next weights, and their encoding."""

    rule: RuleName = Field(
        "mean",
        alias="aggregation",
        description="Rule that combines updates: a mean by samples (by pace equally), or"
        " robustly by coordinate.",
    )
    norm_clip_factor: NonNegativeFloat = Field(
        0.0,
        description="Shorten updates to this many times the round's median norm, and leave those"
        " out of a mean that point against it; 0: neither.",
    )
    server_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.5, description="Momentum of the server; 0: plain FedAvg."
    )
    server_nesterov: bool = Field(True, description="Nesterov's momentum in place of FedAvgM's.")
    server_learning_rate: PositiveFloat = Field(1.0, description="Scale of the server's step.")
    downlink_codec: DownlinkName = Field(
        "bf16",
        description="Encoding of the weights for the nodes; the server keeps float32. With"
        " int8-delta a node that holds the last round's weights gets an int8 difference to them,"
        " any other all of them as bf16.",
    )


class AdmissionSettings(Settings):
    """Refusing updates, and what follows from it."""

    norm_outlier_factor: NonNegativeFloat = Field(
        5.0, description="Refuse updates longer than this many times the round's median; 0: never."
    )
    max_update_ratio: NonNegativeFloat = Field(
        1.0, description="Refuse updates longer than this many times the weights' norm; 0: never."
    )
    max_strikes: NonNegativeInt = Field(
        3, description="Refused updates after which a node sits out; 0: never."
    )
    allow_mixed_units: bool = Field(
        False,
        description="Let recordings train together whose joints have other scales (degrees beside"
        " radians or servo ticks), or whose robots are of two types with equal joints.",
    )


class EvaluationSettings(Settings):
    """Evaluation: when, and on how many frames."""

    eval_frequency: NonNegativeInt = Field(
        1, description="Evaluate every this many rounds, and the last; 0: never."
    )
    eval_frames: NonNegativeInt = Field(
        256, description="Frames of each dataset to evaluate, stratified by episode; 0: all."
    )
    eval_rollouts: NonNegativeInt = Field(
        0, description="Closed-loop episodes per evaluation, if there is a simulator; 0: none."
    )
    evaluate_on_nodes: bool = Field(
        True,
        description="Let nodes that hold out episodes (learner.holdout-episodes in their settings)"
        " evaluate on them: the first weights of each round that eval-frequency names, and those of"
        " each checkpoint.",
    )

    def is_due(self, number: int, last: int = 0) -> bool:
        """Whether the weights after round ``number`` are evaluated; ``last`` ones always are."""
        every = self.eval_frequency
        return bool(every) and (number % every == 0 or number == last)

    @property
    def on_nodes(self) -> bool:
        """Whether nodes are asked at all."""
        return self.evaluate_on_nodes and bool(self.eval_frequency)


class ReleaseSettings(Settings):
    """What the coordinator keeps and sends; usual in its ``[run]``, and a run may set it, too."""

    keep_rounds: PositiveInt = Field(
        3,
        description="Committed round folders kept on disk, besides the best, and round 0 where"
        " nodes evaluate.",
    )
    checkpoint_interval: NonNegativeInt = Field(
        0,
        description="Write a checkpoint every this many rounds; 0: only of the last and the best.",
    )
    keep_checkpoints: PositiveInt = Field(
        3, description="Checkpoints of a run kept on disk, besides the best and the latest release."
    )
    hf_repo_id: str = Field(
        "",
        description="At the run's end push its newest checkpoint that passed the gate to this"
        " repository of the hub (user/name).",
    )
    hf_public: bool = Field(False, description="Make a new repository public instead of private.")
    wandb_project: str = Field(
        "",
        description="Log rounds to this project at Weights & Biases, or into files without"
        " wandb.key.",
    )


class RunSettings(FlatSettings):
    """All settings of a run. One optimizer step is one update of the policy."""

    policy: PolicyName = Field(
        "smolvla",
        description=f"Policy class of LeRobot: {', '.join(FAMILIES)}; or one of another package, as"
        " lerobot_policy_mine:mine.",
    )
    model_name: Annotated[str, ByFamily(lambda family: family.base)] = Field(
        "lerobot/smolvla_base",
        description="Model to start from: a name on the hub, a name under the machines' [models],"
        " or one that is built from the seed and shaped by the recordings ('new' has the family's"
        " usual size; 'tiny' and 'tiny-wide' are small, for a CPU).",
    )
    adapter: AdapterName = Field(
        "none",
        description="What trains and travels: the policy itself, or with 'lora' (which needs"
        " zk0d[lora]) small matrices beside layers of a policy that stays as it is.",
    )
    adapter_rank: PositiveInt = Field(
        ADAPTER_RANK,
        description="Rank of these matrices; a narrower layer takes its width.",
    )
    seed: NonNegativeInt = Field(42, description="Fixes initial weights, sampling and evaluation.")
    normalize_by: NormalizeBy = Field(
        "cohort",
        description="The statistics that normalize a node's states and actions: those of all nodes,"
        " of its robot type, or its own (for arms that are calibrated otherwise).",
    )
    start_from: str = Field(
        "",
        description="Start with a release's weights: 'latest', a run's name for its best, or"
        " 'RUN/ROUND'; 'latest-or-base' is the base model until there is a release.",
    )
    resume: str = Field(
        "", description="Resume this run after its last committed round (zk0bot run --resume)."
    )
    dataset_uri: str = Field(
        "", description="One dataset for every node; only demos and simulations accept it."
    )
    rounds: RoundsSettings = RoundsSettings()
    training: TrainingSettings = TrainingSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    aggregation: AggregationSettings = AggregationSettings()
    admission: AdmissionSettings = AdmissionSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    release: ReleaseSettings = ReleaseSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        rule, least = self.aggregation.rule, LEAST_UPDATES.get(self.aggregation.rule, 1)
        if self.rounds.min_fit_clients < least:
            raise ValueError(f"{rule} needs min-fit-clients of at least {least}")
        base = family_of(self.policy).base
        if self.model_name == NEW != base:
            raise ValueError(
                f"{self.policy} starts from a pretrained model and cannot be new; take"
                f" model-name={base}"
            )
        if self.adapter == "none" and self.adapter_rank != ADAPTER_RANK:
            raise ValueError("adapter-rank is an adapter's; add adapter=lora, or leave it out")
        if self.adapter != "none" and not family_of(self.policy).adapts:
            able = " and ".join(name for name, family in FAMILIES.items() if family.adapts)
            raise ValueError(
                f"adapter: LeRobot does not say which layers of {self.policy} to adapt, it does of"
                f" {able}; leave it out, which trains the policy itself"
            )
        if self.training.backbone_lr_factor != 1.0 and not family_of(self.policy).backbone:
            raise ValueError(f"backbone-lr-factor: {self.policy} trains no backbone; leave it out")
        if 60 * self.training.round_minutes >= self.rounds.round_deadline:
            raise ValueError(
                f"round-minutes = {self.training.round_minutes:g} asks for"
                f" {60 * self.training.round_minutes:g} s of training, and round-deadline ="
                f" {self.rounds.round_deadline:g} s leaves no time to send an update; raise"
                " round-deadline, or lower round-minutes"
            )
        if self.dataset_uri:
            DatasetUri.parse(self.dataset_uri)
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """The same with what its policy decides: each of these values that is not given."""
        return super().parse(cls._without_auto(values), where=where)._filled()

    @classmethod
    def _without_auto(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        auto = {key for key, value in cls.flat_defaults().items() if value == AUTO}
        return {
            key: cls._without_auto(value) if isinstance(value, Mapping) else value
            for key, value in values.items()
            if value != AUTO or key.replace("_", "-") not in auto
        }

    def _filled(self) -> Self:
        """Fill in what was not given; it still counts as not given."""

        def filled(table: Any) -> Any:
            usual = {
                name: mark.of(self)
                for name, mark in by_run(type(table)).items()
                if name not in table.model_fields_set
            }
            values = {name: getattr(table, name) for name in type(table).model_fields} | usual
            return table.model_construct(table.model_fields_set, **values)

        tables = {name: filled(getattr(self, name)) for name in self.tables()}
        made: Self = filled(self.model_copy(update=tables))
        return made

    @classmethod
    def flat_defaults(cls) -> dict[str, Scalar]:
        """What each key says where nobody says anything."""
        marked = [*by_run(cls), *(n for t in cls.tables().values() for n in by_run(t))]
        return cls().to_flat() | {name.replace("_", "-"): AUTO for name in marked}

    @property
    def total_steps(self) -> int:
        """Optimizer steps per node over the whole run: the length of the learning-rate cosine."""
        return self.rounds.num_server_rounds * self.training.local_steps

    def check_end(self, where: str, table: str = "") -> None:
        """Refuse, before a run begins, what would fail or be for nothing at its end.

        This is not part of reading settings, because those of past runs are read, too.

        Parameters
        ----------
        table
            The dotted path of the settings' table with a dot at its end; empty for a command line.

        Raises
        ------
        ConfigError
            Naming the key.
        """
        if self.model_name.startswith(("/", "~", ".")):
            raise wrong(
                where,
                f"{table}model-name",
                f"{self.model_name!r} is a path, which every checkpoint would name; map a name to"
                " it under [models]",
            )
        if self.release.hf_repo_id:
            try:
                check_repository(self.release.hf_repo_id)
            except ValueError as error:
                raise wrong(where, f"{table}hf-repo-id", str(error)) from None
            if self.rounds.num_server_rounds < self.release.checkpoint_interval:
                raise wrong(
                    where,
                    f"{table}checkpoint-interval",
                    f"the run has fewer rounds than {self.release.checkpoint_interval}"
                    f" ({self.rounds.num_server_rounds}), so hf-repo-id would get nothing; lower"
                    " it, or leave it out",
                )
            if not self.evaluation.eval_frequency:
                raise wrong(
                    where,
                    f"{table}eval-frequency",
                    "0 evaluates nothing, and hf-repo-id needs a checkpoint that was evaluated and"
                    " passed the gate; set it to 1 or more",
                )
        elif self.release.hf_public:
            raise wrong(
                where,
                f"{table}hf-public",
                "hf-public needs hf-repo-id; set it, or leave hf-public out",
            )
        if self.release.wandb_project and not _is_project(self.release.wandb_project):
            raise wrong(
                where,
                f"{table}wandb-project",
                f"{self.release.wandb_project!r} is not a project name of W&B, which has 1 to 128"
                f" characters and none of {' '.join(_NOT_IN_PROJECTS)}",
            )

    def check_stays(self, where: str) -> None:
        """Refuse what would send something out, where nothing is ever sent.

        Raises
        ------
        ConfigError
            Naming the key.
        """
        for name in ("hf_repo_id", "hf_public", "wandb_project"):
            if getattr(self.release, name):
                raise wrong(
                    where,
                    name.replace("_", "-"),
                    f"a {where} sends nothing out; leave it out, and send a checkpoint with zk0bot"
                    " push",
                )

    def check_comparable(self, where: str) -> None:
        """Refuse what would compare policies by other statistics or at other steps.

        Raises
        ------
        ConfigError
            Naming the key.
        """
        if self.normalize_by != "cohort":
            raise wrong(
                where,
                "normalize-by",
                f"a {where} normalizes all recordings alike, so that its policies can be compared;"
                " leave it out, or use zk0bot simulate",
            )
        if self.training.round_minutes:
            raise wrong(
                where,
                "round-minutes",
                f"a {where} compares policies at equal steps; leave it out, or use zk0bot simulate",
            )

    def public(self) -> dict[str, Scalar]:
        """The same without a folder of this machine, for a reader elsewhere."""
        local = self.dataset_uri.startswith("local:")
        return self.to_flat() | ({"dataset-uri": "local:"} if local else {})


def by_run(table: type[Settings]) -> dict[str, ByRun]:
    """The settings of a table whose usual value follows from others, by name."""
    return {
        name: mark
        for name, field in table.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, ByRun)
    }


#: As wandb.Settings has it, which takes a second to import.
_NOT_IN_PROJECTS = "/\\#?%:"


def _is_project(name: str) -> bool:
    return 0 < len(name.strip()) <= 128 and not set(name) & set(_NOT_IN_PROJECTS)


#: Other spellings, most of them zk0's, that are not just an underscore for a dash.
_RENAMED = {
    "eval-batches": "eval-frames",
    "local-epochs": "local-steps",
    "num-rounds": "num-server-rounds",
    "rounds": "num-server-rounds",
}

#: Settings of version 0.1 that are no more, and what there is in their place.
REMOVED = {
    "eval-mode": "eval-frames = 0 evaluates every frame",
    "high-loss-multiplier": "adaptive-lr-enabled fixes it",
    "lr-boost-factor": "adaptive-lr-enabled fixes it",
    "loss-std-threshold": "adaptive-mu-enabled fixes it",
    "mu-adjust-factor": "adaptive-mu-enabled fixes it",
    "max-adjust-factor": "adaptive-mu-enabled fixes it",
    "mu-min": "adaptive-mu-enabled fixes it",
    "mu-halving-rounds": "halving mu by the clock helped no run",
    "cosine-warm-restarts-t-0": "scheduler-type = cosine-warm-restarts fixes it",
    "cosine-warm-restarts-t-mult": "scheduler-type = cosine-warm-restarts fixes it",
    "stall-patience": "scheduler-type = reduce-on-plateau fixes it",
    "eta-min": "scheduler-type fixes it",
    "eval-episodes": "eval-frames limits an evaluation, learner.holdout-episodes names episodes",
    "round-deadline-factor": "round-deadline ends a round",
    "spike-threshold": "a rise of the loss by 0.5 is a spike",
    "trim-fraction": "trimmed-mean leaves out a quarter at each end",
    "variate-max-age": "a node's mean gradient counts for 20 rounds",
    "strike-cooldown": "a node that max-strikes leaves out sits out ten rounds",
    "use-wandb": "wandb-project names where to log to, and is empty for nowhere",
}


def run_key(key: str) -> str:
    """The key of today for ``key`` as zk0 or a hurried hand spelled it.

    Raises
    ------
    ConfigError
        If there is no such setting; names the nearest one, or what became of it.
    """
    known = known_keys(RunSettings)
    dashed = key.replace("_", "-")
    if dashed in known:
        return dashed
    if dashed in _RENAMED:
        raise ConfigError(f"run setting '{key}' is now '{_RENAMED[dashed]}'.")
    if dashed in REMOVED:
        raise ConfigError(
            f"run setting '{key}' was removed ({REMOVED[dashed]}); leave it out.",
        )
    raise ConfigError(f"unknown run setting '{key}'{suggest(key, known)}.")


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Parse ``"key=value key2=value2"`` texts, as ``zk0bot run -c`` takes them.

    Values are TOML; a text without quotes is taken as it is. Keys in zk0's old spelling are mapped.
    """
    return {run_key(key): value for key, value in parse_words(texts, "run setting")}


def run_settings(values: Mapping[str, Any], *, where: str = "run settings") -> RunSettings:
    """Validate a flat mapping of run settings, for example Flower's run config."""
    return RunSettings.parse({run_key(key): value for key, value in values.items()}, where=where)


def stored_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """A past run's flat settings in today's keys: what was removed is gone, what is new is off."""
    kept = {key: value for key, value in values.items() if key not in {*REMOVED, "local-epochs"}}
    if values.get("local-epochs"):
        kept["local-steps"] = values["local-epochs"]
    if not values.get("use-wandb", True):
        kept["wandb-project"] = ""
    if values.get("eval-mode") == "full":
        kept["eval-frames"] = 0
    # Runs began without it before it was there.
    return {"drift-correction": "none", "normalize-by": "cohort"} | kept


def _is_run(values: dict[str, Scalar]) -> dict[str, Scalar]:
    try:
        run_settings(values, where="run")
    except ConfigError as error:
        raise ValueError(error.message) from None
    return values


#: Some run settings in a machine's file: flat keys as ``zk0bot run -c`` takes them.
RunTable = Annotated[
    dict[str, Scalar],
    AfterValidator(_is_run),
    WithJsonSchema(RunSettings.flat_schema()),
]
