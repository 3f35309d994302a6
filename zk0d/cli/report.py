"""``zk0bot report``: a run's figures, its oddities, and comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0d.cli import verbs
from zk0d.machine import units

if TYPE_CHECKING:
    from zk0d.report.analysis import Analysis

BARS = "▁▂▃▄▅▆▇█"


def report(
    runs: Annotated[list[str], typer.Argument(help="Runs of this coordinator, or run folders.")],
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page that needs no network.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Report a run, also a failed one; compare further runs with the first."""
    from zk0d.config.names import check_apart
    from zk0d.errors import TryAgainError, UsageError
    from zk0d.report.analysis import analyse, compare, findings

    if html is not None:
        check_apart(html, "--html")
    read = [analyse(_folder(run, folder)) for run in runs]
    if html is not None:
        from zk0d.report.page import page

        if len(read) > 1:
            raise UsageError("--html takes one run; without it several are compared.")
        try:
            html.write_text(page(read[0]), encoding="utf-8")
        except OSError as error:
            raise TryAgainError(f"{html}: cannot be written ({error.strerror}).") from None
        typer.echo(html)
        return
    said = compare(read)
    if as_json:
        content = {
            "schema_version": 1,
            "runs": [
                {
                    "state": each.outcome,
                    "summary": each.summary(),
                    "run": each.run.model_dump(mode="json"),
                    "findings": [vars(found) for found in findings(each)],
                }
                for each in read
            ],
            "comparison": said,
        }
        typer.echo(json.dumps(content, indent=1))
        return
    for each in read:
        _show(each)
    for sentence in said:
        typer.echo(sentence)


def _folder(run: str, config: Path) -> Path:
    from zk0d.config.machine import ServerSettings

    if "/" in run or Path(run).is_dir():
        return Path(run)
    return ServerSettings.load(config / "server.toml").runs / run


def _show(analysis: Analysis) -> None:
    from zk0d.report.analysis import findings

    typer.echo(analysis.summary())
    typer.echo(f"  policy loss    {_spark(analysis.evaluated)}")
    for name, losses in sorted(analysis.losses.items()):
        typer.echo(f"  {name:14.14} {_spark(losses)}")
        if name in analysis.on_nodes:
            typer.echo(f"    held out     {_spark(analysis.on_nodes[name])}")
    for found in findings(analysis):
        typer.echo(f"  {found.rule}: {found.evidence}; try: {found.proposal}")


def _spark(values: dict[int, float]) -> str:
    """A line of bars, at most 60, with the first and the last value."""
    if not values:
        return "not measured"
    series = [values[number] for number in sorted(values)]
    step = max(1, len(series) // 60)
    thin = series[::step]
    low, high = min(thin), max(thin)
    span = (high - low) or 1.0
    bars = "".join(BARS[int((value - low) / span * (len(BARS) - 1))] for value in thin)
    return f"{bars}  {series[0]:.4f} → {series[-1]:.4f}"
