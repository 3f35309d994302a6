"""A policy as a folder that plain LeRobot loads: configuration, weights, both processors.

``SmolVLAPolicy.from_pretrained(folder)`` and ``lerobot-record --policy.path=folder`` read it. The
statistics that the policy was trained with travel in the processors; with others it fails.
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

from zk0d.errors import TryAgainError
from zk0d.learning.policy import BUILT, LoadedPolicy
from zk0d.learning.statistics import Statistics

VLM = "vlm"


def write_checkpoint(loaded: LoadedPolicy, statistics: Statistics, folder: Path) -> Path:
    """Write the policy as it is now to ``folder``, which appears whole or not at all.

    A tiny SmolVLA's vision-language model is on no hub: its settings and tokenizer are put into
    the folder too, and the configuration names them by their path.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    """
    folder = folder.absolute()
    draft = folder.with_name(f".{folder.name}.partial")
    config = loaded.policy.config
    kept = copy.copy(vars(config))
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        config.push_to_hub = False
        config.device = "cpu"  # whoever loads it chooses
        preprocess, postprocess = loaded.processors(statistics)
        if loaded.spec.model_name in BUILT and hasattr(config, "vlm_model_name"):
            shutil.copytree(config.vlm_model_name, draft / VLM)
            config.vlm_model_name = str(folder / VLM)
            for step in preprocess.steps:
                if hasattr(step, "tokenizer_name"):
                    step.tokenizer_name = config.vlm_model_name
        loaded.policy.save_pretrained(draft)
        preprocess.save_pretrained(draft)
        postprocess.save_pretrained(draft)
        shutil.rmtree(folder, ignore_errors=True)
        _share(draft)
        os.replace(draft, folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise TryAgainError(
            f"{folder}: the checkpoint cannot be written ({error.strerror or error}); free space"
            " there or name another folder.",
            reason="disk_full",
        ) from None
    finally:
        vars(config).update(kept)
    return folder


def _share(folder: Path) -> None:
    """Let who may read the folder read what is in it: safetensors makes files its owner's alone."""
    mode = folder.stat().st_mode
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | mode & (0o055 if path.is_dir() else 0o044))
