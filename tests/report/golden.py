"""The run whose page is in docs/images/report.png: ``python -m tests.report.golden`` draws it."""

from __future__ import annotations

import math
import random
import tempfile
from pathlib import Path

from tests.browser import drawn
from tests.record.lines import write as note
from tests.report.test_report import Told
from zk0d.report.folder import write_report

PICTURE = Path(__file__).parents[2] / "docs/images/report.png"
WIDTH, HEIGHT = 900, 2000


def golden_page(folder: Path) -> str:
    """A run that learned, with one node that left, one that was refused, and a bad end."""
    told = Told(folder, "20260101-101500")
    chance = random.Random(1)
    for number in range(41):
        nodes = {
            f"bench-{at}": 2 / (1 + 0.2 * number) + 0.1 * at + 0.05 * chance.random()
            for at in range(6)
            if chance.random() > 0.1 and not (at == 3 and number > 20)
        }
        told.round(number, 0.5 + 1.5 * math.exp(-number / 10) + 0.02 * chance.random(), nodes)
    for number, node, reason in ((7, 2, "norm"), (8, 2, "norm"), (9, 2, "norm"), (9, 4, "nan")):
        note(
            told.journal,
            "update.refused",
            round=number,
            node=f"bench-{node}",
            key="k",
            reason=reason,
            message="of a test",
        )
    note(told.journal, "run.failed", reason="quorum", message="1 of 4 nodes came.")
    return write_report(told.folder).read_text(encoding="utf-8")


def main() -> None:
    """Draw the picture anew; look at it before committing it."""
    with tempfile.TemporaryDirectory() as folder:
        page = golden_page(Path(folder) / "run")
        drawn(page, Path(folder), WIDTH, HEIGHT).quantize(64).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
