"""The settings of a machine: ``client.toml`` of a contributor, ``server.toml`` of a coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from zk0d.config.base import Settings
from zk0d.config.names import Alias, DatasetUriText

DEFAULT_CLIENT_CONFIG = Path("/etc/zk0d/client.toml")
DEFAULT_SERVER_CONFIG = Path("/etc/zk0d/server.toml")
DEFAULT_SOCKET = Path("/run/zk0d/learner.sock")
DEFAULT_EVALUATOR_SOCKET = Path("/run/zk0d/evaluator.sock")


class CacheSettings(Settings):
    """Decoded frames are kept so that each is decoded once."""

    memory_gib: PositiveFloat = Field(
        4.0, description="Frames beyond this many GiB go to a file that is mapped into memory."
    )
    folder: Path | None = Field(
        None, description="Where that file lies; by default the system's folder for such files."
    )
    vision_features: bool = Field(
        True, description="Keep a frozen vision encoder's outputs instead of its pixels."
    )


class EvaluatorSettings(Settings):
    """A process that holds a policy, recordings and a device: the coordinator's evaluator."""

    socket: Path = Field(DEFAULT_EVALUATOR_SOCKET, description="Unix socket it is reached at.")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'.")
    cpu_threads: NonNegativeInt = Field(0, description="Threads of PyTorch; 0 leaves its default.")
    max_bad_frames: NonNegativeInt = Field(
        0, description="Frames that may be unreadable before it reports data_error."
    )
    cache: CacheSettings = CacheSettings()


class LearnerSettings(EvaluatorSettings):
    """The same on a contributor's machine, where it trains."""

    socket: Path = Field(DEFAULT_SOCKET, description="Unix socket it is reached at.")
    accept_run_dataset: bool = Field(
        False, description="Take the dataset from the run: for demos and simulations only."
    )


class ClientSettings(Settings):
    """``client.toml``: what a contributor lends and how it is called."""

    name: Alias = Field(description="What this node is called at the coordinator.")
    dataset_uri: DatasetUriText | None = Field(
        None, description="The recordings: hf:user/name, user/name or local:/folder."
    )
    share_statistics: bool = Field(
        True, description="Answer with mean, std, min and max of state and action when asked."
    )
    cameras: dict[str, str] = Field(
        default_factory=dict, description="This node's camera names, mapped to the policy's."
    )
    models: dict[str, Path] = Field(
        default_factory=dict, description="Model names, mapped to folders on this machine."
    )
    learner: LearnerSettings = LearnerSettings()


class EvaluationDataset(Settings):
    """One held-out dataset of the coordinator; its frames never enter statistics or training."""

    name: Alias = Field(description="What the journal calls it.")
    dataset_uri: DatasetUriText = Field(
        description="The recordings: hf:user/name, user/name or local:/folder."
    )
    simulator: Literal["", "soreach"] = Field(
        "", description="Simulator in which success can be measured in closed loop."
    )
    sector: tuple[NonNegativeInt, PositiveInt] = Field(
        (0, 1), description="SoReach: this dataset's slice of the table, as (index, of how many)."
    )
    cameras: dict[str, str] = Field(
        default_factory=dict, description="Its camera names, mapped to the policy's."
    )


class ServerSettings(Settings):
    """``server.toml``: the coordinator's runs and its evaluator."""

    state: Path = Field(Path("/var/lib/zk0d/server"), description="Runs are kept under it.")
    evaluation: list[EvaluationDataset] = Field(default_factory=list)
    models: dict[str, Path] = Field(
        default_factory=dict, description="Model names, mapped to folders on this machine."
    )
    evaluator: EvaluatorSettings = EvaluatorSettings()
    poll_interval: Annotated[float, Field(ge=0.05, le=10.0)] = Field(
        0.25, description="Seconds between two looks for the nodes' replies."
    )

    @property
    def runs(self) -> Path:
        """The folder with one folder per run."""
        return self.state / "runs"
