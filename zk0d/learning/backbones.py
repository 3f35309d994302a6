"""Vision backbones whose ImageNet weights a new policy begins with, in torch hub's cache. No torch.

Their files are torchvision's, named after the first digits of their own SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

URLS = {"resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth"}


def path(backbone: str, home: Path | None = None) -> Path:
    """Where the file lies if it is here: where torchvision looks for it.

    Parameters
    ----------
    home
        Torch's folder; by default this process's.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = home or Path(os.environ.get("TORCH_HOME") or Path(cache) / "torch").expanduser()
    return home / "hub" / "checkpoints" / URLS[backbone].rsplit("/", 1)[1]


def is_whole(file: Path, backbone: str) -> bool:
    """Whether ``file`` has the content that the backbone's name promises."""
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return False
    return digest.startswith(_digits(backbone))


def _digits(backbone: str) -> str:
    return Path(URLS[backbone]).stem.rpartition("-")[2]


def is_here(backbone: str) -> bool:
    """Whether its weights are in the cache, whole."""
    return is_whole(path(backbone), backbone)
