"""``docs/settings.md``, written from the models: ``python -m zk0d.config.reference``."""

from __future__ import annotations

import typing
from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from zk0d.config.base import Settings
from zk0d.config.datasets import DatasetSettings
from zk0d.config.machine import (
    AutorunSettings,
    ClientSettings,
    EvaluationDataset,
    ServerSettings,
)
from zk0d.config.run import ByRun, RunSettings

_INTRODUCTION = """# Settings

An unknown key is an error that names the nearest known one. `make settings-page` writes this page
from the code; a test keeps it equal.

`zk0bot config schema run|client|server` prints a JSON schema. With it an editor completes keys and
marks mistakes: write it beside the file as `client.schema.json`, and begin the file with
`#:schema client.schema.json`.
"""

_RUN = """## A run

`zk0bot run -c 'key=value'`, `flwr run . -c 'key=value'`, `zk0bot demo -c 'key=value'`. The
coordinator's `[run]` table sets the same keys for every run that does not set them itself. `auto`
is the usual value of the run's policy; the journal has the value.
"""


def settings_page() -> str:
    """The page as Markdown."""
    parts = [
        _INTRODUCTION,
        _RUN,
        _table(RunSettings),
        *(f"### {_first_line(t)}\n\n{_table(t)}" for t in RunSettings.tables().values()),
        "## A contributor: `client.toml`\n",
        *_tables(ClientSettings, ""),
        "### `[[dataset]]`, once for each of several recordings, in place of `dataset-uri`\n",
        _table(DatasetSettings),
        "## A coordinator: `server.toml`\n",
        *_tables(ServerSettings, ""),
        "### `[[evaluation]]`, once for each held-out dataset\n",
        _table(EvaluationDataset),
        "### `[autorun]`, if runs shall begin by themselves\n",
        _table(AutorunSettings),
    ]
    return "\n".join(parts)


def _first_line(model: type[Settings]) -> str:
    return (model.__doc__ or "").splitlines()[0].rstrip(".")


def _tables(model: type[Settings], path: str) -> list[str]:
    """The table of a model and, after it, those of the models in it."""
    parts = [f"### `[{path}]`\n"] if path else []
    parts.append(_table(model))
    for name, field in model.model_fields.items():
        if _is_table(field):
            below = typing.cast(type[Settings], field.annotation)
            parts += _tables(below, f"{path}.{_key(name)}".lstrip("."))
    return parts


def _table(model: type[Settings]) -> str:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if _is_table(field) or _is_list_of_tables(field):
            continue
        rows.append(
            f"| `{field.alias or _key(name)}` | {_default(field)} | {field.description or ''} |"
        )
    return "\n".join(rows) + "\n"


def _is_table(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Settings)


def _is_list_of_tables(field: FieldInfo) -> bool:
    return any(
        isinstance(part, type) and issubclass(part, Settings)
        for part in typing.get_args(field.annotation)
    )


def _key(name: str) -> str:
    return name.replace("_", "-")


def _default(field: FieldInfo) -> str:
    if by_run := [mark for mark in field.metadata if isinstance(mark, ByRun)]:
        return str(by_run[0])
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or value in ("", {}):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`"


if __name__ == "__main__":
    Path("docs/settings.md").write_text(settings_page(), encoding="utf-8")
