"""A policy as a folder that plain LeRobot loads: configuration, weights, both processors.

Its class's ``from_pretrained(folder)`` and ``lerobot-record --policy.path=folder`` read it. The
statistics that the policy was trained with travel in the processors; with others it fails. A group
that normalizes with its own has its processors in ``statistics/GROUP``: copied over those beside
the weights, they make the folder that group's. It names no path of the machine that wrote it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from lerobot.configs import FeatureType, PolicyFeature
from safetensors import SafetensorError

from zk0d.config.cameras import camera_feature
from zk0d.config.families import Companion, family_of
from zk0d.config.names import GROUPS_FOLDER, PROCESSOR_FILES, VLM_FOLDER, WEIGHTS_FILE
from zk0d.errors import not_written
from zk0d.files import whole_folder
from zk0d.learning import adapters
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.statistics import Statistics

#: Settings of LeRobot that say where a policy came from, or goes to, on its trainer's machine.
_OWN = {"pretrained_path": None, "pretrained_revision": None, "repo_id": None, "push_to_hub": False}
NO_GROUPS: Mapping[str, Statistics] = {}
#: Where transformers notes the folder that it read a file from.
_ORIGINS = ("_name_or_path", "name_or_path")


def write_checkpoint(
    loaded: LoadedPolicy,
    statistics: Statistics,
    folder: Path,
    more: Callable[[Path], None] = lambda draft: None,
    cameras: Mapping[str, str] | None = None,
    groups: Mapping[str, Statistics] = NO_GROUPS,
) -> Path:
    """Write the policy as it is now to ``folder``, which appears whole or not at all.

    A companion that lies in a folder of this machine, as a tiny SmolVLA's vision-language model
    does, goes with it: its settings and tokenizer, and its weights where LeRobot needs them, under
    a name of their content, ``zk0d/vlm-HASH``.
    LeRobot looks for such a name below the current folder and, offline, in the user's cache of the
    hub: they are put there, too, if it can be written.

    Parameters
    ----------
    more
        Adds files to the folder before it appears.
    cameras
        For each of the policy's cameras that was trained the feature that LeRobot will see; the
        others are left out. By default all keep their names.
    groups
        What each group normalizes with that has its own statistics.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    """
    folder = folder.absolute()
    config = loaded.policy.config
    kept = copy.copy(vars(config))
    try:
        with whole_folder(folder) as draft:
            config.device = "cpu"  # the loading program chooses
            if cameras is not None:
                config.input_features = _renamed(config.input_features, cameras)
            vars(config).update({key: value for key, value in _OWN.items() if key in kept})
            # They are made before the companion has a name that only the checkpoint knows.
            processors = {draft: loaded.processors(statistics)}
            for group, own in groups.items():
                processors[draft / GROUPS_FOLDER / group] = loaded.processors(own)
            companion = family_of(loaded.spec.policy).companion
            if companion and (source := Path(getattr(config, companion.keys[0]))).is_absolute():
                name = _carry(source, draft, companion)
                for key in companion.keys:
                    setattr(config, key, name)
                for preprocess, _ in processors.values():
                    for step in preprocess.steps:
                        if hasattr(step, "tokenizer_name"):
                            step.tokenizer_name = name
            with adapters.merged(loaded.policy):
                loaded.policy.save_pretrained(draft)
            if adapter := loaded.spec.adapter:
                adapters.save(loaded.policy, adapter, loaded.spec.model_name, draft)
                processors[draft / adapters.FOLDER] = processors[draft]
            for place, pair in processors.items():
                for each in pair:
                    each.save_pretrained(place)
            more(draft)
            _share(draft)
    except (OSError, SafetensorError) as error:
        what = f"{folder}: the checkpoint cannot be written"
        raise not_written(what, error, " or name another folder") from None
    finally:
        vars(config).update(kept)
    return folder


def _renamed(
    features: Mapping[str, PolicyFeature], cameras: Mapping[str, str]
) -> dict[str, PolicyFeature]:
    names = {camera_feature(camera): feature for camera, feature in cameras.items()}
    return {
        names.get(key, key): feature
        for key, feature in features.items()
        if feature.type is not FeatureType.VISUAL or key in names
    }


def _carry(source: Path, checkpoint: Path, companion: Companion) -> str:
    """Settings and tokenizer of another model, without the place they came from."""
    folder = checkpoint / VLM_FOLDER / companion.word
    folder.mkdir(parents=True)
    for pattern in (*PROCESSOR_FILES, *([WEIGHTS_FILE] if companion.weights else [])):
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if any(content.pop(key, None) for key in _ORIGINS):
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        whole.update(path.name.encode() + b"\0" + path.read_bytes())
    name = f"{VLM_FOLDER}/{companion.word}-{whole.hexdigest()[:12]}"
    folder.rename(checkpoint / name)
    _cache(checkpoint / name, name, revision=whole.hexdigest()[:40])
    return name


def _cache(folder: Path, name: str, revision: str) -> None:
    """Put a copy into the hub's cache, as if it had been fetched under that name."""
    home = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    # A service reads the cache that zk0d fetch writes, and its user cannot load by hand.
    with contextlib.suppress(OSError):
        if not home.exists():
            with whole_folder(home) as draft:
                shutil.copytree(folder, draft / "snapshots" / revision)
                (draft / "refs").mkdir()
                (draft / "refs" / "main").write_text(revision, encoding="utf-8")


def _share(folder: Path) -> None:
    """Let who may read the folder read what is in it: safetensors makes files its owner's alone."""
    mode = folder.stat().st_mode
    for path in folder.rglob("*"):
        own = stat.S_IMODE(path.stat().st_mode)
        wanted = own | mode & (0o055 if path.is_dir() else 0o044)
        if wanted != own:
            path.chmod(wanted & 0o777)  # RestrictSUIDSGID refuses a mode with the group's bit
