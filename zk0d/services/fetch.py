"""``zk0d fetch``: downloads from the hub what this machine's settings name.

The learner has no network; this is the only process on a contributor's machine that asks the hub.
What is here already is left as it is, so nothing changes under a run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zk0d.config.families import FAMILIES
from zk0d.config.machine import (
    DEFAULT_CLIENT_CONFIG,
    DEFAULT_SERVER_CONFIG,
    ClientSettings,
    ServerSettings,
)
from zk0d.config.names import (
    CONFIG_FILE,
    POLICY_FILES,
    PROCESSOR_FILES,
    WEIGHTS_FILE,
    DatasetUri,
    split_revision,
)
from zk0d.daemon.notify import Notify
from zk0d.errors import ConfigError, TryAgainError, Zk0dError
from zk0d.files import rename, whole_file
from zk0d.learning import backbones
from zk0d.learning.layout import datasets_folder

log = logging.getLogger("zk0d")

DATASET_FORMAT = "v3."
_TAG = re.compile(r"v(\d+)\.(\d+)")


def run(client: Path | None = None, server: Path | None = None) -> None:
    """Fetch everything that the settings files name; without any, those of this machine.

    Raises
    ------
    ConfigError
        If a name is unknown to the hub or needs a token that is not there.
    TryAgainError
        If the hub cannot be reached, or the disk is full.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if client is None and server is None:
        client, server = _present()
    datasets, models = _wanted(client, server)
    notify = Notify()
    fetched, errors = 0, []
    for what, names, fetch in (("dataset", datasets, _dataset), ("model", models, _model)):
        for name in names:
            notify.status(f"fetching the {what} {name}")
            try:
                with _plainly(what, name):
                    new = fetch(name)
            except Zk0dError as error:  # the others can be had all the same
                errors.append(error)
                log.error("%s", error.message)
                continue
            fetched += new
            log.info("%s %s: %s", what, name, "fetched" if new else "is here already")
    if errors:
        # What only a person can mend is not tried again each minute.
        raise min(errors, key=lambda error: not isinstance(error, ConfigError))
    notify.status(f"all {len(datasets) + len(models)} are here, {fetched} of them new")


def fetch_dataset(name: str) -> bool:
    """Fetch one dataset of the hub; whether it was not here. Errors as of :func:`run`."""
    with _plainly("dataset", name):
        return _dataset(name)


def _present() -> tuple[Path | None, Path | None]:
    client, server = (
        path if path.exists() else None for path in (DEFAULT_CLIENT_CONFIG, DEFAULT_SERVER_CONFIG)
    )
    if client is None and server is None:
        raise ConfigError(
            f"neither {DEFAULT_CLIENT_CONFIG} nor {DEFAULT_SERVER_CONFIG} is there, so nothing"
            " names what to fetch; zk0bot client join or server init makes one."
        )
    return client, server


def _wanted(client: Path | None, server: Path | None) -> tuple[list[str], list[str]]:
    """Names of datasets and models that can be fetched, each once."""
    uris: list[str] = []
    models: list[str] = []
    if client is not None:
        node = ClientSettings.load(client)
        uris += [each.uri for each in node.lent]
        models += [name for name in node.fetch_models if split_revision(name)[0] not in node.models]
    if server is not None:
        coordinator = ServerSettings.load(server)
        uris += [evaluation.dataset_uri for evaluation in coordinator.evaluation]
        named = list(coordinator.fetch_models)
        if coordinator.autorun and (model := coordinator.autorun.run.get("model-name")):
            named.append(str(model))
        models += [name for name in named if split_revision(name)[0] not in coordinator.models]
    parsed = [DatasetUri.parse(uri) for uri in uris]
    datasets = [address.location for address in parsed if address.scheme == "hf"]
    known = [name for name in models if name.count("/") == 1 or name in backbones.URLS]
    return list(dict.fromkeys(datasets)), list(dict.fromkeys(known))


def _dataset(name: str) -> bool:
    """Fetch a dataset; whether it was not here. Its folder gets its name once it is whole."""
    from huggingface_hub import HfApi, snapshot_download

    folder = datasets_folder() / name
    if (folder / "meta" / "info.json").is_file():
        return False
    hub = HfApi()
    refs = hub.list_repo_refs(name, repo_type="dataset")
    revision = _newest([tag.name for tag in refs.tags], name)
    about = hub.dataset_info(name, revision=revision)
    # By commit: a resumed draft must not mix two.
    draft = folder.with_name(f".{folder.name}.{str(about.sha)[:12]}.partial")
    snapshot_download(name, repo_type="dataset", revision=about.sha, local_dir=draft)
    missing = [f.rfilename for f in about.siblings or [] if not (draft / f.rfilename).is_file()]
    if missing:  # the hub's library only warns if it goes away in between
        raise TryAgainError(
            f"dataset {name}: {missing[0]} is missing after the download; try again later."
        )
    info = draft / "meta" / "info.json"
    if not info.is_file() or not _is_supported(info):
        shutil.rmtree(draft)
        raise ConfigError(
            f"dataset {name}: its revision {revision} is not a LeRobot dataset of format v3.0; use"
            " another, or convert a copy of it with zk0bot data convert."
        )
    # What the hub's library notes there makes LeRobot take it for an old download.
    shutil.rmtree(draft / ".cache", ignore_errors=True)
    _let_the_group_read(draft)
    rename(draft, folder)
    return True


