"""The settings of a training run, in Flower's flat spelling.

``pyproject.toml`` lists every key with its default, because a SuperLink refuses overrides of keys
that the bundle does not name; a test keeps the two equal. Flower's values are int, float, bool and
str, so an optional setting has a sentinel default (``""`` or ``0``), never a missing key.
"""

from __future__ import annotations

import shlex
import tomllib
import warnings
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from zk0d.config.base import Settings, known_keys, suggest, wrong
from zk0d.config.names import DatasetUri, check_repository
from zk0d.errors import ConfigError

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class RunSettings(Settings):
    """What a run trains, how, and with whom. One optimizer step is one update of the policy."""

    policy: Literal["smolvla", "act"] = Field("smolvla", description="Policy class of LeRobot.")
    model_name: str = Field(
        "lerobot/smolvla_base",
        description="Where the weights start: a hub name, a name that the machines' [models] table"
        " maps to a folder, or 'tiny' or 'tiny-wide' (small policies built from the seed, for a"
        " CPU).",
    )
    seed: NonNegativeInt = Field(42, description="Fixes initial weights, sampling and evaluation.")

    num_server_rounds: PositiveInt = Field(20, description="Rounds to train.")
    local_steps: NonNegativeInt = Field(60, description="Optimizer steps a node takes per round.")
    local_epochs: NonNegativeInt = Field(
        0, description="Deprecated name of local-steps (zk0 called steps epochs); 0 means unset."
    )
    batch_size: PositiveInt = Field(32, description="Frames per optimizer step.")
    initial_lr: PositiveFloat = Field(1e-4, description="Peak learning rate.")
    warmup_steps: NonNegativeInt = Field(
        20, description="Global steps of linear warm-up, once at the start of the run."
    )
    final_lr_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.05, description="Where the one cosine over the whole run ends, as a fraction of the peak."
    )
    weight_decay: NonNegativeFloat = Field(1e-10, description="AdamW's decoupled weight decay.")
    grad_clip_norm: PositiveFloat = Field(10.0, description="Global gradient norm limit.")
    proximal_mu: NonNegativeFloat = Field(
        0.0, description="FedProx's mu; 0 switches it off (it hurts on SoReach)."
    )

    scheduler_type: Literal["cosine", "cosine-warm-restarts", "reduce-on-plateau"] = Field(
        "cosine", description="How the learning rate goes over the rounds."
    )
    cosine_warm_restarts_t_0: PositiveInt = Field(
        15, description="Rounds of the first cosine of cosine-warm-restarts."
    )
    cosine_warm_restarts_t_mult: PositiveInt = Field(
        2, description="Each next cosine of cosine-warm-restarts is so many times as long."
    )
    eta_min: PositiveFloat = Field(
        5e-7, description="Lowest learning rate of cosine-warm-restarts and reduce-on-plateau."
    )
    stall_patience: PositiveInt = Field(
        5, description="Evaluations without a better loss after which reduce-on-plateau halves."
    )
    dynamic_training_decay: bool = Field(
        False, description="Lower learning rate and mu when the evaluated loss stalls."
    )
    adaptive_lr_enabled: bool = Field(
        False, description="Boost the learning rate of nodes whose loss is far above the mean."
    )
    high_loss_multiplier: Annotated[float, Field(gt=1.0)] = Field(
        2.0, description="Far above: more than so many times the mean of the nodes' losses."
    )
    lr_boost_factor: Annotated[float, Field(ge=1.0)] = Field(
        1.15, description="What such a node's learning rate is multiplied by."
    )
    adaptive_mu_enabled: bool = Field(
        False, description="Raise mu when the nodes' losses lie far apart."
    )
    loss_std_threshold: PositiveFloat = Field(
        1.2, description="Far apart: a standard deviation of the nodes' losses above this."
    )
    mu_adjust_factor: Annotated[float, Field(ge=1.0)] = Field(
        1.05, description="What mu is then multiplied by, each round."
    )
    mu_min: NonNegativeFloat = Field(0.001, description="Adjustments never lower mu below this.")
    max_adjust_factor: Annotated[float, Field(ge=1.0)] = Field(
        1.05, description="Most that an adjustment may raise mu by in one round."
    )
    mu_halving_rounds: NonNegativeInt = Field(
        0, description="Halve mu every so many rounds; 0 never (zk0: 10)."
    )
    spike_threshold: NonNegativeFloat = Field(
        0.5,
        description="A rise of the evaluated loss over two evaluations by more than this halves the"
        " learning rate for the round and suspends boosts; 0 switches it off.",
    )
    rollback_factor: NonNegativeFloat = Field(
        0.0,
        description="Go back to the best round's weights after two evaluations in a row with a loss"
        " above so many times the best; 0 never, else more than 1.",
    )
    early_stopping_patience: NonNegativeInt = Field(
        0, description="End the run after so many evaluations without a better loss; 0 never."
    )

    uplink_codec: Literal["fp32", "bf16", "int8", "int4"] = Field(
        "int8", description="How nodes encode updates; what is lost on the way is sent later."
    )
    downlink_codec: Literal["fp32", "bf16"] = Field(
        "bf16", description="How weights are sent to the nodes; the server's own are float32."
    )

    aggregation: Literal["mean", "trimmed-mean", "median"] = Field(
        "mean", description="How updates become one: by samples, or robustly by coordinate."
    )
    trim_fraction: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        0.25, description="Share of the nodes that trimmed-mean leaves out at each end."
    )
    norm_clip_factor: NonNegativeFloat = Field(
        0.0, description="Shorten updates to so many times the round's median norm; 0 never."
    )
    norm_outlier_factor: NonNegativeFloat = Field(
        5.0, description="Refuse updates longer than so many times the round's median; 0 never."
    )
    max_update_ratio: NonNegativeFloat = Field(
        1.0, description="Refuse updates longer than so many times the weights' norm; 0 never."
    )
    max_strikes: NonNegativeInt = Field(
        3, description="Refused updates after which a node sits out; 0 never."
    )
    strike_cooldown: PositiveInt = Field(10, description="Rounds that such a node sits out.")
    server_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.5, description="FedAvgM's momentum of the server; 0 is plain FedAvg."
    )
    server_nesterov: bool = Field(False, description="Nesterov's momentum in place of FedAvgM's.")
    server_learning_rate: PositiveFloat = Field(1.0, description="Scale of the server's step.")
    fraction_fit: Fraction = Field(1.0, description="Share of the online nodes asked each round.")
    min_fit_clients: PositiveInt = Field(
        2, description="Nodes that must be online to start a round, and answer for it to count."
    )
    round_deadline: PositiveFloat = Field(3600.0, description="Seconds a round may take.")
    round_deadline_factor: NonNegativeFloat = Field(
        0.0,
        description="End a round after so many times the last round's median answer, at least"
        " 10 s; 0 never.",
    )
    node_wait: PositiveFloat = Field(
        600.0, description="Seconds to wait for min-fit-clients nodes before the run gives up."
    )

    eval_frequency: NonNegativeInt = Field(
        1, description="Evaluate every so many rounds, and the last; 0 never."
    )
    eval_mode: Literal["quick", "full"] = Field(
        "quick", description="quick: a stratified sample of frames; full: every frame."
    )
    eval_frames: PositiveInt = Field(256, description="Frames per dataset of a quick evaluation.")
    eval_episodes: NonNegativeInt = Field(
        0, description="Use only the first so many held-out episodes; 0 uses all."
    )
    eval_rollouts: NonNegativeInt = Field(
        0, description="Closed-loop episodes per evaluation where a simulator exists; 0 runs none."
    )

    evaluate_on_nodes: bool = Field(
        False,
        description="Let each node evaluate the weights that a round begins with on its own"
        " held-out episodes (learner.holdout-episodes in its settings).",
    )

    keep_rounds: PositiveInt = Field(
        3, description="Committed round folders kept on disk, besides the best."
    )
    checkpoint_interval: NonNegativeInt = Field(
        0, description="Write a checkpoint every so many rounds; 0 only at the end and of the best."
    )
    keep_checkpoints: PositiveInt = Field(
        3, description="Checkpoints of a run kept on disk, besides the best and the latest release."
    )
    hf_repo_id: str = Field(
        "",
        description="At the run's end push its last checkpoint, if it passed the gate, to this"
        " repository of the hub (user/name).",
    )
    hf_public: bool = Field(
        False, description="A repository that this push makes is public; else private."
    )
    use_wandb: bool = Field(
        False, description="Log rounds to Weights & Biases; without wandb.key into files."
    )
    wandb_project: str = Field("zk0d", description="The project there.")
    start_from: str = Field(
        "",
        description="Begin with the weights of a release instead of the model's: 'latest', or a"
        " run's name for its best.",
    )
    resume: str = Field(
        "", description="Go on with this run from its last committed round (zk0bot run --resume)."
    )
    dataset_uri: str = Field(
        "", description="One dataset for every node; only demos and simulations accept it."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.local_epochs and "local_steps" in self.model_fields_set and self.local_steps:
            default = RunSettings.model_fields["local_steps"].default
            if self.local_steps not in (default, self.local_epochs):
                raise ValueError("local-steps and its old name local-epochs differ; give one")
        if self.aggregation == "trimmed-mean" and self.min_fit_clients < 3:
            raise ValueError("trimmed-mean needs min-fit-clients of at least 3")
        if 0.0 < self.rollback_factor <= 1.0:
            raise ValueError("rollback-factor must be more than 1, or 0 for never")
        if not self.local_epochs and not self.local_steps:
            raise ValueError("local-steps must be at least 1")
        if self.dataset_uri:
            DatasetUri.parse(self.dataset_uri)
        return self

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps per node and round, whichever name they were given by."""
        if self.local_epochs:
            warnings.warn(
                "local-epochs is the old name of local-steps; use local-steps.",
                FutureWarning,
                stacklevel=2,
            )
            return self.local_epochs
        return self.local_steps

    @property
    def total_steps(self) -> int:
        """Optimizer steps per node over the whole run: the length of the learning-rate cosine."""
        return self.num_server_rounds * self.steps_per_round

    def to_flat(self) -> dict[str, str | int | float | bool]:
        """The settings as Flower carries them: dashed keys, scalar values."""
        return self.model_dump(by_alias=True)

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
        if self.hf_repo_id:
            try:
                check_repository(self.hf_repo_id)
            except ValueError as error:
                raise wrong(where, f"{table}hf-repo-id", str(error)) from None
            if self.num_server_rounds < self.checkpoint_interval:
                raise wrong(
                    where,
                    f"{table}checkpoint-interval",
                    f"the run has fewer rounds than {self.checkpoint_interval}"
                    f" ({self.num_server_rounds}), so hf-repo-id would get nothing; lower it, or"
                    " leave it out",
                )
            if not self.eval_frequency:
                raise wrong(
                    where,
                    f"{table}eval-frequency",
                    "0 evaluates nothing, and hf-repo-id gets only what was evaluated and passed"
                    " the gate; set it to 1 or more",
                )
        elif self.hf_public:
            raise wrong(where, f"{table}hf-public", "no hf-repo-id says what would be public")
        if self.use_wandb and not _is_project(self.wandb_project):
            raise wrong(
                where,
                f"{table}wandb-project",
                f"{self.wandb_project!r} is no project of W&B, which has 1 to 128 characters and"
                f" none of {' '.join(_NOT_IN_PROJECTS)}",
            )

    def check_stays(self, where: str) -> None:
        """Refuse what would send something out, where nothing is ever sent.

        Raises
        ------
        ConfigError
            Naming the key.
        """
        for name in ("hf_repo_id", "hf_public", "use_wandb"):
            if getattr(self, name):
                raise wrong(
                    where,
                    name.replace("_", "-"),
                    f"a {where} sends nothing out; leave it out, and send a checkpoint with zk0bot"
                    " push",
                )

    def public(self) -> dict[str, str | int | float | bool]:
        """The same for who is elsewhere: without a folder of this machine."""
        local = self.dataset_uri.startswith("local:")
        return self.to_flat() | ({"dataset-uri": "local:"} if local else {})


#: As wandb.Settings has it, which takes a second to import.
_NOT_IN_PROJECTS = "/\\#?%:"


def _is_project(name: str) -> bool:
    return 0 < len(name.strip()) <= 128 and not set(name) & set(_NOT_IN_PROJECTS)


#: zk0's spellings that are not just an underscore for a dash.
_RENAMED = {
    "eval-batches": "eval-frames",
    "num-rounds": "num-server-rounds",
    "rounds": "num-server-rounds",
}


def run_key(key: str) -> str:
    """The key of today for ``key`` as zk0 or a hurried hand spelled it.

    Raises
    ------
    ConfigError
        If there is no such setting; names the nearest one.
    """
    known = known_keys(RunSettings)
    dashed = key.replace("_", "-")
    if dashed in known:
        return dashed
    if dashed in _RENAMED:
        raise ConfigError(f"run setting '{key}' is now '{_RENAMED[dashed]}'.")
    raise ConfigError(f"unknown run setting '{key}'{suggest(key, known)}.")


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Parse ``"key=value key2=value2"`` texts, as ``zk0bot run -c`` takes them.

    Values are TOML; a text without quotes is taken as it is. Keys in zk0's old spelling are mapped.
    """
    overrides: dict[str, Any] = {}
    for text in texts:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"run settings {text!r} cannot be read: {error}.") from None
        for word in words:
            key, equals, raw = word.partition("=")
            if not equals or not key:
                raise ConfigError(f"run setting {word!r} is not of the form key=value.")
            overrides[run_key(key.strip())] = _value(raw.strip())
    return overrides


def _value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def run_settings(values: Mapping[str, Any], *, where: str = "run settings") -> RunSettings:
    """Validate a flat mapping of run settings, for example Flower's run config."""
    return RunSettings.parse({run_key(key): value for key, value in values.items()}, where=where)
