"""Filters for the contributors of one host, as ``zk0d_client_contributors`` lists them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = """
name: contributors
short_description: What a host's contributors are, by their names
description:
  - Without entries there is one contributor, whose name is empty.
  - What an entry does not say is that of the host.
positional: _input
options:
  _input:
    description: The entries of zk0d_client_contributors.
    type: list
    elements: dict
    required: true
  usual:
    description: The host's own variables, without their prefix.
    type: dict
    required: true
"""
EXAMPLES = """
all: "{{ zk0d_client_contributors | zk0.zk0d.contributors(zk0d_client_usual) }}"
"""
RETURN = """
_value:
  description: >-
    By name; each has node, key, hf_token, lent, folder, at (of its units), options, where and
    settings.
  type: dict
"""

SYSTEM_FOLDER = "/etc/zk0d"
#: Keys of an entry that no variable of the host is for.
OWN = ("name", "node", "port", "key")
#: Keys of an entry that are keys of [limits].
LIMITS = (
    *("hours", "priority", "only_when_idle", "on_battery"),
    *("gpu_max_celsius", "gpu_power_watts"),
)
#: The service that sets it has no named contributors.
UNNAMED = "gpu_power_watts"
#: What ``zk0bot client init`` chooses for a contributor that has a name, and Ansible does not.
PLACES = {
    "coordinator": ("ca",),
    "supernode": ("key", "secret", "state", "port", "metrics-port"),
    "superexec": ("state", "metrics-port"),
    "learner": ("socket", "state"),
    "owner": ("state",),
}
PORTS = (("supernode", "port"), ("supernode", "metrics-port"), ("superexec", "metrics-port"))
LONGEST_NODE = 32


def contributors(entries: Any, usual: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each contributor of a host is, by its name."""
    if not entries:
        return {"": _one({}, usual)}
    return {entry["name"]: _one(entry, usual) for entry in _named(entries)}


