"""``zk0d``: the services. People type ``zk0bot``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zk0d.config.machine import DEFAULT_CLIENT_CONFIG, DEFAULT_SERVER_CONFIG
from zk0d.daemon.program import guarded


def _learner(arguments: argparse.Namespace) -> None:
    from zk0d.services import learner

    learner.run(arguments.config, evaluator=False)


def _evaluator(arguments: argparse.Namespace) -> None:
    from zk0d.services import learner

    learner.run(arguments.config, evaluator=True)


def main() -> None:
    """Parse the command line and run one service until it is told to stop."""
    parser = argparse.ArgumentParser(
        prog="zk0d", description="The services of a zk0d federation (systemd starts them)."
    )
    verbs = parser.add_subparsers(required=True, metavar="SERVICE")
    for name, run, default, text in (
        ("learner", _learner, DEFAULT_CLIENT_CONFIG, "train on this machine's recordings"),
        ("evaluator", _evaluator, DEFAULT_SERVER_CONFIG, "evaluate beside the coordinator"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("--config", type=Path, default=default, help="settings (%(default)s)")
        verb.set_defaults(run=run)
    try:
        arguments = parser.parse_args()
    except SystemExit as end:
        # argparse ends with 2; ours for a wrong command line is 64.
        sys.exit(64 if end.code == 2 else end.code)
    sys.exit(guarded("zk0d", lambda: arguments.run(arguments)))
