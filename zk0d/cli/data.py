"""``zk0bot data``: recordings on this machine."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zk0d.cli.simulate import Camera, Learner, MixedUnits, cameras, reading
from zk0d.cli.verbs import Contributor, check_new, place
from zk0d.machine import units

if TYPE_CHECKING:
    from zk0d.learning.inspection import Inspection, Remark
    from zk0d.learning.progress import Progress
    from zk0d.learning.recordings import Recordings

TELL_SECONDS = 5.0

app = typer.Typer(no_args_is_help=True, help="Recordings on this machine.")

Datasets = Annotated[
    list[str], typer.Argument(metavar="DATASET...", help="Folders, or user/name on the hub.")
]
OwnDatasets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DATASET...]",
        help="Folders, or user/name on the hub; without any, those of this node's settings.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@app.callback()
def data() -> None:
    """Recordings on this machine."""


@app.command()
def check(
    datasets: OwnDatasets = None,
    videos: Annotated[bool, typer.Option(help="Also decode every frame (slow).")] = False,
    camera: Camera = None,
    allow_mixed_units: MixedUnits = False,
    learner: Learner = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of a node's settings, whose cache limits are told.")
    ] = None,
    contributor: Contributor = "",
    as_json: Json = False,
) -> None:
    """Say whether a federation can train on these; several must also fit each other."""
    from zk0d.config.families import FAMILIES
    from zk0d.doctor.finding import Host
    from zk0d.doctor.recordings import dataset as dataset_rule
    from zk0d.errors import DataError, ExitCode
    from zk0d.learning.inspection import inspect_together

    tell: Callable[[str], None] = (lambda text: None) if as_json else typer.echo
    if contributor:
        folder = place(folder or units.CONFIG_FOLDER, contributor)
    keeps = _cache_limits(learner, folder)
    opened = []
    report: list[dict[str, Any]] = []
    for name, uri, mapping in _named(datasets, camera, folder):
        entry: dict[str, Any] = {"dataset": uri, "wrong": [], "notices": []}
        report.append(entry)
        found = dataset_rule(Host(systemd=False), uri, key=name)
        if found.ok is not True:
            why = f" {found.evidence}; {found.cure}" if found.cure else ""
            entry["wrong"] = [found.problem + why]
            tell(uri)
        else:
            tell(found.evidence)
            try:
                recordings, inspection = _inspected(uri, mapping, own=not datasets)
                sizes = {name: recordings.summary.cache_bytes(name) for name in FAMILIES}
                tell(f"  cache  {_cache(sizes)}; {keeps}")  # before the long wait
                shown = _pictures(recordings, quiet=as_json) if videos else []
            except DataError as error:
                entry["wrong"] = [error.message]
            else:
                opened.append((recordings, inspection))
                entry |= {"is": found.evidence, **recordings.summary.model_dump()}
                entry["cache_bytes"] = sizes
                for remark in (*inspection.remarks, *shown):
                    kind = "wrong" if remark.severity == "wrong" else "notices"
                    entry[kind].append(f"{remark.check}: {remark.text}")
        for kind, key in (("wrong", "wrong"), ("notice", "notices")):
            for text in entry[key]:
                tell(f"  {kind:6} {text}")
        if not entry["wrong"]:
            tell("  a federation can train on it")
    together = inspect_together(opened, allow_mixed_units) if len(opened) > 1 else []
    for remark in together:
        tell(f"together {remark.severity}: {remark.text}")
    if as_json:
        typer.echo(json.dumps({"datasets": report, "together": [asdict(r) for r in together]}))
    wrong = any(remark.severity == "wrong" for remark in together)
    if wrong or any(entry["wrong"] for entry in report):
        raise typer.Exit(ExitCode.UNAVAILABLE)


@app.command()
def stats(datasets: Datasets, as_json: Json = False) -> None:
    """Show every episode in numbers, and the statistics that a node shares."""
    from rich.console import Console
    from rich.table import Table

    from zk0d.config.names import DatasetUri

    for name in datasets:
        recordings, inspection = _inspected(str(DatasetUri.typed(name)))
        usable = ~recordings.not_finite()
        shared = recordings.statistics(usable) if usable.any() else None
        if as_json:
            content = {
                "dataset": inspection.uri,
                **recordings.summary.model_dump(),
                "episodes_in_numbers": [asdict(each) for each in inspection.episodes],
                "statistics": shared.model_dump(mode="json")["features"] if shared else None,
            }
            typer.echo(json.dumps(content))
            continue
        summary = recordings.summary
        table = Table(
            title=f"{inspection.uri}: {summary.episodes} episodes, {summary.frames} frames at"
            f" {summary.fps:g} per second"
        )
        for column in ("episode", "frames", "seconds", "travel", "not finite", "wild", "same as"):
            table.add_column(column, justify="right")
        table.add_column("task")
        for each in inspection.episodes:
            table.add_row(
                str(each.episode),
                str(each.frames),
                f"{each.seconds:.1f}",
                f"{each.travel:.1f}",
                str(each.not_finite or ""),
                str(each.wild or ""),
                "" if each.same_as is None else str(each.same_as),
                each.task,
            )
        console = Console()
        console.print(table)
        for feature, values in sorted(shared.features.items()) if shared else []:
            for label in ("mean", "std", "min", "max"):
                numbers = " ".join(f"{value:9.3f}" for value in getattr(values, label))
                console.print(f"{feature:18} {label:4} {numbers}", highlight=False, soft_wrap=True)


@app.command()
def coverage(
    datasets: OwnDatasets = None,
    camera: Camera = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it, as .png or .svg.")
    ] = None,
    most: Annotated[int, typer.Option(min=0, help="Gaps shown of each dataset.")] = 5,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of a node's settings, which name its datasets.")
    ] = None,
    contributor: Contributor = "",
    as_json: Json = False,
) -> None:
    """Show where episodes begin and end, and of which poses more should be recorded."""
    from zk0d.config.cameras import MappedAt
    from zk0d.errors import UsageError
    from zk0d.learning.coverage import Coverage, draw, gaps
    from zk0d.learning.recordings import open_recordings
    from zk0d.learning.spec import check_alike

    if chart is not None and chart.suffix not in (".png", ".svg"):
        raise UsageError(f"--chart: {chart} is not a .png or .svg; name one.")
    if contributor:
        folder = place(folder or units.CONFIG_FOLDER, contributor)
    at = MappedAt.COMMAND if datasets else MappedAt.SETTINGS
    opened = [
        open_recordings(uri, cameras=mapping, mapped_at=at)
        for _, uri, mapping in _named(datasets, camera, folder)
    ]
    for each in opened[1:]:
        like = opened[0].summary
        check_alike(each.summary, like, where=each.uri, cameras=each.camera_map)
    found = [Coverage.of(each) for each in opened]
    lacking = {each.uri: gaps(each, found) for each in found}
    if chart is not None:
        draw(found, chart)
    if as_json:
        typer.echo(json.dumps([each.to_json(lacking[each.uri]) for each in found]))
        return
    for covered in found:
        typer.echo(covered.sentence())
        for gap in lacking[covered.uri][:most]:
            typer.echo(f"  gap    {gap.sentence()}")
        if len(lacking[covered.uri]) > most:
            typer.echo(f"  and {len(lacking[covered.uri]) - most} more (--most)")
    if chart is not None:
        typer.echo(f"drawn: {chart}")


@app.command()
def make(
    folder: Annotated[Path, typer.Argument(help="A new folder for the dataset.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to record.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode.")] = 0,
    sector: Annotated[
        str, typer.Option(metavar="I/N", help="Slice I (from 0) of the table, cut into N.")
    ] = "0/1",
    size: Annotated[int, typer.Option(min=16, max=1024, help="Pixels per side.")] = 96,
    goal: Annotated[bool, typer.Option(help="Put the block's position into the state.")] = True,
    task: Annotated[str, typer.Option(help="soreach, or so101 (pip install 'zk0d[sim]').")] = (
        "soreach"
    ),
) -> None:
    """Record a LeRobot dataset of a simulated task, by its scripted expert."""
    from zk0d.demo.recordings import make_recordings
    from zk0d.errors import UsageError
    from zk0d.simulators.task import Sector
    from zk0d.simulators.tasks import TASKS

    index, slash, of = sector.partition("/")
    if not (slash and index.isdigit() and of.isdigit() and int(index) < int(of)):
        raise UsageError(f"--sector: {sector!r} is not a slice; write 0/2 or 1/2, for example.")
    if task not in TASKS:
        raise UsageError(f"--task: there is no {task!r}; take {' or '.join(TASKS)}.")
    check_new(folder, "FOLDER")
    slice_ = Sector(int(index), int(of))
    frames = _aside(make_recordings, folder, slice_, episodes, seed, size, goal, task)
    typer.echo(f"{folder}: {episodes} episodes, {frames} frames")


@app.command()
def fetch(datasets: Datasets) -> None:
    """Download datasets of the hub to this machine, each whole or not at all."""
    from zk0d.config.names import DatasetUri
    from zk0d.errors import UsageError
    from zk0d.learning.layout import datasets_folder
    from zk0d.services.fetch import fetch_dataset

    for uri in datasets:
        try:
            address = DatasetUri.parse(uri)
        except ValueError as error:
            raise UsageError(f"DATASET: {error}.") from None
        if address.scheme != "hf":
            raise UsageError(
                f"DATASET: {uri} is a folder of this machine; name a dataset of the hub."
            )
        name = address.location
        new = fetch_dataset(name)
        folder = datasets_folder() / name
        typer.echo(f"{folder}{'' if new else ' (was here)'}")


@app.command()
def split(
    source: Annotated[str, typer.Argument(metavar="DATASET", help="A folder, or user/name.")],
    output: Annotated[Path, typer.Argument(help="A new folder, with a dataset for each part.")],
    parts: Annotated[int, typer.Option("-n", "--parts", min=1, help="Number of parts.")] = 2,
    by: Annotated[str, typer.Option(help="iid, dirichlet, task or region.")] = "iid",
    alpha: Annotated[
        float, typer.Option(help="Dirichlet's concentration; a small one is uneven.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Fixes which part gets which episode.")] = 0,
) -> None:
    """Split a dataset's episodes into several datasets."""
    from zk0d.config.names import DatasetUri
    from zk0d.learning.split import split_dataset

    check_new(output, "OUTPUT")
    uri = str(DatasetUri.typed(source))
    made = _aside(split_dataset, uri, output, scheme(by), parts, seed, alpha)
    for folder, count in made:
        typer.echo(f"{folder}: {count} episodes")


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="A dataset of LeRobot's format v2.0 or v2.1.")],
    output: Annotated[
        Path | None, typer.Option(help="A new folder for the copy (FOLDER-v3.0).")
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Leave out episodes and cameras with missing files."),
    ] = False,
) -> None:
    """Copy a dataset to LeRobot's format v3.0; the original does not change."""
    from zk0d.learning.convert import convert as make_copy

    folder = folder.resolve()
    output = output or folder.with_name(f"{folder.name}-v3.0")
    typer.echo(_aside(make_copy, folder, output, partial=partial))


