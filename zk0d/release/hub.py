"""Pushes a checkpoint to the hub: one commit, private unless asked, with a tag of its own."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0d.config.names import check_repository
from zk0d.errors import ConfigError, TryAgainError, UnavailableError
from zk0d.record.summary import RunSummary
from zk0d.release.checkpoint import PROVENANCE, check_tensors, read_summary
from zk0d.release.personal import PERSONAL

WEIGHTS = "model.safetensors"
#: What a checkpoint must have before anything of it leaves.
NEEDED = (WEIGHTS, "config.json", "README.md", "metrics.json", PROVENANCE)
#: A checkpoint of zk0d has files of these kinds and no others; nothing pickled.
SUFFIXES = {".safetensors", ".json", ".md", ".txt", ".jinja", ".model", ".png"}
_TAG = re.compile(r"[A-Za-z0-9](?:[\w-]|\.(?!\.|lock$|$))*", re.ASCII)


@dataclass(frozen=True)
class Pushed:
    """What is on the hub now."""

    url: str
    tag: str
    created: bool


def check(folder: Path) -> list[Path]:
    """The files of a checkpoint that may be pushed.

    Raises
    ------
    ConfigError
        If it is a personal policy; if one is missing, or one is there that does not belong; if
        weights are cut short, or have other names, types or shapes than those that were written.
    """
    if (folder / PERSONAL).exists():
        raise ConfigError(
            f"{folder}: is a personal policy, tuned on one owner's recordings ({PERSONAL} says so),"
            " and is not pushed; push a run's checkpoint."
        )
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{folder}: {', '.join(missing)} is missing; push a checkpoint's folder.")
    read_summary(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        if path.suffix not in SUFFIXES or path.is_symlink():
            raise ConfigError(f"{path}: does not belong in a checkpoint; remove it, then push.")
    check_tensors(folder)
    return files


def tag_of(summary: RunSummary) -> str:
    """Another for each checkpoint: runs that go to one repository have rounds of equal numbers."""
    return f"fl-run-{summary.run}-round-{summary.round}"


def check_names(repository: str, tag: str) -> None:
    """Whether the hub takes such a name and tag.

    Raises
    ------
    ConfigError
        Naming the option.
    """
    try:
        check_repository(repository)
    except ValueError as error:
        raise ConfigError(f"--repo-id: {error}.") from None
    if tag and not _TAG.fullmatch(tag):
        raise ConfigError(
            f"--tag: {tag!r} is not a tag; use letters, digits, '-', '_', and single '.' within."
        )


def push(
    folder: Path, repository: str, *, private: bool = True, tag: str = "", api: Any = None
) -> Pushed:
    """Create the repository if it is not there, and commit the checkpoint as a whole.

    Parameters
    ----------
    repository
        ``user/name``. One that is there keeps its visibility.
    tag
        On the hub; by default ``fl-run-RUN-round-N``. One that is there stays where it is.

    Raises
    ------
    ConfigError
        If the checkpoint is not whole, the hub refuses name or token, or the tag is there with
        other weights.
    UnavailableError
        Without a token.
    TryAgainError
        If the hub cannot be reached; what it has already is not sent again.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    check_names(repository, tag)
    check(folder)
    hub = api or HfApi()
    if not (hub.token or get_token()):
        raise UnavailableError(
            "there is no token of the hub, so nothing was pushed; hf auth login, or HF_TOKEN_PATH"
            f" names a file with one. The checkpoint stays in {folder}."
        )
    summary = read_summary(folder)
    tag = tag or tag_of(summary)
    try:
        there = hub.repo_exists(repository)
        tagged = there and _is_tagged(hub, repository, tag, folder)
        if not there:
            hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"zk0d: run {summary.run}, round {summary.round}",
        )
        if not tagged:
            hub.create_tag(repository, tag=tag, revision=done.oid)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403, 404):
            raise ConfigError(
                f"{repository}: the hub refuses ({status}); the token must be allowed to"
                " write there."
            ) from None
        raise TryAgainError(f"{repository}: the hub answered {status}; try again.") from None
    except RuntimeError as error:  # so the hub's library wraps a file that did not get through
        raise TryAgainError(
            f"{repository}: {error} Files that are there already are not sent again; try again."
        ) from None
    except PermissionError as error:
        raise ConfigError(
            f"{error.filename or folder}: this user may not read it; chmod -R g+rX {folder}"
        ) from None
    except OSError as error:
        raise TryAgainError(
            f"the hub cannot be reached ({type(error).__name__}); the checkpoint stays in {folder},"
            " push it again later."
        ) from None
    return Pushed(str(done.commit_url), tag, not there)


def _is_tagged(hub: Any, repository: str, tag: str, folder: Path) -> bool:
    """Whether the tag is there and names these weights."""
    commits = {ref.name: ref.target_commit for ref in hub.list_repo_refs(repository).tags}
    if tag not in commits:
        return False
    (known,) = hub.get_paths_info(repository, [WEIGHTS], revision=commits[tag]) or [None]
    with (folder / WEIGHTS).open("rb") as file:
        ours = hashlib.file_digest(file, "sha256").hexdigest()
    if known is None or known.lfs is None or known.lfs.sha256 != ours:
        raise ConfigError(
            f"{repository}: its tag '{tag}' names other weights; give this checkpoint another with"
            " --tag."
        )
    return True