def _newest(tags: list[str], name: str) -> str:
    """The newest tag of the format that we read; ``main`` where no format is tagged."""
    formats = [tag for tag in tags if _TAG.fullmatch(tag)]
    ours = [tag for tag in formats if tag.startswith(DATASET_FORMAT)]
    if formats and not ours:
        raise ConfigError(
            f"dataset {name}: is there in LeRobot's format {max(formats)} only, this needs v3.0;"
            " download it and convert it with zk0bot data convert."
        )
    return max(ours, key=lambda tag: int(tag.split(".")[1])) if ours else "main"


def _is_supported(info: Path) -> bool:
    try:
        facts = json.loads(info.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return str(facts.get("codebase_version", "")).startswith(DATASET_FORMAT)


def _model(name: str) -> bool:
    """Fetch a backbone, or a policy and what it needs of the model that it is built on."""
    if name in backbones.URLS:
        return _backbone(name)
    if name in {family.encoder for family in FAMILIES.values()}:
        return _companion(name, weights=True)
    new, folder = _snapshot(name, POLICY_FILES, _is_policy)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = FAMILIES.get(config.get("type"))
    companion = family.companion if family else None
    named = config.get(companion.keys[0]) if companion else None
    if companion and isinstance(named, str) and not (folder / named).exists():
        with _plainly("model", named):
            newer = _companion(named, weights=companion.weights)
        new = new or newer
    return new


def _companion(name: str, *, weights: bool) -> bool:
    """Fetch settings and tokenizer of a model that a policy is built on, and perhaps weights."""
    if weights:
        return _snapshot(name, (*PROCESSOR_FILES, WEIGHTS_FILE), _is_policy)[0]
    return _snapshot(name, PROCESSOR_FILES, lambda at: (at / CONFIG_FILE).is_file())[0]


def _backbone(name: str) -> bool:
    """Fetch a vision backbone's ImageNet weights to where torchvision looks for them."""
    import httpx

    if backbones.is_here(name):
        return False
    path, url = backbones.path(name), backbones.URLS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        whole_file(path) as draft,
        httpx.stream("GET", url, follow_redirects=True, timeout=30.0) as answer,
    ):
        answer.raise_for_status()
        with draft.open("wb") as file:
            for piece in answer.iter_bytes():
                file.write(piece)
        if not backbones.is_whole(draft, name):
            raise TryAgainError(f"model {name}: {url} did not come whole; try again later.")
    _let_the_group_read(path.parent)
    return True


def _is_policy(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _snapshot(
    model: str, files: tuple[str, ...], whole: Callable[[Path], bool]
) -> tuple[bool, Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, revision = split_revision(model)
    what: dict[str, Any] = {"revision": revision, "allow_patterns": list(files)}
    try:
        here = Path(snapshot_download(name, local_files_only=True, **what))
        if whole(here):
            _let_the_group_read(Path(HF_HUB_CACHE))
            return False, here
    except LocalEntryNotFoundError:
        pass  # it was never fetched
    folder = Path(snapshot_download(name, **what))
    if not whole(folder):
        raise ConfigError(f"model {name}: holds no config.json with weights; use another name.")
    _let_the_group_read(Path(HF_HUB_CACHE))
    return True, folder


def _let_the_group_read(folder: Path) -> None:
    """The learner, of our group, reads this; the hub's library makes some files private."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        wanted = mode | stat.S_IRGRP | (stat.S_IXGRP if path.is_dir() else 0)
        if wanted != mode:
            path.chmod(stat.S_IMODE(wanted))


@contextmanager
def _plainly(what: str, name: str) -> Iterator[None]:
    """Turn what the hub's library raises into a sentence."""
    import httpx
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    status: Any
    token = "for a private one, give a token (docs/units.md)"
    try:
        yield
    except Zk0dError:
        raise
    except GatedRepoError:
        raise ConfigError(
            f"{what} {name}: the hub gives it only to those who accepted its terms; accept them"
            f" there, and {token}."
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"{what} {name}: the hub knows no such {what}; check the name, and {token}."
        ) from None
    except OfflineModeIsEnabled:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be fetched; unset it.") from None
    except LocalEntryNotFoundError as error:
        # The hub's library looks here when the hub refuses a file.
        cause = error.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            raise ConfigError(f"{what} {name}: the hub refuses it ({status}); {token}.") from None
        raise TryAgainError(
            f"{what} {name}: could not be fetched; check the network and try again."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "unknown"
        if status in (401, 403):
            raise ConfigError(f"{what} {name}: the hub refuses it ({status}); {token}.") from None
        raise TryAgainError(f"{what} {name}: the hub answers {status}; try again later.") from None
    except (OSError, RuntimeError, httpx.HTTPError) as error:
        said = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise TryAgainError(
            f"{what} {name}: could not be fetched ({said}); check the network and the disk."
        ) from None
