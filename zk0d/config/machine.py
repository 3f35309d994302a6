"""The settings of a machine: ``client.toml`` of a contributor, ``server.toml`` of a coordinator."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from zk0d.config.base import Scalar, Settings, wrong
from zk0d.config.datasets import DatasetSettings
from zk0d.config.limits import LimitsSettings
from zk0d.config.names import Alias, Cameras, DatasetUriText, PackagePins
from zk0d.config.ports import METRICS_PORTS
from zk0d.config.run import LATEST_OR_BASE, RunSettings, RunTable, run_settings
from zk0d.errors import ConfigError

DEFAULT_CLIENT_CONFIG = Path("/etc/zk0d/client.toml")
DEFAULT_SERVER_CONFIG = Path("/etc/zk0d/server.toml")
DEFAULT_SOCKET = Path("/run/zk0d/learner.sock")
DEFAULT_CA = Path("/etc/zk0d/tls/ca.crt")
DEFAULT_SECRET = Path("/etc/zk0d/superexec.secret")
DEFAULT_CONTROL_SECRET = Path("/etc/zk0d/control.secret")
DEFAULT_RELEASES = Path("/var/lib/zk0d/releases")
DEFAULT_TRANSFER = Path("/var/lib/zk0d/transfer")
DEFAULT_POLICIES = Path("/var/lib/zk0d/policies")
DEFAULT_EVALUATOR_SOCKET = Path("/run/zk0d/evaluator.sock")
DEFAULT_OWNER = Path("/run/zk0d/owner")
LONGEST_SOCKET = 107  #: bytes; what Linux takes as a unix socket's path

#: The public key that signs the coordinator's releases, beside the certificate of its authority.
RELEASE_KEY = "release.pub"

#: How a SuperExec tells the apps that it starts where their settings or their learner are.
CONFIG_VARIABLE, SOCKET_VARIABLE = "ZK0D_SERVER_CONFIG", "ZK0D_LEARNER_SOCKET"
#: … and where they reach the coordinator, and by whose certificate they know it.
COORDINATOR_VARIABLE, CA_VARIABLE = "ZK0D_COORDINATOR_URL", "ZK0D_COORDINATOR_CA"
#: … and what the owner lends (a :class:`LimitsSettings`), and the folder where bytes are counted.
LIMITS_VARIABLE, LINE_FOLDER_VARIABLE = "ZK0D_LIMITS", "ZK0D_LINE_FOLDER"
#: … and the folder where those of releases are, which the same day has to hold.
RELEASES_LINE_VARIABLE = "ZK0D_RELEASES_LINE_FOLDER"
#: … and where it is said whether the owner needs this machine.
OWNER_VARIABLE = "ZK0D_OWNER_FOLDER"
#: How a SuperNode tells its ClientApps where their learner is, and by which authorities (PEM) they
#: know the coordinator, if not by those of ``coordinator.ca``.
SOCKET_KEY, AUTHORITIES_KEY = "learner-socket", "authorities"

Port = Annotated[int, Field(ge=1, le=65535)]
MirrorUrl = Annotated[
    str, Field(pattern=r"^https?://[^\s/?#@]+[^\s?#@]*[^\s/?#@]$", max_length=200)
]


class CacheSettings(Settings):
    """Decoded frames are kept so that each is decoded once."""

    memory_gib: PositiveFloat = Field(
        4.0,
        description="Keep this many GiB of frames in memory; further frames are mapped from disk.",
    )
    disk_gib: NonNegativeFloat = Field(
        100.0,
        description="Keep this many GiB of frames on disk, also for the next start; a tenth of the"
        " free disk stays free, too. Frames without room are decoded again for each batch. 0 keeps"
        " none.",
    )
    folder: Path | None = Field(
        None,
        description="Where they are kept, in its folder 'frames'; by default zk0d in the user's"
        " folder for caches.",
    )
    vision_features: bool = Field(
        True, description="Keep the outputs of a frozen vision encoder instead of pixels."
    )

    @property
    def place(self) -> Path:
        """The folder, or the one by default: of the user's caches, as the XDG rules name it."""
        if self.folder is not None:
            return self.folder
        caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        # A user without a home has none, either.
        return (caches if caches.is_absolute() else Path(tempfile.gettempdir())) / "zk0d"


