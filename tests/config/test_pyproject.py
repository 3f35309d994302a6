"""pyproject.toml, the bundle and the settings models say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from zk0d.config.run import RunSettings
from zk0d.flower.bundle import bundle_toml

ROOT = Path(__file__).parents[2]


def pyproject() -> dict[str, dict[str, object]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"][
        "app"
    ]


def test_every_run_setting_is_listed_with_its_default() -> None:
    assert pyproject()["config"] == RunSettings.flat_defaults()


def test_the_bundle_means_the_same_app() -> None:
    bundle = tomllib.loads(bundle_toml())["tool"]["flwr"]["app"]
    assert bundle == pyproject()


def test_every_run_setting_is_read_somewhere() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "zk0d").rglob("*.py")
        if path.name != "machine.py"
    )
    for name in RunSettings.model_fields:
        if name not in RunSettings.tables():
            assert f"settings.{name}" in code, name
    for title, table in RunSettings.tables().items():
        for name in table.model_fields:
            near = rf"(self|settings|{title}|asked)\.{name}\b"
            assert re.search(near, code), f"{title}.{name}"


def test_every_machine_setting_is_read_somewhere() -> None:
    from zk0d.config import machine
    from zk0d.config.base import Settings

    code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "zk0d").rglob("*.py")
        if path.parent.name != "config"
    )
    models = [
        model
        for model in vars(machine).values()
        if isinstance(model, type)
        and issubclass(model, Settings)
        and model.__module__ == machine.__name__
    ]
    assert len(models) >= 10
    for model in models:
        for name in model.model_fields:
            # Flower's and zk0d's own tables are reached by name, never in bulk.
            assert f".{name}" in code, f"{model.__name__}.{name}"


def test_the_page_of_settings_is_the_codes() -> None:
    from zk0d.config.reference import settings_page

    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_page(), (
        "docs/settings.md is old: run make settings-page"
    )
