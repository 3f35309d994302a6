"""The app processes, with the apps that are installed here in place of a bundle's.

``python -m zk0d.flower.apps serverapp|clientapp`` takes the arguments of Flower's programs. A
bundle's bytes are read as data, for the run's settings; nothing of it is unpacked or imported.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from zk0d.daemon.freed import keep_freed_memory
from zk0d.errors import UsageError
from zk0d.flower import pulls
from zk0d.flower.processes import serve
from zk0d.flower.version import check_version, lacks

#: What each ClientApp would load by itself, if the process that forks had not.
NEEDED_BY_EACH = (
    "flwr.supernode.cli",
    "flwr.supernode.runtime.run_clientapp",
    "httpcore",
    "h11",
    "zk0d.flower.bundle",
)


def run_clientapp() -> None:
    """Flower's ClientApp process with our ClientApp."""
    import flwr.supernode.runtime.run_clientapp as process

    _replace(
        process,
        install_from_fab=lambda content, *_, **__: _tell_if_foreign(content),
        get_load_client_app_fn=lambda *_, **__: _installed_clientapp,
    )
    from flwr.supernode.cli import flwr_clientapp

    flwr_clientapp()


def run_serverapp() -> None:
    """Flower's ServerApp process with our ServerApp."""
    from flwr.cli.config_utils import get_fab_config

    # The package's attribute of that name is the function in it.
    process = importlib.import_module("flwr.superlink.runtime.run_serverapp")
    bundle: dict[str, Any] = {}

    def read_bundle(content: bytes, **_: Any) -> None:
        bundle.update(get_fab_config(content))
        _tell_if_foreign(content)

    def settings(_: Any, overrides: dict[str, Any]) -> dict[str, Any]:
        return said_by(bundle, overrides)

    def run(*, grid: Any, context: Any, **_: Any) -> Any:
        from zk0d.federation.server_app import app

        app(grid=grid, context=context)
        return context

    _replace(
        process,
        install_from_fab=read_bundle,
        get_project_config=lambda _: {
            "tool": {"flwr": {"app": {"components": {"serverapp": "installed"}}}}
        },
        get_fused_config_from_dir=settings,
        run_=run,
    )
    from flwr.superlink.cli import flwr_serverapp

    flwr_serverapp()


def said_by(bundle: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The run settings that somebody gave; a default in a bundle leaves it to the coordinator.

    Parameters
    ----------
    bundle
        Its pyproject.toml, which lists every key.
    overrides
        What was given when the run was started.
    """
    from zk0d.config.run import RunSettings, stored_settings

    config = bundle.get("tool", {}).get("flwr", {}).get("app", {}).get("config", {})
    defaults = RunSettings.flat_defaults()
    return {k: v for k, v in stored_settings(config).items() if v != defaults.get(k)} | overrides


def _installed_clientapp(*_: Any) -> Any:
    from zk0d.federation.client_app import app

    return app


def _tell_if_foreign(bundle: bytes) -> None:
    """Say in the log that a bundle names apps other than the installed ones, or holds more."""
    import io
    import logging
    import zipfile

    from flwr.cli.config_utils import get_fab_config
    from flwr.supercore import log

    from zk0d.flower.bundle import CLIENT_APP, SERVER_APP

    try:
        app = get_fab_config(bundle)["tool"]["flwr"]["app"]
        named = {str(name) for name in app["components"].values()}
        files = set(zipfile.ZipFile(io.BytesIO(bundle)).namelist())
    except (KeyError, TypeError, AttributeError, ValueError, zipfile.BadZipFile):
        named, files = {"nothing readable"}, set()
    code = {name for name in files if name.endswith(".py")}
    if not named <= {SERVER_APP, CLIENT_APP} or code:
        what = ", ".join(sorted(named | code))[:200]
        log(
            logging.WARNING,
            "zk0d: this run's bundle brings code (%s): none of it runs, the installed app does",
            what.encode("ascii", "replace").decode(),
        )


def _replace(module: Any, **functions: Any) -> None:
    for name, function in functions.items():
        if not hasattr(module, name):
            raise lacks(f"{name} in {module.__name__}")
        setattr(module, name, function)


def main() -> None:
    """Run one app process."""
    check_version()
    verbs = {"clientapp": run_clientapp, "serverapp": run_serverapp}
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        raise UsageError(f"apps: the first argument is one of {', '.join(verbs)}.")
    run = verbs[sys.argv.pop(1)]
    keep_freed_memory()
    pulls.install()
    # It is off, and yet looks up what machine this is, in processes of its own.
    _replace(importlib.import_module("flwr.supercore.telemetry"), create_event=lambda *_: "off")
    if sys.argv[1:2] == ["--forks"]:
        for module in NEEDED_BY_EACH:
            importlib.import_module(module)
        _installed_clientapp()
        serve(int(sys.argv[2]), run)
    run()


if __name__ == "__main__":
    main()
