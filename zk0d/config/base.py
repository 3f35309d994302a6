"""What all settings models share: dashed keys, no unknown keys, errors in one sentence."""

from __future__ import annotations

import difflib
import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from zk0d.errors import ConfigError

Scalar = str | int | float | bool


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class Settings(BaseModel):
    """A settings table: TOML keys with dashes, every unknown key an error, values frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=_dashed,
        populate_by_name=True,
        validate_default=True,
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Validate ``values`` that came from ``where`` (a file or a command line).

        Raises
        ------
        ConfigError
            With the dotted path of the first wrong key and, for an unknown one, the nearest known.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(_sentence(cls, error, where)) from None

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a TOML file.

        Raises
        ------
        ConfigError
            If the file cannot be read, is no TOML, or holds a wrong or unknown key.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such settings file; give the path of one.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: the settings cannot be read ({error}).") from None
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}.") from None
        return cls.parse(values, where=str(path))


class FlatSettings(Settings):
    """Tables whose keys are written without the tables' names; no two tables share a key."""

    @classmethod
    def tables(cls) -> dict[str, type[Settings]]:
        """The tables, by the name of the field that holds them."""
        return {
            name: field.annotation
            for name, field in cls.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
        }

    @model_validator(mode="before")
    @classmethod
    def _into_tables(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        homes = {key: name for name, table in cls.tables().items() for key in known_keys(table)}
        nested: dict[str, Any] = {}
        for key, value in values.items():
            home = homes.get(_dashed(key))
            if home is None or isinstance(value, Settings | Mapping):
                nested[key] = value
            else:
                nested.setdefault(home, {})[_dashed(key)] = value
        return nested

    def to_flat(self) -> dict[str, Scalar]:
        """All settings by their flat keys."""
        return _flat(self.model_dump(by_alias=True))

    def said(self) -> dict[str, Scalar]:
        """Those that were given; the rest has its defaults."""
        return _flat(self.model_dump(by_alias=True, exclude_unset=True))

    @classmethod
    def flat_schema(cls) -> dict[str, Any]:
        """The JSON schema of the flat keys."""
        schemas = [cls.model_json_schema(), *(t.model_json_schema() for t in cls.tables().values())]
        properties: dict[str, Any] = {}
        for schema in schemas:
            properties |= schema["properties"]
        flat = {key: properties[key] for key in known_keys(cls)}
        return {"type": "object", "additionalProperties": False, "properties": flat}


def _flat(tables: Mapping[str, Any]) -> dict[str, Scalar]:
    flat: dict[str, Scalar] = {}
    for key, value in tables.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat


def wrong(where: str, key: str, why: str) -> ConfigError:
    """The error for one key, by its dotted path, that no type can refuse."""
    return ConfigError(f"{where}: '{key}' is wrong: {why}.")


def parse_words(texts: Iterable[str], what: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of ``"key=value key2=value2"`` texts, as commands take settings.

    Values are TOML; a text without quotes is taken as it is.

    Parameters
    ----------
    what
        What a pair is called in an error.
    """
    for text in texts:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"{what}: {text!r} cannot be read: {error}.") from None
        for word in words:
            key, equals, raw = word.partition("=")
            if not equals or not key:
                raise ConfigError(f"{what}: {word!r} is not of the form key=value.")
            yield key.strip(), _value(raw.strip())


def _value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def known_keys(model: type[BaseModel]) -> list[str]:
    """The keys of a settings table as they are written in a file."""
    tables = model.tables() if issubclass(model, FlatSettings) else {}
    keys = [f.alias or name for name, f in model.model_fields.items() if name not in tables]
    return keys + [key for table in tables.values() for key in known_keys(table)]


def suggest(key: str, known: list[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest known key, or nothing."""
    near = difflib.get_close_matches(_dashed(key), known, n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _table_at(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model of the table that holds the key at ``path``."""
    table = model
    for part in path[:-1]:
        if isinstance(part, int):
            continue
        field = next((f for name, f in table.model_fields.items() if part in (name, f.alias)), None)
        inner: Any = field.annotation if field else None
        arguments = [inner, *getattr(inner, "__args__", ())]
        tables = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
        if not tables:
            return None
        table = tables[0]
    return table


def _sentence(model: type[BaseModel], error: ValidationError, where: str) -> str:
    errors = error.errors()
    first = errors[0]
    if issubclass(model, FlatSettings) and first["loc"] and first["loc"][0] in model.tables():
        first["loc"] = first["loc"][1:]
    dotted = ".".join(str(part) for part in first["loc"])
    more = f" ({len(errors) - 1} more after it)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        table = _table_at(model, first["loc"])
        hint = suggest(str(first["loc"][-1]), known_keys(table)) if table else ""
        return f"{where}: unknown key '{dotted}'{hint}{more}."
    if first["type"] == "missing":
        return f"{where}: '{dotted}' is missing{more}; add it."
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    what = f"'{dotted}' is wrong" if dotted else "the settings do not fit together"
    return f"{where}: {what}: {message}{more}."