def scheme(text: str):  # type: ignore[no-untyped-def]
    """The split that ``--by`` names."""
    from zk0d.errors import UsageError
    from zk0d.learning.partition import SCHEMES

    if text not in SCHEMES:
        raise UsageError(f"--by: {text!r} is none of {', '.join(SCHEMES)}.")
    return text


def _aside[**P, R](work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Do it in a process whose output goes to a file: video encoders talk a lot."""
    from zk0d.daemon.workers import worker_pool

    with (
        tempfile.NamedTemporaryFile(prefix="zk0bot-data-", suffix=".log") as log,
        worker_pool(1, Path(log.name)) as pool,
    ):
        return pool.submit(work, *args, **kwargs).result()


def _inspected(
    uri: str, mapping: dict[str, str] | None = None, *, own: bool = False
) -> tuple[Recordings, Inspection]:
    """``own`` recordings have their cameras mapped in the settings."""
    from zk0d.config.cameras import MappedAt
    from zk0d.learning.inspection import inspect
    from zk0d.learning.recordings import open_recordings

    at = MappedAt.SETTINGS if own else MappedAt.COMMAND
    recordings = open_recordings(uri, cameras=mapping, mapped_at=at)
    return recordings, inspect(recordings)


def _named(
    datasets: list[str] | None, camera: list[str] | None, folder: Path | None
) -> list[tuple[str, str, dict[str, str]]]:
    """What to check: what it is called in sentences, its address and its cameras' mapping."""
    from zk0d.config.machine import ClientSettings
    from zk0d.config.names import DatasetUri
    from zk0d.errors import UsageError
    from zk0d.learning.cameras import share_out

    if datasets:
        uris = [str(DatasetUri.typed(name)) for name in datasets]
        return [*zip(datasets, uris, share_out(cameras(camera), uris), strict=True)]
    path = (folder or units.CONFIG_FOLDER) / "client.toml"
    settings = ClientSettings.load(path) if path.exists() else None
    if settings is None or not settings.lent:
        raise UsageError(
            f"no dataset is named, here or in {path}; name a folder, or user/name on the hub."
        )
    if camera:
        raise UsageError(f"--camera goes with a DATASET; {path} maps the cameras of its own.")
    return [(each.uri, each.uri, settings.cameras_of(each)) for each in settings.lent]


def _cache_limits(learner: list[str] | None, folder: Path | None) -> str:
    """How much a learner keeps of decoded frames, and where: with ``--learner``, with the node's
    settings if there are any, else by default.
    """
    from zk0d.config.machine import CacheSettings, ClientSettings
    from zk0d.errors import ConfigError

    file = (folder or units.CONFIG_FOLDER) / "client.toml"
    cache, of = CacheSettings(), ""
    if learner:
        cache, of = reading(learner).cache, " of --learner"
    elif folder or os.path.lexists(file):
        try:
            cache, of = ClientSettings.load(file).learner.cache, f" of {file}"
        except ConfigError:
            if folder:
                raise
            of = f"'s defaults, because {file} cannot be read; zk0bot doctor says why"
    return (
        f"a learner keeps up to {cache.memory_gib:g} GiB in memory and {cache.disk_gib:g} GiB in"
        f" {cache.place}, and decodes the rest for each batch (learner.cache{of})"
    )


def _cache(sizes: Mapping[str, int]) -> str:
    """What the frames take for each policy."""
    from zk0d.learning.progress import size

    return "frames take " + ", ".join(f"{size(count)} for {name}" for name, count in sizes.items())


def _pictures(recordings: Recordings, *, quiet: bool) -> list[Remark]:
    """Decode every frame, and tell how far that is; what is remarkable about the pictures."""
    from rich.console import Console

    from zk0d.learning.inspection import inspect_pictures

    console = Console(stderr=True, quiet=quiet)
    told = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told
        if console.is_terminal:
            shown.update(str(progress))
        elif time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            console.print(str(progress), soft_wrap=True, highlight=False)

    with console.status(f"decoding {recordings.uri}") as shown:
        return list(inspect_pictures(recordings, tell))
