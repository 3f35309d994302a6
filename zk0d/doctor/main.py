"""All rules, in the order in which one thing stands on another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.doctor import client, machine, recordings, server
from zk0d.doctor.finding import Finding, Host
from zk0d.machine import contributors
from zk0d.machine.roles import Role


def examine(roles: Sequence[str], folder: Path, host: Host) -> Iterator[Finding]:
    """Look at this machine; a finding as soon as there is one.

    Parameters
    ----------
    roles
        ``server``, ``client`` or both; empty takes those whose settings file is in ``folder``, and
        both if none is.
    """
    roles = roles or [role for role in Role if (folder / f"{role}.toml").exists()] or list(Role)
    yield machine.python()
    yield machine.python_path()
    yield machine.packages()
    yield machine.memory()
    yield machine.clock(host)
    yield machine.units(host, roles)
    yield machine.exposure(host, roles)
    for role in roles:
        look = _server if role == "server" else _client
        for finding in look(folder / f"{role}.toml", host):
            yield replace(finding, rule=f"{role}.{finding.rule}")


def _client(path: Path, host: Host) -> Iterator[Finding]:
    from zk0d.machine.keys import sealed_form

    found = machine.settings(path, ClientSettings)
    yield found
    if not found.ok:
        yield _not_looked_at()
        return
    settings = ClientSettings.load(path)
    node, coordinator = settings.supernode, settings.coordinator
    yield machine.disk(node.state)
    sealed = sealed_form(node.key)
    key = sealed if sealed.exists() and not node.key.exists() else node.key
    yield machine.secrets(host, {"supernode.key": key, "supernode.secret": node.secret})
    yield client.key(node.key)
    yield machine.ports(machine.port_uses(settings))
    yield client.shared_ports(path.parent)
    for device in settings.learner.all_devices:
        yield client.gpu(device)
    if settings.limits.gpu_power_watts:
        yield client.gpu_power(host, settings, contributor=contributors.name_of(path.parent))
    yield machine.models(host, settings.models, settings.fetch_models)
    most_bad = settings.learner.max_bad_frames
    if not settings.lent and not settings.learner.accept_run_dataset:
        yield from _recordings(host, None, {}, most_bad)
    for place, each in enumerate(settings.lent):
        table, uri = (f"dataset.{place}.", "uri") if settings.dataset else ("", "dataset-uri")
        cameras = settings.cameras_of(each)
        for finding in _recordings(host, each.uri, cameras, most_bad, key=table + uri):
            yield replace(finding, rule=table + finding.rule)
    yield client.coordinator_name(coordinator.address)
    yield client.gateway(coordinator.address, coordinator.ca, node.state)
    yield client.enrolled(settings)
    yield client.clock_at_coordinator(settings)


def _server(path: Path, host: Host) -> Iterator[Finding]:
    found = machine.settings(path, ServerSettings)
    yield found
    if not found.ok:
        yield _not_looked_at()
        return
    settings = ServerSettings.load(path)
    link = settings.superlink
    gateway = settings.gateway
    files = {
        "superlink.key": link.key,
        "superlink.secret": link.secret,
        "gateway.key": gateway.key,
    }
    if not link.open_control:
        files["superlink.control-secret"] = link.control_secret
    authority = link.ca.with_name("ca.key")
    if authority.exists():  # it may as well be kept elsewhere
        files["the CA's key"] = authority
    yield machine.disk(settings.state)
    yield machine.secrets(host, files)
    yield server.ca(link)
    for section, holder in (("superlink", link), ("gateway", gateway)):
        for finding in (
            server.certificate(holder),
            server.chain(link, holder),
            server.certificate_key(holder),
        ):
            yield replace(finding, rule=f"{section}.{finding.rule}")
    yield machine.ports(machine.port_uses(settings))
    named = [*settings.fetch_models]
    if settings.autorun and (model := settings.autorun.run.get("model-name")):
        named.append(str(model))
    yield machine.models(host, settings.models, named)
    yield client.gpu(settings.evaluator.device, user="evaluator")
    for each in settings.evaluation:
        for finding in _recordings(
            host,
            each.dataset_uri,
            each.cameras,
            settings.evaluator.max_bad_frames,
            key=f"evaluation.{each.name}.dataset-uri",
        ):
            yield replace(finding, rule=f"evaluation.{each.name}.{finding.rule}")
    yield server.roster(link.roster)
    yield server.nodes(link)


def _recordings(
    host: Host,
    uri: str | None,
    cameras: dict[str, str],
    most_bad: int,
    key: str = "dataset-uri",
) -> Iterator[Finding]:
    found = recordings.dataset(host, uri, key)
    yield found
    if found.ok and uri is not None:
        yield recordings.dataset_values(host, uri, cameras, most_bad, key=key)


def _not_looked_at() -> Finding:
    return Finding(
        "everything-else", None, "this check needs the settings, which cannot be used yet"
    )
