"""``zk0d``: the services. People type ``zk0bot``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zk0d.config.machine import DEFAULT_CLIENT_CONFIG, DEFAULT_SERVER_CONFIG
from zk0d.daemon.logs import log_to_stderr
from zk0d.daemon.program import guarded


def _learner(arguments: argparse.Namespace) -> None:
    from zk0d.services import learner

    learner.run(arguments.config, evaluator=False)


def _evaluator(arguments: argparse.Namespace) -> None:
    from zk0d.services import learner

    learner.run(arguments.config, evaluator=True)


def _superlink(arguments: argparse.Namespace) -> None:
    from zk0d.services import superlink

    superlink.run(arguments.config)


def _supernode(arguments: argparse.Namespace) -> None:
    from zk0d.services import supernode

    supernode.run(arguments.config)


def _superexec(arguments: argparse.Namespace) -> None:
    from zk0d.services import superexec

    defaults = {"server": DEFAULT_SERVER_CONFIG, "client": DEFAULT_CLIENT_CONFIG}
    superexec.run(arguments.role, arguments.config or defaults[arguments.role])


def _fetch(arguments: argparse.Namespace) -> None:
    from zk0d.services import fetch

    fetch.run(arguments.client, arguments.server)


def _publish(arguments: argparse.Namespace) -> None:
    from zk0d.services import publish

    publish.run(arguments.config)


def command_line() -> argparse.ArgumentParser:
    """What may be typed."""
    parser = argparse.ArgumentParser(
        prog="zk0d", description="The services of a zk0d federation (systemd starts them)."
    )
    verbs = parser.add_subparsers(required=True, metavar="SERVICE")
    for name, run, default, text in (
        ("learner", _learner, DEFAULT_CLIENT_CONFIG, "train on this machine's recordings"),
        ("superlink", _superlink, DEFAULT_SERVER_CONFIG, "the coordinator's SuperLink"),
        ("supernode", _supernode, DEFAULT_CLIENT_CONFIG, "this machine's SuperNode"),
        ("evaluator", _evaluator, DEFAULT_SERVER_CONFIG, "evaluate beside the coordinator"),
        ("publish", _publish, DEFAULT_SERVER_CONFIG, "send out what runs ask for, once"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("--config", type=Path, default=default, help="settings (%(default)s)")
        verb.set_defaults(run=run)
    verb = verbs.add_parser("superexec", help="start the installed apps of one side")
    verb.add_argument("role", choices=("server", "client"))
    verb.add_argument("--config", type=Path, help="settings (of the role, in /etc/zk0d)")
    verb.set_defaults(run=_superexec)
    verb = verbs.add_parser("fetch", help="download from the hub what the settings name")
    for role in ("client", "server"):
        verb.add_argument(f"--{role}", type=Path, help=f"{role}.toml (those in /etc/zk0d)")
    verb.set_defaults(run=_fetch)
    return parser


def main() -> None:
    """Parse the command line and run one service until it is told to stop."""
    try:
        arguments = command_line().parse_args()
    except SystemExit as end:
        # argparse ends with 2; ours for a wrong command line is 64.
        sys.exit(64 if end.code == 2 else end.code)
    log_to_stderr()
    sys.exit(guarded("zk0d", lambda: arguments.run(arguments)))
