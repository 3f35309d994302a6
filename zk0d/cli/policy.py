"""``zk0bot policy``: the coordinator's releases on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zk0d.cli import policy_compare, policy_try, policy_tune, verbs
from zk0d.machine import contributors, units

if TYPE_CHECKING:
    from zk0d.arm.tries import Tally
    from zk0d.config.machine import ClientSettings
    from zk0d.release.manifest import Release
    from zk0d.services.pull import Offering, Source

app = typer.Typer(
    no_args_is_help=True, help="The coordinator's releases: list, fetch, look at and try them."
)

app.command("compare")(policy_compare.compare)
app.command("tune")(policy_tune.tune)
app.command("try")(policy_try.try_)

Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
NAMED = "latest, best, a run's name for its best, or RUN/ROUND"


@app.command(name="list")
def list_(
    here: Annotated[
        bool, typer.Option("--here", help="Do not ask the coordinator: only what is here.")
    ] = False,
    as_json: Json = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: verbs.Contributor = "",
) -> None:
    """List the releases that the coordinator offers, and those that are here."""
    from zk0d.release.pulled import Pulled

    settings = _settings(folder, contributor)
    pulled = Pulled.of(settings)
    there = {each.release.name: each for each in pulled.all()}
    offering = None if here else _ask(settings)
    offered = {each.name: each for each in offering.releases()} if offering else {}
    names = {"latest": "", "best": ""}
    if offering is not None:
        names = {"latest": offering.offer.latest, "best": offering.offer.best}
    else:
        by_folder = {each.folder.resolve(): name for name, each in there.items()}
        names = {
            name: by_folder.get(place, "") if (place := pulled.named(name)) else ""
            for name in names
        }
    every = {**{name: each.release for name, each in there.items()}, **offered}
    tries = _tries()
    rows: list[dict[str, Any]] = []
    for release in sorted(every.values(), key=lambda each: (each.began, each.round)):
        name = release.name
        rows.append(
            {
                "name": name,
                "policy": release.policy,
                "loss": release.loss,
                "on_nodes": release.on_nodes.change if release.on_nodes else None,
                "passed": release.passed,
                "accepted": release.accepted,
                "bytes": release.size,
                "lerobot": release.lerobot,
                "offered": name in offered if offering else None,
                "folder": str(there[name].folder) if name in there else None,
                "named": [word for word, of in names.items() if of == name],
                "tries": _counts(release, tries),
            }
        )
    if as_json:
        preparing = offering.offer.preparing if offering else 0
        said = {"schema_version": 1, "releases": rows, "preparing": preparing}
        typer.echo(json.dumps(said))
        return
    if not rows:
        typer.echo(
            f"no release is in {pulled.folder}" if here else "the coordinator has no release yet"
        )
    for row in rows:
        typer.echo(_line(row, _tallies(every[row["name"]], tries)))
    if offering is not None and offering.offer.preparing:
        typer.echo(f"{offering.offer.preparing} more are still being read there", err=True)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="[latest|best|RUN]", help=NAMED)] = "latest",
    as_json: Json = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: verbs.Contributor = "",
) -> None:
    """Fetch a release of the coordinator; what was cut off continues where it was."""
    from zk0d.services.pull import pull as fetch

    settings = _settings(folder, contributor)
    say = (lambda line: typer.echo(line, err=True)) if as_json else typer.echo
    made = _with_source(settings, lambda source: fetch(settings, source, name, say=say))
    if as_json:
        said = {"schema_version": 1, "name": made.release.name, "folder": str(made.folder)}
        typer.echo(json.dumps(said))
        return
    typer.echo(str(made.folder))
    if not made.release.is_released:
        typer.echo(f"it did not pass the gate: {_why(made.release)}", err=True)
    more = contributors.option(verbs.place(folder, contributor))
    typer.echo(f"zk0bot policy show {made.release.name}{more} says how to start it", err=True)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="[latest|best|RUN]", help=f"{NAMED}; or a folder.")
    ] = "latest",
    as_json: Json = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: verbs.Contributor = "",
) -> None:
    """Show a release that is here: what it is, whether it is whole, how LeRobot starts it."""
    from zk0d.config.names import GROUPS_FOLDER
    from zk0d.release import rollout
    from zk0d.release.pulled import Pulled, PulledRelease

    settings = _settings(folder, contributor)
    pulled = Pulled.of(settings)
    found = PulledRelease.read(pulled.find(name))
    key = pulled.known_key(settings)
    state, file = found.check(key) if key else ("unknown-key", "")
    release = found.release
    groups = sorted(path.name for path in (found.folder / GROUPS_FOLDER).glob("*"))
    lines = rollout.lines(found.folder, release.robot_types)
    if as_json:
        content = release.model_dump(mode="json", exclude={"files", "version"})
        said = {
            "schema_version": 1,
            "name": release.name,
            "folder": str(found.folder),
            "state": state,
            "file": file,
            **content,
            "groups": groups,
            "start": lines,
            "tries": _counts(release, _tries()),
        }
        typer.echo(json.dumps(said))
    else:
        _tell(release, found.folder, groups)
        for tally in _tallies(release, _tries()):
            typer.echo(f"{'your arm':11} {tally.sentence()}")
        typer.echo(f"signature   {_state(state, file)}")
        typer.echo(f"try it      zk0bot policy try {release.name} --robot-config FILE")
        typer.echo("by hand     " + "\n            ".join(lines))
    if state != "whole":
        raise typer.Exit(1)


def _tell(release: Release, folder: Path, groups: list[str]) -> None:
    from zk0d.release.manifest import sentence_of

    licenses = "; ".join(f"{name}: {own}" for name, own in release.data_licenses.items())
    rows = {
        "release": f"{release.name}, {release.policy}, from {release.base_model}",
        "folder": str(folder),
        "license": release.license or "not said",
        "data": f"recordings of {release.contributors} contributors, whose licenses they alone"
        f" know; held out: {licenses or 'none'}",
        "robots": ", ".join(release.robot_types) or "not said",
        "loss": _loss(release),
        "by dataset": sentence_of(release.losses),
        "on nodes": _on_nodes(release),
        "success": "" if release.success is None else f"{release.success:.0%} in simulation",
        "gate": _gate(release),
        "versions": f"LeRobot {release.lerobot}, zk0d {release.zk0d}",
        "processors": f"of each group in statistics/: {', '.join(groups)}" if groups else "",
        "card": str(folder / "README.md"),
    }
    for label, text in rows.items():
        if text:
            typer.echo(f"{label:11} {text}")


def _loss(release: Release) -> str:
    if release.loss is None:
        return "not measured"
    before = "" if release.baseline is None else f", before training {release.baseline:.4f}"
    return f"{release.loss:.4f}{before}"


def _on_nodes(release: Release) -> str:
    """How the loss changed on the nodes' own held-out episodes."""
    found = release.on_nodes
    if found is None:
        return ""
    each = ", ".join(f"{name} {change:+.4f}" for name, change in found.nodes.items())
    spread = "" if found.spread is None else f", spread {found.spread:.4f}"
    return f"held-out loss {found.change:+.4f} since the run began{spread}: {each}"