def contributor_lent(all_: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each contributor lends, one by one."""
    return [
        {"contributor": name, "uri": uri} for name, each in all_.items() for uri in each["lent"]
    ]


def contributor_nodes(entries: Any, host: str) -> list[str]:
    """The names of a host's nodes at the coordinator; ``host`` is the only one's."""
    return [_node(entry, host) for entry in _named(entries)] if entries else [host]


def contributors_refused(entries: Any, usual: Mapping[str, Any], name: str) -> list[str]:
    """Why these entries cannot be; empty if they can.

    ``name`` is the pattern of a contributor's name.
    """
    return list(_refused(entries, usual, name)) if entries else []


def contributor_places(text: str) -> dict[str, dict[str, Any]]:
    """Ports and paths in the text of a ``client.toml``, which stay as they are."""
    try:
        there = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AnsibleFilterError(f"contributor_places: client.toml is no TOML ({error})") from None
    kept = {
        table: {key: there[table][key] for key in keys if key in there[table]}
        for table, keys in PLACES.items()
        if isinstance(there.get(table), Mapping)
    }
    return {table: content for table, content in kept.items() if content}


def _named(entries: Any) -> list[Mapping[str, Any]]:
    """Those that have a name; the rest is refused elsewhere."""
    listed = entries if isinstance(entries, Sequence) and not isinstance(entries, str) else ()
    return [each for each in listed if isinstance(each, Mapping) and each.get("name")]


def _node(entry: Mapping[str, Any], host: str) -> str:
    """As zk0bot calls a node whose owner does not say: by its machine, and its contributor."""
    name = str(entry["name"])
    return str(entry.get("node") or f"{host[: LONGEST_NODE - 1 - len(name)]}-{name}")


def _one(entry: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    name = str(entry.get("name", ""))
    values = {**usual, **{key: value for key, value in entry.items() if value is not None}}
    if name:
        values |= {"node": _node(entry, usual["node"]), "key": entry.get("key") or ""}
        # Its own GPU and recordings are not beside those of the host's variables.
        if "device" in entry and "devices" not in entry:
            values["devices"] = []
        if "devices" in entry and "device" not in entry:
            values["device"] = "auto"
        if "dataset" in entry and "datasets" not in entry:
            values["datasets"] = []
    return {
        "node": values["node"],
        "key": values["key"],
        "lent": [each.get("uri") for each in values["datasets"]] or [values["dataset"]],
        "hf_token": values["hf_token"],
        "folder": f"{SYSTEM_FOLDER}/clients/{name}" if name else SYSTEM_FOLDER,
        "at": f"@{name}" if name else "",
        "options": [f"--contributor={name}"] if name else [],
        "where": f"zk0d_client_contributors: {name}." if name else "zk0d_client_",
        "settings": _settings(values, entry, usual),
    }


def _settings(
    values: Mapping[str, Any], entry: Mapping[str, Any], usual: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings' tables; the entry's settings come last."""
    made: dict[str, Any] = {
        "name": values["node"],
        "dataset-uri": values["dataset"],
        "dataset": values["datasets"],
        "coordinator": {"address": values["coordinator"]},
    }
    del made["dataset-uri" if values["datasets"] else "dataset"]
    if values["metrics_from"]:  # the unit lets in these alone
        made["metrics"] = {"host": "0.0.0.0"}  # noqa: S104
    # Those that are set: an older version does not know them all.
    limits = {key.replace("_", "-"): values[key] for key in LIMITS if values[key]}
    learner = {"device": values["device"]} if values["device"] != "auto" else {}
    if values["devices"]:
        learner["devices"] = values["devices"]
    made |= {k: v for k, v in {"limits": limits, "learner": learner}.items() if v}
    if values.get("port"):
        for at, (table, key) in enumerate(PORTS):
            made = _merged(made, {table: {key: int(values["port"]) + at}})
    made = _merged(made, usual["settings"])
    return _merged(made, entry.get("settings") or {})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return dict(base) | {
        key: _merged(base[key], value)
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        else value
        for key, value in over.items()
    }


def _refused(entries: Any, usual: Mapping[str, Any], pattern: str) -> Iterator[str]:
    named = _named(entries)
    if not isinstance(entries, list) or len(named) != len(entries):
        yield "each entry is a dictionary with a name"
        return
    for entry in named:
        name = entry["name"]
        if not isinstance(name, str) or not re.match(pattern, name):
            yield (
                f"{name} is not a name; write 1 to 16 of a-z, 0-9 and '-', with a letter or a"
                " digit first and last"
            )
            return
        known = {*OWN, *usual} - {UNNAMED, "coordinator", "metrics_from"}
        if unknown := sorted(set(entry) - known):
            yield f"{name} has {', '.join(unknown)}; an entry may have {', '.join(sorted(known))}"
            return
    names = [entry["name"] for entry in named]
    for name in _twice(names):
        yield f"two entries have the name {name}"
    all_ = contributors(entries, usual)
    if len(all_) != len(names):
        return
    for node in _twice([each["node"] for each in all_.values()]):
        yield f"two entries have the node {node}"
    if usual["key"]:
        yield "zk0d_client_key is one node's; give each entry a key of its own, or none"
    if _twice([each["key"] for each in all_.values() if each["key"]]):
        yield "two entries have one key"
    if len({bool(entry.get("port")) for entry in named}) > 1:
        yield "some entries have a port and some have none; give each one, or none"
    for entry in named:
        if entry.get("dataset") and entry.get("datasets"):
            yield f"{entry['name']} has dataset and datasets; leave one of them out"
    for name, each in all_.items():
        limits, learner = (each["settings"].get(table) or {} for table in ("limits", "learner"))
        if limits.get(UNNAMED.replace("_", "-")):
            yield (
                f"{name} has gpu-power-watts, which zk0d sets for a contributor without a name"
                " alone; leave it out"
            )
        if learner.get("devices") and learner.get("device", "auto") != "auto":
            yield f"{name} has device and devices; leave one of them out"
    yield from _shared(all_, _ports, "port")
    yield from _shared(all_, _gpus, "GPU")


def _shared(all_: Mapping[str, Any], of: Any, what: str) -> Iterator[str]:
    """What two of them have, or one of them twice."""
    owner: dict[Any, str] = {}
    for name, each in all_.items():
        for one in of(each["settings"]):
            if owner.get(one) == name:
                yield f"{name} has the {what} {one} twice"
            elif one in owner:
                yield f"{owner[one]} and {name} have the {what} {one}"
            owner.setdefault(one, name)


def _ports(settings: Mapping[str, Any]) -> list[int]:
    given = ((settings.get(table) or {}).get(key) for table, key in PORTS)
    return [port for port in given if port]


def _gpus(settings: Mapping[str, Any]) -> list[str]:
    learner = settings.get("learner") or {}
    named = learner.get("devices") or [learner.get("device", "")]
    return ["cuda:0" if device == "cuda" else device for device in named if "cuda" in str(device)]


def _twice(values: Sequence[Any]) -> list[Any]:
    return sorted({each for each in values if values.count(each) > 1})


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        return {
            "contributors": contributors,
            "contributor_lent": contributor_lent,
            "contributor_nodes": contributor_nodes,
            "contributors_refused": contributors_refused,
            "contributor_places": contributor_places,
        }
