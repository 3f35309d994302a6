"""What a coordinator says, signed, of a release that its nodes may fetch: its files, what it is.

The text is signed and kept as it came, so that nothing depends on how JSON is written. Only names
of LeRobot's layout stand in it: no code, no pickle, and no way out of the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from zk0d.config.names import GROUPS_FOLDER, VLM_FOLDER
from zk0d.errors import ConfigError
from zk0d.machine import release_key

#: In the folder of a release that was fetched: the manifest as it came, and who signed it.
FILE = "release.json"
#: What of a text's kind is signed with it.
_RELEASE, _OFFER = "release", "offer"
#: No manifest and no offer is longer.
LONGEST_MANIFEST, LONGEST_OFFER = 2**18, 2**25
MOST_FILES = 500

_TENSORS = r"(?:json|safetensors)"
_WORD = r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*"
_PROCESSORS = rf"policy_(?:pre|post)processor\w*\.{_TENSORS}"
#: LeRobot's files of a policy, the card, the figures and the origin; a group's processors; settings
#: and tokenizer of a model that the policy is built on.
_LAYOUT = re.compile(
    rf"config\.json|train_config\.json|model\.safetensors|{_PROCESSORS}"
    r"|README\.md|LICENSE|metrics\.json|provenance\.json|training\.png"
    rf"|{GROUPS_FOLDER}/[a-z0-9_-]{{1,64}}/{_PROCESSORS}"
    rf"|{VLM_FOLDER}/{_WORD}/{_WORD}\.(?:json|txt|model|jinja|safetensors)",
    re.ASCII,
)
RUN = re.compile(r"[A-Za-z0-9-]{1,64}")


def is_of_layout(path: str) -> bool:
    """Whether a file of this name, relative to a release's folder, may be sent and taken."""
    return len(path) <= 200 and _LAYOUT.fullmatch(path) is not None


def _place(value: str) -> str:
    if not is_of_layout(value):
        raise ValueError(f"{value!r} is not a file of LeRobot's layout")
    return value


def _run(value: str) -> str:
    if not RUN.fullmatch(value):
        raise ValueError(f"{value!r} is not a run's name")
    return value