_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def check_device(value: str) -> str:
    """``value``, if a device may be called so; else ``ValueError``."""
    if not _DEVICE.fullmatch(value):
        raise ValueError(f"{value!r} is not a device; use auto, cpu, cuda or cuda:N")
    return value


def check_gpu(value: str) -> str:
    """``value``, if it names one GPU; else ``ValueError``."""
    if not re.fullmatch(r"cuda:\d+", value):
        raise ValueError(f"{value!r} is not a GPU; use cuda:N")
    return value


#: In what a policy computes; what trains is float32 in any case.
Precision = Literal["auto", "float32", "bfloat16"]


class MetricsSettings(Settings):
    """Where Prometheus reads this machine's services."""

    host: str = Field("127.0.0.1", description="Address that the services serve metrics at.")
    enabled: bool = Field(True, description="Serve metrics; false opens no port.")


class ReadingSettings(Settings):
    """How recordings are read, by whatever machine or command reads them."""

    max_bad_frames: NonNegativeInt = Field(
        0, description="Unreadable frames to tolerate; with more it reports data_error."
    )
    cache: CacheSettings = CacheSettings()
    policy_packages: PackagePins = Field(
        (),
        description="Packages whose policies may be loaded here, by name and version, such as"
        " ['lerobot_policy_mine==1.2.0']. Their code runs in this process; no run can ask for"
        " another.",
    )


class EvaluatorSettings(ReadingSettings):
    """A process that holds a policy, recordings and a device: the coordinator's evaluator."""

    socket: Path = Field(DEFAULT_EVALUATOR_SOCKET, description="Unix socket of this service.")
    device: Annotated[str, AfterValidator(check_device)] = Field(
        "auto",
        description="'auto', 'cpu', 'cuda' or 'cuda:N'. 'auto' is the GPU if the machine has one;"
        " the CPU never replaces it.",
    )
    precision: Precision = Field(
        "auto",
        description="'float32', 'bfloat16', or 'auto': bfloat16 on a GPU that supports it.",
    )
    cpu_threads: NonNegativeInt = Field(0, description="Threads of PyTorch; 0 leaves its default.")

    @field_validator("socket")
    @classmethod
    def _is_short(cls, value: Path) -> Path:
        length = len(str(value).encode())
        if length > LONGEST_SOCKET:
            raise ValueError(
                f"{value} has {length} bytes, the path of a unix socket {LONGEST_SOCKET} at most"
            )
        return value


class LearnerSettings(EvaluatorSettings):
    """The same on a contributor's machine, where it trains."""

    socket: Path = Field(DEFAULT_SOCKET, description="Unix socket of this service.")
    devices: tuple[Annotated[str, AfterValidator(check_gpu)], ...] = Field(
        (),
        description="GPUs that share each batch, such as ['cuda:0', 'cuda:1']; the first one also"
        " evaluates. Empty: device alone.",
    )
    state: Path = Field(
        Path("/var/lib/zk0d/learner"), description="Folder of what it resumes from after a restart."
    )
    holdout_episodes: NonNegativeInt = Field(
        0,
        description="Number of last episodes to keep out of training, on which runs evaluate"
        " (evaluate-on-nodes): the coordinator gets their losses. 0: none, and nothing is told.",
    )
    accept_run_dataset: bool = Field(
        False, description="Take the dataset from the run: for demos and simulations only."
    )

    @model_validator(mode="after")
    def _devices_are_clear(self) -> Self:
        if self.devices and self.device != "auto":
            raise ValueError("names device and devices; leave one of them out")
        if len(set(self.devices)) != len(self.devices):
            raise ValueError(f"devices names one twice: {', '.join(self.devices)}")
        return self

    @property
    def all_devices(self) -> tuple[str, ...]:
        """What it trains on; the first holds the optimizer."""
        return self.devices or (self.device,)


