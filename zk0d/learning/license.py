"""The license of a dataset, as its files name it. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from zk0d.learning.layout import Info


def license_of(folder: Path, info: Info) -> str | None:
    """The license by ``info.json``, or by the head of README.md as the hub has it."""
    if info.license:
        return " ".join(str(info.license).split())
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*(\S.*)$", head[1], re.MULTILINE) if head else None
    return found[1].strip() if found else None
