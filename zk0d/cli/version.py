"""``zk0bot version``."""

from __future__ import annotations

from importlib.metadata import version as installed

import typer

PACKAGES = ("zk0d", "flwr", "lerobot", "torch", "transformers")


def version() -> None:
    """Show the versions of zk0d and of its main packages."""
    for package in PACKAGES:
        typer.echo(f"{package} {installed(package)}")