def is_this_machine(url: str) -> bool:
    """Whether a URL stays on this machine."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


class CoordinatorSettings(Settings):
    """The coordinator that this node belongs to."""

    address: str = Field("", description="HOST:PORT of the coordinator's gateway.")
    ca: Path = Field(DEFAULT_CA, description="Certificate of the coordinator's authority (CA).")
    presence: str = Field(
        "", description="URL of the presence page, if another server than the gateway has it."
    )

    @field_validator("presence")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} does not begin with http:// or https://")
        if value.startswith("http://") and not is_this_machine(value):
            raise ValueError(
                f"{value!r} has no TLS, so anybody could answer in its place; use https, or"
                " loopback"
            )
        return value.rstrip("/")

    @property
    def release_key(self) -> Path:
        """Where an invite's key of releases lies."""
        return self.ca.with_name(RELEASE_KEY)

    @property
    def presence_page(self) -> str:
        """The presence page's URL."""
        return self.presence or f"https://{self.address}/zk0d/v1"

    @field_validator("address")
    @classmethod
    def _has_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if value and not (colon and host and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{value!r} is not HOST:PORT")
        return value


class SupernodeSettings(Settings):
    """The SuperNode: the process that speaks to the coordinator."""

    key: Path = Field(Path("/etc/zk0d/node.key"), description="This node's private key.")
    secret: Path = Field(DEFAULT_SECRET, description="Secret shared with the SuperExec.")
    port: Port = Field(9094, description="Port of its Runtime API, on loopback, for the SuperExec.")
    metrics_port: Port = Field(METRICS_PORTS["supernode"], description="Port of its metrics.")
    state: Path = Field(
        Path("/var/lib/zk0d/supernode"), description="Folder of Flower's own files."
    )
    presence_interval: Annotated[float, Field(ge=1.0, le=300.0)] = Field(
        10.0,
        description="Seconds between two requests to the coordinator's presence page; up to three"
        " times as long while the node is online and no run is under way.",
    )
    zombie_seconds: Annotated[float, Field(ge=5.0)] = Field(
        15.0, description="Restart the SuperNode if the coordinator counts it offline for so long."
    )


class SuperexecSettings(Settings):
    """The SuperExec: starts the apps that are installed here, and no others."""

    metrics_port: Port = Field(
        METRICS_PORTS["client-superexec"],
        description="Port of its metrics, those of the learner included.",
    )
    state: Path = Field(
        Path("/var/lib/zk0d/client-superexec"), description="Folder of Flower's own files."
    )
    poll_interval: Annotated[float, Field(ge=0.05, le=10.0)] = Field(
        0.2,
        description="Seconds between two polls for work; they grow to one while there is none.",
    )


class OwnerSettings(Settings):
    """``zk0d owner``, which looks whether the machine's owner needs it (``[limits]``)."""

    state: Path = Field(
        DEFAULT_OWNER, description="Folder in which it tells the other services what it saw."
    )


class ClientSettings(Settings):
    """``client.toml``: the loans of a contributor and its name."""

    name: Alias = Field(description="This node's name at the coordinator.")
    dataset_uri: DatasetUriText | None = Field(
        None, description="The recordings: hf:user/name, user/name or local:/folder."
    )
    dataset: tuple[DatasetSettings, ...] = Field(
        (), description="Several recordings in place of dataset-uri, a table each."
    )
    share_statistics: bool = Field(
        True,
        description="Send mean, std, min and max of state and action for the run's statistics.",
    )
    share_histograms: bool = Field(
        True,
        description="With share-statistics, and for a policy that normalizes by quantiles: tell how"
        " many frames lie in each part of a joint's range.",
    )
    share_robot: bool = Field(
        True,
        description="Tell robot type and joint names, and with share-statistics the joints' ranges,"
        " so that the coordinator can refuse nodes with other robots.",
    )
    cameras: Cameras = Field(
        default_factory=dict, description="This node's camera names, mapped to the policy's."
    )
    models: dict[str, Path] = Field(
        default_factory=dict, description="Model names, mapped to folders on this machine."
    )
    fetch_models: list[str] = Field(
        default=["lerobot/smolvla_base"],
        description="Models that zk0d fetch downloads from the hub (user/name, or"
        " user/name@REVISION); it skips those under models. 'resnet18' gets ImageNet's weights,"
        " for a new ACT.",
    )
    policies: Path | None = Field(
        None,
        description="Folder of the coordinator's releases that zk0bot policy pull fetches; by"
        " default /var/lib/zk0d/policies, or policies beside a SuperNode's folder of your own.",
    )
    policy_updates: bool = Field(
        False,
        description="Fetch each new release of the coordinator that passed the gate, within"
        " [limits].",
    )
    limits: LimitsSettings = LimitsSettings()
    learner: LearnerSettings = LearnerSettings()
    coordinator: CoordinatorSettings = CoordinatorSettings()
    supernode: SupernodeSettings = SupernodeSettings()
    superexec: SuperexecSettings = SuperexecSettings()
    owner: OwnerSettings = OwnerSettings()
    metrics: MetricsSettings = MetricsSettings()

    @property
    def metrics_ports(self) -> dict[str, int]:
        """The services that show metrics, and where; none if metrics are switched off."""
        ports = {
            "supernode": self.supernode.metrics_port,
            "client-superexec": self.superexec.metrics_port,
        }
        return ports if self.metrics.enabled else {}

    @property
    def policies_folder(self) -> Path:
        """The folder of the coordinator's releases that are here."""
        if self.policies is not None:
            return self.policies
        usual = self.supernode.state == SupernodeSettings.model_fields["state"].default
        return DEFAULT_POLICIES if usual else self.supernode.state.parent / DEFAULT_POLICIES.name

    @model_validator(mode="after")
    def _names_recordings_once(self) -> Self:
        if self.dataset_uri and self.dataset:
            raise ValueError(
                "dataset-uri and [[dataset]] both name recordings; write the one of dataset-uri as"
                " another [[dataset]] table"
            )
        uris = [each.uri for each in self.dataset]
        if twice := [uri for uri in uris if uris.count(uri) > 1]:
            raise ValueError(
                f"two [[dataset]] tables name {twice[0]}; keep one, and raise its weight if its"
                " frames are to be drawn more often"
            )
        return self

    @property
    def lent(self) -> tuple[DatasetSettings, ...]:
        """The recordings that this node lends, however the settings name them."""
        if self.dataset_uri:
            return (DatasetSettings(uri=self.dataset_uri),)
        return self.dataset

    def cameras_of(self, dataset: DatasetSettings) -> dict[str, str]:
        """How the cameras of one of them are mapped."""
        return self.cameras if dataset.cameras is None else dataset.cameras

    def require_dataset(self) -> None:
        """Raise :class:`ConfigError` if no recordings are named, and no run may name any."""
        if not self.lent and not self.learner.accept_run_dataset:
            raise ConfigError(
                "dataset-uri is missing in this node's settings; give it the recordings to train"
                ' on, such as dataset-uri = "local:/home/me/recordings".'
            )


class EvaluationDataset(Settings):
    """One held-out dataset of the coordinator; its frames never enter statistics or training."""

    name: Alias = Field(description="The dataset's name in the journal.")
    dataset_uri: DatasetUriText = Field(
        description="The recordings: hf:user/name, user/name or local:/folder."
    )
    simulator: Literal["", "soreach", "so101"] = Field(
        "", description="Simulator that measures success in closed loop."
    )
    sector: tuple[NonNegativeInt, PositiveInt] = Field(
        (0, 1),
        description="This dataset's slice of the simulator's table, as (index, of how many).",
    )
    calibration: tuple[float, ...] = Field(
        (), description="Offset of each joint of the simulated arm, in its unit; empty: none."
    )
    cameras: Cameras = Field(
        default_factory=dict, description="Its camera names, mapped to the policy's."
    )
    episodes: list[NonNegativeInt] = Field(
        default_factory=list, description="Evaluate on these episodes only; empty: all."
    )


class ServerSuperexecSettings(SuperexecSettings):
    """The same on the coordinator, where it starts the ServerApp."""

    metrics_port: Port = Field(
        METRICS_PORTS["server-superexec"],
        description="Port of its metrics, those of the evaluator included.",
    )
    state: Path = Field(
        Path("/var/lib/zk0d/server/flower"), description="Folder of Flower's own files."
    )


class SuperlinkSettings(Settings):
    """The SuperLink: Flower's server. Loopback only; a gateway lets nodes in."""

    port: Port = Field(8000, description="Its port, on loopback.")
    metrics_port: Port = Field(METRICS_PORTS["superlink"], description="Port of its metrics.")
    state: Path = Field(Path("/var/lib/zk0d/superlink"), description="Folder of its database.")
    roster: Path = Field(
        Path("/etc/zk0d/roster.d"), description="Folder of NAME.pub: the nodes that may join."
    )
    ca: Path = Field(DEFAULT_CA, description="CA certificate.")
    certificate: Path = Field(
        Path("/etc/zk0d/tls/link.crt"), description="Its certificate, for loopback."
    )
    key: Path = Field(Path("/etc/zk0d/tls/link.key"), description="That certificate's key.")
    secret: Path = Field(DEFAULT_SECRET, description="Secret shared with the SuperExec.")
    control_secret: Path = Field(
        DEFAULT_CONTROL_SECRET, description="Secret of Flower's Control API."
    )
    open_control: bool = Field(
        False,
        description="Let every user of this machine use the Control API: for development.",
    )
    presence_port: Port = Field(9480, description="Port of the presence page, on loopback.")
    auto_resume: bool = Field(
        True, description="Resume an interrupted run by itself, for example after a reboot."
    )
    wait_alert_minutes: Annotated[float, Field(ge=0.0)] = Field(
        60.0,
        description="Minutes that a run may wait, for nodes or a disk for example, before an alert"
        " and a line of zk0bot status say so; 0: never.",
    )
    database_limit_mib: PositiveFloat = Field(
        512.0, description="Between runs, rebuild a larger database from the roster."
    )


class GatewaySettings(Settings):
    """nginx before the SuperLink: the only port that nodes reach."""

    port: Port = Field(9443, description="Port that nodes connect to, on every address.")
    address: str = Field(
        "", description="HOST:PORT for invites; by default the certificate's name."
    )
    certificate: Path = Field(
        Path("/etc/zk0d/tls/server.crt"),
        description="The certificate that nodes see: your own, or zk0d's.",
    )
    key: Path = Field(Path("/etc/zk0d/tls/server.key"), description="That certificate's key.")
    body_limit_mib: PositiveInt = Field(64, description="Larger requests are refused (413).")
    requests_per_second: PositiveInt = Field(
        200, description="From one address; more are delayed, then refused (429)."
    )
    connections: PositiveInt = Field(
        64,
        description="At once from one address, besides as many of nodes that wait; more are"
        " refused, and such a node polls.",
    )
    status_page: bool = Field(
        False,
        description="Show run, losses and participation by node at /zk0d/v1/ to every visitor.",
    )


class TransferSettings(Settings):
    """How weights and updates travel between the coordinator and its nodes."""

    folder: Path | None = Field(
        None,
        description="Folder of what is on its way; by default /var/lib/zk0d/transfer, or transfer"
        " in a state folder of your own.",
    )
    limit_gib: PositiveFloat = Field(
        32.0, description="Updates on their way take no more disk; further ones wait."
    )
    message_kib: NonNegativeInt = Field(
        256, description="Weights and updates up to this size stay inside Flower's messages."
    )
    mirrors: Annotated[tuple[MirrorUrl, ...], Field(max_length=8)] = Field(
        (),
        description="URLs of caches that nodes ask for a round's weights before they ask here, such"
        " as https://cache.example/zk0d.",
    )

    @property
    def down(self) -> Path:
        """Where weights lie for the nodes."""
        return self._there / "down"

    @property
    def up(self) -> Path:
        """Where the nodes' pieces of updates arrive."""
        return self._there / "up"

    @property
    def incoming(self) -> Path:
        """Where those are that have not come whole."""
        return self.up / ".incoming"

    @property
    def taken(self) -> Path:
        """Where the ServerApp keeps the pieces of answers that came."""
        return self._there / "taken"

    @property
    def _there(self) -> Path:
        return self.folder or DEFAULT_TRANSFER


class AutorunSettings(Settings):
    """Runs that begin by themselves; with this table in the file they do."""

    min_nodes: PositiveInt = Field(2, description="Nodes that must be online.")
    settle_seconds: Annotated[float, Field(ge=0.0)] = Field(
        30.0,
        description="Seconds that they must have been online, so that late nodes take part, too.",
    )
    pause_minutes: Annotated[float, Field(ge=0.0)] = Field(
        10.0, description="Wait between a run's end and the next start; doubled after each failure."
    )
    run: RunTable = Field(
        default_factory=dict,
        description="Settings of these runs, with the keys of a run. Their start-from is"
        f" '{LATEST_OR_BASE}' unless it is given here.",
    )

    @property
    def run_table(self) -> dict[str, Scalar]:
        """These runs' settings: each continues from the last release, unless they say otherwise."""
        return {"start-from": LATEST_OR_BASE, **self.run}


class PublishSettings(Settings):
    """``zk0d publish``, which sends out what a run's settings ask for."""

    state: Path = Field(
        Path("/var/lib/zk0d/publish"),
        description="Folder for notes of what was sent, and for W&B's files.",
    )
    hf_token: Path = Field(
        Path("/etc/zk0d/hf.token"), description="File of the hub's token, for runs with hf-repo-id."
    )
    wandb_key: Path = Field(
        Path("/etc/zk0d/wandb.key"),
        description="File of W&B's key; without it, figures go into files.",
    )


class ServerSettings(Settings):
    """``server.toml``: the coordinator's runs and its evaluator."""

    state: Path = Field(Path("/var/lib/zk0d/server"), description="Folder of the runs.")
    releases: Path | None = Field(
        None,
        description="Folder of the checkpoints; by default /var/lib/zk0d/releases, or releases in a"
        " state folder of your own.",
    )
    share_releases: bool = Field(
        True, description="Let the roster's nodes fetch the checkpoints (zk0bot policy pull)."
    )
    evaluation: list[EvaluationDataset] = Field(default_factory=list)
    models: dict[str, Path] = Field(
        default_factory=dict, description="Model names, mapped to folders on this machine."
    )
    fetch_models: list[str] = Field(
        default=["lerobot/smolvla_base"],
        description="Models that zk0d fetch downloads from the hub (user/name, or"
        " user/name@REVISION); it skips those under models. 'resnet18' gets ImageNet's weights,"
        " for a new ACT.",
    )
    evaluator: EvaluatorSettings = EvaluatorSettings()
    superlink: SuperlinkSettings = SuperlinkSettings()
    gateway: GatewaySettings = GatewaySettings()
    transfer: TransferSettings = TransferSettings()
    superexec: ServerSuperexecSettings = ServerSuperexecSettings()
    publish: PublishSettings = PublishSettings()
    run: RunTable = Field(
        default_factory=dict,
        description="Settings of every run here, unless the run sets them itself.",
    )
    autorun: AutorunSettings | None = Field(
        None, description="With this table, runs begin by themselves."
    )
    metrics: MetricsSettings = MetricsSettings()
    poll_interval: Annotated[float, Field(ge=0.05, le=10.0)] = Field(
        0.25,
        description="Seconds between two polls for the nodes' answers; they grow to two while none"
        " comes.",
    )

    @property
    def metrics_ports(self) -> dict[str, int]:
        """The services that show metrics, and where; none if metrics are switched off."""
        ports = {
            "superlink": self.superlink.metrics_port,
            "server-superexec": self.superexec.metrics_port,
        }
        return ports if self.metrics.enabled else {}

    @property
    def releases_folder(self) -> Path:
        """The folder of the checkpoints: by default in its evaluator's own state folder."""
        if self.releases is not None:
            return self.releases
        usual = self.state == type(self).model_fields["state"].default
        return DEFAULT_RELEASES if usual else self.state / "releases"

    @property
    def runs(self) -> Path:
        """The folder with one folder per run."""
        return self.state / "runs"

    @property
    def transfers(self) -> TransferSettings:
        """The table ``transfer``, with its folder."""
        usual = self.state == type(self).model_fields["state"].default
        folder = DEFAULT_TRANSFER if usual else self.state / "transfer"
        return self.transfer.model_copy(update={"folder": self.transfer.folder or folder})

    @field_validator("run")
    @classmethod
    def _is_of_every_run(cls, values: dict[str, object]) -> dict[str, object]:
        for key in ("resume", "dataset-uri"):
            if run_settings(values).to_flat()[key]:
                raise ValueError(f"{key} belongs to one run; leave it out")
        return values

    def run_settings(
        self, values: Mapping[str, Any], *, where: str = "run settings"
    ) -> RunSettings:
        """The settings of a run that says ``values``; this coordinator says the rest."""
        return run_settings({**self.run, **values}, where=where)

    def check_run(self, run: RunSettings, where: str, table: str = "") -> None:
        """Refuse, before it begins, a run whose end could not be here what it asks for.

        Parameters
        ----------
        where, table
            As in :meth:`RunSettings.check_end`.

        Raises
        ------
        ConfigError
            Naming the key.
        """
        run.check_end(where, table)
        if run.release.hf_repo_id and not self.evaluation and not run.evaluation.on_nodes:
            raise wrong(
                where,
                f"{table}hf-repo-id",
                "a push needs a checkpoint that passed the gate, and the gate needs held-out"
                " recordings; add an [[evaluation]] table to server.toml, or set"
                " evaluate-on-nodes=true if nodes hold out episodes",
            )
        if run.release.hf_repo_id and not _has_token(self.publish.hf_token):
            raise wrong(
                where,
                f"{table}hf-repo-id",
                f"there is no token of the hub to push with; write one into"
                f" {self.publish.hf_token} (publish.hf-token)",
            )
        if run.release.wandb_project and find_spec("wandb") is None:
            raise wrong(
                where,
                f"{table}wandb-project",
                "wandb is not installed; pip install 'zk0d[wandb]' in zk0d's environment",
            )

    def check_autorun(self, where: str) -> None:
        """The same of the run that begins by itself, if there is one."""
        if self.autorun is not None:
            run = self.run_settings(self.autorun.run_table, where=f"{where}: autorun.run")
            self.check_run(run, where, "autorun.run.")


def _has_token(path: Path) -> bool:
    """Whether the file has something in it, which may be another user's secret; or a login has."""
    from huggingface_hub import get_token

    try:
        if path.stat().st_size > 1:
            return True
    except FileNotFoundError:
        pass
    except OSError:
        return True  # who may not look does not know better
    try:
        return bool(get_token())
    except OSError:
        return False
