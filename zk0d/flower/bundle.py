"""The app bundle that a run is started with: one pyproject.toml and no code."""

from __future__ import annotations

import json
from importlib.metadata import version

from flwr.cli.build import build_fab_from_files

from zk0d.config.run import RunSettings

SERVER_APP = "zk0d.federation.server_app:app"
CLIENT_APP = "zk0d.federation.client_app:app"


def bundle_toml() -> str:
    """The pyproject.toml of a bundle: names, and every run setting with its default."""
    settings = "\n".join(
        f"{key} = {json.dumps(value)}" for key, value in RunSettings.flat_defaults().items()
    )
    return f"""\
[project]
name = "zk0d"
version = "{version("zk0d")}"
description = "Runs the installed zk0d; holds no code."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "zk0"
fab-include = ["pyproject.toml"]

[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "{CLIENT_APP}"

[tool.flwr.app.config]
{settings}
"""


def build_bundle() -> bytes:
    """The bundle as Flower's app file."""
    content: bytes
    content, _ = build_fab_from_files({"pyproject.toml": bundle_toml().encode()})
    return content
