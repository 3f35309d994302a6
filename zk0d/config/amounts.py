"""Amounts as people write and read them: ``"20 GB"``, ``"1.2 kWh"``."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

_FACTORS = {"": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for kind, base in (("", 1000), ("i", 1024))
}
_AMOUNT = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<unit>[kKMGT]i?)?B?")


def parse_bytes(value: object) -> object:
    """The number that a text such as ``"2 MB"`` or ``"1.5GiB"`` means; else ``ValueError``.

    What is no text is returned as it is.
    """
    if not isinstance(value, str):
        return value
    found = _AMOUNT.fullmatch(value)
    if found is None:
        raise ValueError(
            f"{value!r} is not a number of bytes; write it as 2000000, '2 MB' or '1.5 GiB'"
        )
    return round(float(found["number"]) * _FACTORS[(found["unit"] or "").lower()])


def say_bytes(count: float) -> str:
    """``count`` for people, with three digits: ``"1.23 GB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def say_energy(joules: float) -> str:
    """Energy for people: ``"850 Wh"``, ``"1.2 kWh"``."""
    hours = joules / 3600
    return f"{hours:.3g} Wh" if hours < 999.5 else f"{hours / 1000:.3g} kWh"


#: A number of bytes, or a text that says one.
Bytes = Annotated[
    int,
    Field(ge=0, strict=True),
    BeforeValidator(parse_bytes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": r"^\d+(\.\d+)? ?([kKMGT]i?)?B?$"},
            ]
        }
    ),
]