class Told(BaseModel):
    """What travels; a newer coordinator may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ReleaseFile(Told):
    """One file."""

    path: Annotated[str, AfterValidator(_place)]
    size: NonNegativeInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class OnNodes(Told):
    """How nodes found that a release changed since its run's beginning, on their own episodes.

    Attributes
    ----------
    nodes
        The change of each node's held-out loss, by name; below zero it is better.
    change, spread
        Of their mean by frames.
    """

    nodes: dict[str, float]
    change: float
    spread: float | None = None


class Release(Told):
    """A release.

    Attributes
    ----------
    lerobot, zk0d
        The versions that wrote it.
    license
        Of the weights, as its card says.
    data_licenses
        Of the held-out recordings, by name. What the contributors' recordings are under is known to
        their owners.
    robot_types
        Those that its statistics are of.
    passed, accepted
        Whether the gate let it pass; and why a person took it nevertheless.
    loss, baseline, losses, success
        Of its own round on the held-out recordings, and of round 0.
    judged_by, on_nodes
        Whose recordings the gate went by, and what the nodes found on theirs.
    comparable
        The same for releases whose losses can be compared.
    """

    version: Literal[1] = 1
    run: Annotated[str, AfterValidator(_run)]
    round: NonNegativeInt
    began: str = ""
    policy: str
    base_model: str = ""
    lerobot: str = ""
    zk0d: str = ""
    license: str = ""
    data_licenses: dict[str, str] = Field(default_factory=dict)
    robot_types: tuple[str, ...] = ()
    contributors: NonNegativeInt = 0
    passed: bool
    accepted: str = ""
    reasons: tuple[str, ...] = ()
    loss: float | None = None
    baseline: float | None = None
    losses: dict[str, float | None] = Field(default_factory=dict)
    success: float | None = None
    judged_by: str = "coordinator"
    on_nodes: OnNodes | None = None
    comparable: str = ""
    files: Annotated[tuple[ReleaseFile, ...], Field(min_length=1, max_length=MOST_FILES)]

    @property
    def name(self) -> str:
        """``RUN/ROUND``."""
        return f"{self.run}/{self.round}"

    @property
    def is_released(self) -> bool:
        """Whether the gate or a person let it pass."""
        return self.passed or bool(self.accepted)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def folder_in(self, home: Path) -> Path:
        """Where it lies beneath a folder of releases."""
        return home / self.run / f"checkpoint_round_{self.round}"


class SignedRelease(Told):
    """A manifest as it came."""

    text: Annotated[str, Field(max_length=LONGEST_MANIFEST)]
    signature: Annotated[str, Field(max_length=500)]

    @classmethod
    def of(cls, release: Release, key: Path) -> Self:
        """Sign a manifest with the coordinator's key."""
        text = release.model_dump_json()
        return cls(text=text, signature=release_key.sign(key, _RELEASE, text))

    @property
    def name(self) -> str:
        """What it calls itself, though it may be refused; empty if nothing that can be read."""
        try:
            content: Any = json.loads(self.text)
            return f"{_run(str(content['run']))}/{int(content['round'])}"
        except (ValueError, KeyError, TypeError):
            return ""

    @property
    def _called(self) -> str:
        return f"release {self.name}" if self.name else "a release"

    def read(self) -> Release:
        """The manifest; raises :class:`ConfigError` with what in it is refused."""
        try:
            release = Release.model_validate_json(self.text)
        except ValidationError as error:
            raise ConfigError(
                f"{self._called}: its manifest is refused ({_first(error)}); ask the"
                " coordinator's operator.",
                reason="bad_manifest",
            ) from None
        if len({file.path for file in release.files}) < len(release.files):
            raise ConfigError(
                f"release {release.name}: its manifest is refused (it names a file twice); ask the"
                " coordinator's operator.",
                reason="bad_manifest",
            )
        return release

    def check(self, key: str) -> None:
        """Check the signature; raises :class:`ConfigError` if it is not this key's."""
        try:
            release_key.check(key, _RELEASE, self.text, self.signature)
        except ValueError:
            raise ConfigError(
                f"{self._called}: its manifest is not signed by the coordinator's key"
                f" {release_key.fingerprint(key)[:16]}; nothing of it is used; ask the"
                " coordinator's operator.",
                reason="wrong_signature",
            ) from None


class Offer(Told):
    """What a coordinator offers at a moment, to the node that asked.

    Attributes
    ----------
    nonce
        The number of the node's request, so that no earlier offer counts as this one.
    latest, best
        Names of releases; empty if there is none.
    runs
        The best of each run, by the run.
    preparing
        How many checkpoints are still to be hashed.
    """

    version: Literal[1] = 1
    nonce: str
    latest: str = ""
    best: str = ""
    runs: dict[str, str] = Field(default_factory=dict)
    preparing: NonNegativeInt = 0
    releases: tuple[SignedRelease, ...] = ()


class SignedOffer(Told):
    """The answer to a node that asks what there is."""

    key: str
    text: Annotated[str, Field(max_length=LONGEST_OFFER)]
    signature: Annotated[str, Field(max_length=500)]

    @classmethod
    def of(cls, offer: Offer, key: Path) -> Self:
        """Sign an offer with the coordinator's key."""
        text = offer.model_dump_json()
        signature = release_key.sign(key, _OFFER, text)
        return cls(key=release_key.public_half(key), text=text, signature=signature)

    def read(self, key: str, nonce: str) -> Offer:
        """The offer, if this key signed it for this request; else ``ValueError``."""
        release_key.check(key, _OFFER, self.text, self.signature)
        offer = Offer.model_validate_json(self.text)
        if offer.nonce != nonce:
            raise ValueError("it is the answer to another request")
        return offer


def sentence_of(values: Mapping[str, float | None]) -> str:
    """Losses by dataset, for people."""
    return ", ".join(
        f"{name} {'not measured' if loss is None else f'{loss:.4f}'}"
        for name, loss in values.items()
    )


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
