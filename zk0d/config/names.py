"""Names that people choose, and the addresses of datasets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field

from zk0d.config.base import suggest
from zk0d.config.families import FAMILIES, PACKAGED, UNTRAINED, packaged
from zk0d.errors import ConfigError, DataError, UsageError

ALIAS_PATTERN = re.compile(r"[a-z0-9-]{1,32}")


def _alias(value: str) -> str:
    if not ALIAS_PATTERN.fullmatch(value):
        raise ValueError(f"a name is 1 to 32 of a-z, 0-9 and '-', not {value!r}")
    return value


def check_alias(value: str) -> str:
    """``value``, if a node may be called so.

    Raises
    ------
    ConfigError
        If not; says what names look like.
    """
    try:
        return _alias(value)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None


#: What a node is called wherever it is shown: nothing else about its owner travels.
Alias = Annotated[str, AfterValidator(_alias)]

#: Without it a folder holds no dataset.
DATASET_FILE = "meta/info.json"


def check_apart(output: Path, option: str) -> None:
    """Refuse to write into recordings: no folder above ``output`` may be a dataset.

    Raises
    ------
    UsageError
        Naming the option and the dataset.
    DataError
        If this process may not look whether a folder is one.
    """
    place = output.resolve()
    for folder in (place, *place.parents):
        try:
            found = (folder / DATASET_FILE).exists()
        except PermissionError:
            raise DataError(
                f"{option}: {output} may lie in recordings: this process may not read {folder}"
                f" (user {os.geteuid()}); run this as a user who may, or name a folder elsewhere."
            ) from None
        if found:
            raise UsageError(
                f"{option}: {output} lies in the recordings at {folder}; name a folder elsewhere."
            )


_HUB_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
#: What settings and playbooks take as a dataset's address, as a whole.
DATASET_PATTERN = rf"(?:local:)?/(?s:.*)|(?:hf:)?{_HUB_NAME}"


@dataclass(frozen=True)
class DatasetUri:
    """Where a dataset is: ``hf:user/name``, ``user/name`` (the same) or ``local:/folder``.

    Only what a person types may be below a home or relative (:meth:`typed`): a service has neither
    that home nor a working folder.
    """

    scheme: str  #: ``hf`` or ``local``
    location: str  #: hub name or folder

    @classmethod
    def parse(cls, text: str) -> DatasetUri:
        """Parse a dataset address; raises ``ValueError`` with the accepted forms."""
        if re.fullmatch(DATASET_PATTERN, text):
            local = text.startswith(("/", "local:"))
            return cls("local" if local else "hf", text.removeprefix("local:" if local else "hf:"))
        if text.startswith(("~", ".", "local:")) and text != "local:":
            raise ValueError(
                f"{text!r} is another folder for each user and place; write the whole path, such as"
                " local:/home/ann/arm"
            )
        raise ValueError(
            f"{text!r} is not a dataset address; write hf:user/name, user/name or local:/folder"
        )

    @classmethod
    def typed(cls, text: str) -> DatasetUri:
        """What a person at a terminal means: an address, or a folder, also relative to this one.

        Raises
        ------
        DataError
            For ``user/name`` where ``user`` is a folder here without ``name``: a folder that was
            mistyped is no business of the hub's.
        UsageError
            If it is neither.
        """
        plain = text.removeprefix("local:")
        try:
            path = Path(plain).expanduser()
        except RuntimeError:
            raise UsageError(
                f"{text}: there is no home of {plain.partition('/')[0][1:] or 'yours'}; write the"
                " whole path."
            ) from None
        named = plain != text or plain.startswith((".", "/", "~"))
        if plain and not plain.startswith("hf:"):
            if named or plain.count("/") != 1 or _is_here(path):
                return cls("local", str(path.resolve()))
            if path.parent.is_dir():
                raise DataError(
                    f"{text}: there is no folder {path.resolve()}; correct the path, or write"
                    f" hf:{text} for the hub's dataset of that name."
                )
        try:
            return cls.parse(text)
        except ValueError as error:
            raise UsageError(f"{error}.") from None

    @property
    def fetched(self) -> bool:
        """Whether it comes from elsewhere, and has to be downloaded first."""
        return self.scheme != "local"

    @property
    def folder(self) -> Path:
        """The folder of a ``local:`` dataset."""
        if self.fetched:
            raise ValueError(f"{self} is not on this machine")
        return Path(self.location)

    def __str__(self) -> str:
        return f"{self.scheme}:{self.location}"


def _is_here(path: Path) -> bool:
    """Whether it exists, or lies in a folder that this process may not look into."""
    try:
        return path.exists()
    except PermissionError:
        return True


def _dataset_uri(value: str) -> str:
    address = DatasetUri.parse(value)
    return str(address) if address.scheme == "local" else value


#: The text of a valid dataset address.
DatasetUriText = Annotated[str, AfterValidator(_dataset_uri)]


def check_repository(name: str) -> None:
    """Whether a model may be called so on the hub, by the rules of its own library.

    Raises
    ------
    ValueError
        With the rule that is broken.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if name.count("/") != 1:
        raise ValueError(f"{name!r} is not a repository name; write it as user/name")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        said = str(error).rstrip(".").replace(". ", "; ")
        raise ValueError(f"the hub does not take this name ({said})") from None