def _gate(release: Release) -> str:
    said = "passed" if release.passed else f"not passed ({_why(release)})"
    return f"{said}; accepted by hand: {release.accepted}" if release.accepted else said


def _why(release: Release) -> str:
    return "; ".join(release.reasons) or "no reason is given"


def _state(state: str, file: str) -> str:
    if state == "whole":
        return "the coordinator's, and every file is as it was signed"
    if state == "changed":
        return f"the coordinator's, but {file} is not as it was signed: pull the release again"
    return "of another key than the coordinator's that this machine knows: do not use it"


def _line(row: dict[str, Any], tallies: list[Tally]) -> str:
    from zk0d.config.amounts import say_bytes

    loss = "not measured"
    if row["loss"] is not None:
        loss = f"loss {row['loss']:.4f}"
    elif row["on_nodes"] is not None:
        loss = f"nodes {row['on_nodes']:+.4f}"
    gate = "passed" if row["passed"] else "accepted" if row["accepted"] else "not passed"
    place = "here" if row["folder"] else "-"
    if row["folder"] and row["offered"] is False:
        place = "here alone"
    named = ", ".join(row["named"])
    size = say_bytes(row["bytes"])
    line = f"{row['name']:24} {row['policy']:10} {loss:14} {gate:11} {size:>8}  {place:10} {named}"
    tried = "; ".join(tally.counts for tally in tallies)
    return f"{line.rstrip()}  {tried}".rstrip()


def _tries() -> tuple[Tally, ...]:
    """What this user's arms did."""
    from zk0d.arm.tries import Tries

    return Tries.of_user().all()


def _tallies(release: Release, tries: tuple[Tally, ...]) -> list[Tally]:
    """Those of a release, whatever it was called when it was tried."""
    from zk0d.config.names import WEIGHTS_FILE

    weights = {file.sha256 for file in release.files if file.path == WEIGHTS_FILE}
    return [tally for tally in tries if tally.policy_sha256 in weights]


def _counts(release: Release, tries: tuple[Tally, ...]) -> list[dict[str, Any]]:
    return [
        {"robot_type": each.robot_type, "tried": each.tried, "succeeded": each.succeeded}
        for each in _tallies(release, tries)
    ]


def _settings(folder: Path, contributor: str) -> ClientSettings:
    from zk0d.config.machine import ClientSettings

    return ClientSettings.load(verbs.place(folder, contributor) / "client.toml")


def _ask(settings: ClientSettings) -> Offering:
    return _with_source(settings, lambda source: source.ask())


def _with_source[T](settings: ClientSettings, use: Callable[[Source], T]) -> T:
    """What ``use`` makes of the coordinator, as this node sees it."""
    from zk0d.daemon.line import LineBook
    from zk0d.federation.line import Line
    from zk0d.machine.node_key import with_key
    from zk0d.services.pull import Source

    def used(key: Path) -> T:
        source = Source(settings, key, Line(settings.limits, LineBook(settings.policies_folder)))
        try:
            return use(source)
        finally:
            source.close()

    return with_key(settings.supernode.key, used)
