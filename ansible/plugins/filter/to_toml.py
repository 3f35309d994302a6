"""The filter ``to_toml``: a zk0d settings file from a dictionary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = """
name: to_toml
short_description: A dictionary as TOML
description:
  - Writes strings, numbers, booleans, lists, dictionaries and lists of dictionaries.
  - A key that is none is left out, so that a variable can leave a setting at its default.
positional: _input
options:
  _input:
    description: The settings.
    type: dict
    required: true
"""
EXAMPLES = """
client_toml: "{{ {'name': 'left-bench', 'limits': {'max-steps': 200}} | zk0.zk0d.to_toml }}"
"""
RETURN = """
_value:
  description: The text of the file.
  type: str
"""


def to_toml(settings: Mapping[str, Any]) -> str:
    """The text of a file that holds ``settings``."""
    if not isinstance(settings, Mapping):
        raise AnsibleFilterError(f"to_toml: {settings!r} is no dictionary of settings")
    return "\n".join(_table("", settings)).strip("\n") + "\n"


def _table(path: str, table: Mapping[str, Any]) -> Iterator[str]:
    """A table's own keys first: after a header, a key belongs to that header."""
    for key, value in table.items():
        if not _is_table(value) and value is not None:
            yield f"{_key(key)} = {_value(value, f'{path}{key}')}"
    for key, value in table.items():
        inner = f"{path}{_key(key)}"
        if isinstance(value, Mapping):
            yield f"\n[{inner}]"
            yield from _table(f"{inner}.", value)
        elif _is_table(value):
            for row in value:
                yield f"\n[[{inner}]]"
                yield from _table(f"{inner}.", row)


def _is_table(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    rows = isinstance(value, list) and len(value) > 0
    return rows and all(isinstance(row, Mapping) for row in value)


def _key(key: Any) -> str:
    text = str(key)
    plain = text.replace("-", "").replace("_", "")
    return text if plain.isascii() and plain.isalnum() else json.dumps(text, ensure_ascii=False)


def _value(value: Any, path: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item, path) for item in value) + "]"
    raise AnsibleFilterError(f"to_toml: {path}: {value!r} has no form in TOML")


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        return {"to_toml": to_toml}