def _family(value: str) -> str:
    if why := UNTRAINED.get(value):
        raise ValueError(f"{value!r} is not trained here: {why}; take {', '.join(FAMILIES)}")
    if value not in FAMILIES:
        known = list(FAMILIES)
        raise ValueError(f"{value!r} is none of {', '.join(known)}{suggest(value, known)}")
    return value


def _policy(value: str) -> str:
    if packaged(value):
        return value
    if ":" in value:
        raise ValueError(
            f"{value!r} does not name a policy of another package; write it as"
            " lerobot_policy_NAME:TYPE, where TYPE is LeRobot's name of the policy"
        )
    return _family(value)


_OWN_FAMILIES: Final = {"enum": [*FAMILIES]}
#: A policy family of LeRobot that zk0d trains.
FamilyName = Annotated[str, AfterValidator(_family), Field(json_schema_extra=_OWN_FAMILIES)]
#: One of these, or a policy of another package.
PolicyName = Annotated[
    str,
    AfterValidator(_policy),
    Field(json_schema_extra={"anyOf": [_OWN_FAMILIES, {"pattern": f"^{PACKAGED}$"}]}),
]


def _pin(value: str) -> str:
    if not re.fullmatch(r"lerobot_policy_[a-z0-9_]+==[A-Za-z0-9.+!_-]+", value):
        raise ValueError(
            f"{value!r} does not name a package of policies and its version; write it as"
            " lerobot_policy_NAME==1.2.0"
        )
    return value


def _split(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


#: Packages of policies, each in the one version that is meant; on a command line with commas.
PackagePins = Annotated[tuple[Annotated[str, AfterValidator(_pin)], ...], BeforeValidator(_split)]


def split_revision(model: str) -> tuple[str, str | None]:
    """A model's name and, where it is pinned (``user/name@REVISION``), its revision."""
    name, at, revision = model.partition("@")
    return name, revision if at else None


#: What LeRobot puts before a camera's name in a feature's.
IMAGES = "observation.images."


def _cameras(names: dict[str, str]) -> dict[str, str]:
    plain = {own.removeprefix(IMAGES): to.removeprefix(IMAGES) for own, to in names.items()}
    if len(plain) < len(names):
        raise ValueError(f"a camera is named twice, with and without {IMAGES!r}")
    return plain


#: A node's camera names, mapped to the policy's; as names or as LeRobot's features.
Cameras = Annotated[dict[str, str], AfterValidator(_cameras)]


#: Where a checkpoint carries the settings and the tokenizer of its vision-language model: in
#: ``zk0d/vlm-HASH`` below it, which is a name such as the hub's.
VLM_FOLDER = "zk0d"
#: Where a checkpoint carries the processors of each group that normalizes with its own statistics:
#: in ``statistics/GROUP`` below it.
GROUPS_FOLDER = "statistics"
#: What a policy on the hub is made of; the rest of its repository is not downloaded.
POLICY_FILES = ("*.json", "*.safetensors", f"{VLM_FOLDER}/*")
#: Without either of these a folder holds no policy.
POLICY_PARTS = (CONFIG_FILE, WEIGHTS_FILE) = ("config.json", "model.safetensors")
#: Settings and tokenizer of a vision-language model, without its weights.
PROCESSOR_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
