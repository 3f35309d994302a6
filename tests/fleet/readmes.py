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
        "",
        "Made from `meta/argument_specs.yml` by `python -m tests.fleet.readmes`.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, option: dict[str, Any]) -> str:
    kind = " or ".join(map(str, option["choices"])) if "choices" in option else option["type"]
    inner = option.get("options", {})
    more = f" Keys: {', '.join(f'`{key}`' for key in inner)}." if inner else ""
    default = option.get("default")
    shown = "unset" if default is None else f"`{json.dumps(default)}`".replace("|", "\\|")
    return f"| `{name}` | {kind} | {shown} | {option['description']}{more} |"


def main() -> None:
    for role in sorted(ROLES.iterdir()):
        (role / "README.md").write_text(readme(role))


if __name__ == "__main__":
    main()
