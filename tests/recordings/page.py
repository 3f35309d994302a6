"""The table of ``docs/recordings.md``, which ``make test-recordings ARGS=--write`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.recordings.shapes import SHAPES, TRAINED, Shape

PAGE = Path(__file__).parents[2] / "docs" / "recordings.md"
BEGIN, END = "<!-- shapes begin -->\n", "<!-- shapes end -->\n"
HEAD = f"| recorded | zk0d | SmolVLA | ACT | `zk0bot data check --videos` says |\n{'|---' * 5}|\n"


def row(about: str, verdict: str, outcomes: Mapping[str, str], said: str) -> str:
    """A line of the table; ``outcomes`` are those of the policies."""
    quoted = f"`{' '.join(said.replace('|', '/').split())}`" if said else ""
    smolvla, act = (outcomes.get(policy, "") for policy in ("smolvla", "act"))
    return f"| {about} | {verdict} | {smolvla} | {act} | {quoted} |\n"


def expected(shape: Shape) -> str:
    """A shape's line, if all is well."""
    refused = shape.verdict == "refused"
    outcomes = {} if refused else {"smolvla": shape.smolvla, "act": TRAINED}
    return row(shape.about, shape.verdict, outcomes, shape.says)


def rows() -> dict[str, str]:
    """The page's lines by what was recorded."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    lines = rest.partition(END)[0].splitlines(keepends=True)[2:]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def write(found: dict[str, str]) -> None:
    """Put these lines in; those of other shapes and datasets stay."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    known = rows() | found
    shapes = [shape.about for shape in SHAPES.values()]
    published = [about for about in known if about.startswith("`")]
    lines = "".join(known[about] for about in (*shapes, *published) if about in known)
    text = f"{before}{BEGIN}{HEAD}{lines}{END}{rest.partition(END)[2]}"
    PAGE.write_text(text, encoding="utf-8")
