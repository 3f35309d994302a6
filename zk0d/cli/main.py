"""The ``zk0bot`` program."""

from __future__ import annotations

import sys

import typer

from zk0d.cli import (
    audit,
    client,
    compare,
    config,
    dashboards,
    data,
    demo,
    doctor,
    logs,
    node,
    policy,
    release,
    report,
    run,
    server,
    setup,
    simulate,
    status,
    stop,
    top,
    train,
    version,
)
from zk0d.daemon.program import guarded
from zk0d.errors import ExitCode

app = typer.Typer(
    name="zk0bot",
    help="Train robots together: recordings stay at home, only weight updates travel.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Its "rich" takes a word in brackets, as a table of TOML or an extra, for a style.
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("setup")(setup.setup)
app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("simulate")(simulate.simulate)
app.command("compare")(compare.compare)
app.command("train")(train.train)
app.command("stop")(stop.stop)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.command("top")(top.top)
app.command("logs")(logs.logs)
app.add_typer(server.app, name="server")
app.add_typer(client.app, name="client")
app.add_typer(node.app, name="node")
app.add_typer(policy.app, name="policy")
app.add_typer(audit.app, name="audit")
app.add_typer(data.app, name="data")
app.add_typer(release.app, name="release")
app.command("push")(release.push)
app.command("report")(report.report)
app.add_typer(config.app, name="config")
app.add_typer(dashboards.app, name="dashboards")
app.command("version")(version.version)


def _invoke() -> int | None:
    try:
        app()
    except SystemExit as end:
        # click ends with 2 for a wrong command line; ours is the one of sysexits.h.
        return ExitCode.USAGE if end.code == 2 else end.code  # type: ignore[return-value]
    return None


def main() -> None:
    """Run one verb; exits with one of :class:`zk0d.errors.ExitCode`."""
    sys.exit(guarded("zk0bot", _invoke))
