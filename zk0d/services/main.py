"""``zk0d``: the services. People type ``zk0bot``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from zk0d.config.machine import DEFAULT_CLIENT_CONFIG, DEFAULT_SERVER_CONFIG
from zk0d.daemon.logs import log_to_stderr
from zk0d.daemon.program import guarded
from zk0d.machine.roles import SERVICES, Role, service

_DEFAULTS = {Role.SERVER: DEFAULT_SERVER_CONFIG, Role.CLIENT: DEFAULT_CLIENT_CONFIG}


def _of(name: str) -> Callable[..., Any]:
    """What runs a service; its module is loaded now."""
    run: Callable[..., Any] = import_module(f"zk0d.services.{name.replace('-', '_')}").run
    return run


def command_line() -> argparse.ArgumentParser:
    """What may be typed."""
    parser = argparse.ArgumentParser(
        prog="zk0d", description="The services of a zk0d federation (systemd starts them)."
    )
    verbs = parser.add_subparsers(required=True, metavar="SERVICE")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text)

    for each in SERVICES:
        if each.verb == [each.name] and len(each.roles) == 1:
            verb = add(each.name, each.text)
            default = _DEFAULTS[each.roles[0]]
            verb.add_argument("--config", type=Path, default=default, help="settings (%(default)s)")
            if each.once:
                verb.add_argument(
                    "--restore", action="store_true", help="undo it: systemd calls this at the end"
                )
                verb.set_defaults(
                    run=lambda given, name=each.name: _of(name)(given.config, given.restore)
                )
            else:
                verb.set_defaults(run=lambda given, name=each.name: _of(name)(given.config))
    verb = add("superexec", service("server-superexec").text)
    verb.add_argument("role", choices=tuple(map(str, Role)))
    verb.add_argument("--config", type=Path, help="settings (of the role, in /etc/zk0d)")
    verb.set_defaults(
        run=lambda given: _of("superexec")(given.config or _DEFAULTS[Role(given.role)], given.role)
    )
    verb = add("fetch", service("fetch").text)
    for role in Role:
        verb.add_argument(f"--{role}", type=Path, help=f"{role}.toml (those in /etc/zk0d)")
    verb.set_defaults(run=lambda given: _of("fetch")(given.client, given.server))
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
