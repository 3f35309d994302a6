"""The license of a dataset, as its files name it. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def license_of(folder: Path, facts: Mapping[str, Any]) -> str | None:
    """The license by ``info.json`` (``facts``) or by the head of README.md, as the hub has it."""
    if facts.get("license"):
        return " ".join(str(facts["license"]).split())
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*(\S.*)$", head[1], re.MULTILINE) if head else None
    return found[1].strip() if found else None
