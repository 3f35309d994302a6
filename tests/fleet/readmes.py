"""Each role's README, made from its argument_specs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.guests.environment import REPOSITORY

ROLES = REPOSITORY / "ansible" / "roles"


def readme(role: Path) -> str:
    """What the README of a role says."""
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]
    rows = [_row(name, option) for name, option in specs["options"].items()]
    lines = [
        f"# {role.name}",
        "",
        f"{specs['short_description']}.",
        "",
        " ".join(specs["description"]),
        "",
        "| variable | type | default | |",
        "|---|---|---|---|",
        *rows,
        *(line for name, option in specs["options"].items() for line in _keys(name, option)),
        "",
        "Made from `meta/argument_specs.yml` by `python -m tests.fleet.readmes`.",
        "",
    ]
    return "\n".join(lines)


def _keys(name: str, option: dict[str, Any]) -> list[str]:
    """What an entry of a list may have."""
    keys = option.get("options", {})
    if not keys:
        return []
    head = ["", f"An entry of `{name}`:", "", "| key | type | |", "|---|---|---|"]
    return [*head, *(_key(key, said) for key, said in keys.items())]


def _key(name: str, option: dict[str, Any]) -> str:
    needed = " Needed." if option.get("required") else ""
    return f"| `{name}` | {_kind(option)} | {option['description']}{needed} |"


def _kind(option: dict[str, Any]) -> str:
    choices = option.get("choices")
    return " or ".join(map(str, choices)) if choices else str(option["type"])


def _row(name: str, option: dict[str, Any]) -> str:
    default = option.get("default")
    shown = "unset" if default is None else f"`{json.dumps(default)}`".replace("|", "\\|")
    return f"| `{name}` | {_kind(option)} | {shown} | {option['description']} |"


def main() -> None:
    for role in sorted(ROLES.iterdir()):
        (role / "README.md").write_text(readme(role))


if __name__ == "__main__":
    main()
