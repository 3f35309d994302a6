"""The tables of ``docs/recordings.md``: of the shapes, and of the published datasets that are kept.

python -m tests.recordings.page        # write both from the shapes and from KEPT
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from tests.recordings.shapes import SHAPES, Shape

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "recordings.md"
#: A line of JSON for each published dataset: whence it is, and what became of it.
KEPT = DOCS / "results" / "recordings.jsonl"
SHAPES_HEAD = ("recorded", "zk0d", "SmolVLA", "ACT", "`zk0bot data check --videos` says")
SOURCES_HEAD = ("row", "source", "robot", "license")


@dataclass(frozen=True)
class Outcome:
    """What zk0d makes of a dataset.

    ``outcomes`` say how training of each policy ended, and are empty if none can be trained at all.
    ``says`` is of ``zk0bot data check --videos``, the part that matters.
    """

    verdict: str
    outcomes: Mapping[str, str] = field(default_factory=dict)
    says: str = ""

    def row(self, about: str) -> str:
        """The table's line."""
        quoted = f"`{' '.join(self.says.replace('|', '/').split())}`" if self.says else ""
        trained = (self.outcomes.get(policy, "") for policy in ("smolvla", "act"))
        return _row(about, self.verdict, *trained, quoted)


@dataclass(frozen=True)
class Published:
    """A published dataset."""

    name: str
    source: str
    robot: str
    license: str
    outcome: Outcome

    @property
    def about(self) -> str:
        return f"`{self.name}`"


def expected(shape: Shape) -> Outcome:
    """A shape's outcome, if all is well."""
    return Outcome(shape.verdict, shape.outcomes, shape.says)


def published() -> dict[str, Published]:
    """The datasets that are kept, by name."""
    lines = [json.loads(line) for line in KEPT.read_text(encoding="utf-8").splitlines()]
    return {
        line["name"]: Published(**{**line, "outcome": Outcome(**line["outcome"])})
        for line in sorted(lines, key=itemgetter("name"))
    }


def keep(name: str, outcome: Outcome) -> None:
    """Keep what became of a dataset that is kept already; its source is written by hand."""
    kept = published()
    kept[name] = replace(kept[name], outcome=outcome)
    lines = [json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in kept.values()]
    KEPT.write_text("".join(lines), encoding="utf-8")


def with_tables(page: str) -> str:
    """The page with both tables made anew."""
    kept = published().values()
    rows = [expected(shape).row(shape.about) for shape in SHAPES.values()]
    rows += [each.outcome.row(each.about) for each in kept]
    sources = [_row(each.about, each.source, each.robot, each.license) for each in kept]
    page = _between(page, "shapes", _table(SHAPES_HEAD, rows))
    return _between(page, "sources", _table(SOURCES_HEAD, sources))


def _between(page: str, name: str, table: str) -> str:
    before, begin, rest = page.partition(f"<!-- {name} begin -->\n")
    _, end, after = rest.partition(f"<!-- {name} end -->\n")
    return f"{before}{begin}{table}{end}{after}"


def _table(head: tuple[str, ...], rows: list[str]) -> str:
    return f"{_row(*head)}{'|---' * len(head)}|\n{''.join(rows)}"


def _row(*cells: Any) -> str:
    return f"| {' | '.join(cells)} |\n"


def write() -> None:
    """Write the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
