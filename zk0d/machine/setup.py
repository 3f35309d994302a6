"""What a machine needs before its services start: settings, keys, certificates, secrets."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from zk0d.files import write_file

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from zk0d.config.machine import ServerSettings
    from zk0d.machine.enrolment import Invite

DEFAULT_FOLDER = Path("/etc/zk0d")
GATEWAY = "gateway.conf"
SYSTEM_CA = Path("/etc/ssl/certs/ca-certificates.crt")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make the folder; what cannot be written in there is a sentence."""
    from zk0d.errors import TryAgainError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise TryAgainError(
            f"{folder}: cannot be written ({error.strerror or error}); are you root?"
        ) from None


def init_server(folder: Path, hosts: list[str], certificate: Path | None, key: Path | None) -> None:
    """Everything of a coordinator; what is there already is kept.

    Parameters
    ----------
    hosts
        Names and addresses that nodes reach it by.
    certificate, key
        Files of the gateway's own certificate, from Let's Encrypt for example.
    """
    from zk0d.errors import UsageError
    from zk0d.machine.certificates import LOOPBACK, make_certificates
    from zk0d.machine.keys import make_secret

    if bool(certificate) != bool(key):
        raise UsageError("--certificate and --key belong together; give both or none.")
    (folder / "roster.d").mkdir(exist_ok=True)
    if is_new(folder / "tls" / "ca.key"):
        make_certificates(folder / "tls", [*hosts, *LOOPBACK])
    for name in ("superexec.secret", "control.secret"):
        if is_new(folder / name):
            make_secret(folder / name)
    if is_new(folder / "server.toml"):
        own, tables = _server_paths(folder)
        if certificate and key:
            tables["gateway"] = {
                "certificate": certificate.absolute(),
                "key": key.absolute(),
                "address": f"{hosts[0]}:9443",
            }
        write_file(
            folder / "server.toml",
            f"# docs/settings.md has every key.\n{_lines(own)}"
            "# Held-out recordings to evaluate on:\n"
            '# [[evaluation]]\n# name = "held-out"\n# dataset-uri = "local:/data/held-out"\n'
            + _toml(tables),
        )


def _server_paths(folder: Path) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
    """Where a coordinator's files are, if not where the settings' defaults say: keys, tables."""
    if folder.absolute() == DEFAULT_FOLDER:
        return {}, {}
    home = folder.absolute()
    return {"state": home / "state/server"}, {
        "superlink": {
            "state": home / "state/superlink",
            "roster": home / "roster.d",
            "ca": home / "tls/ca.crt",
            "certificate": home / "tls/link.crt",
            "key": home / "tls/link.key",
            "secret": home / "superexec.secret",
            "control-secret": home / "control.secret",
        },
        "gateway": {"certificate": home / "tls/server.crt", "key": home / "tls/server.key"},
        "superexec": {"state": home / "state/server/flower"},
        "evaluator": {"socket": home / "state/evaluator.sock"},
        "publish": {
            "state": home / "state/publish",
            "hf-token": home / "hf.token",
            "wandb-key": home / "wandb.key",
        },
    }


def _client_paths(folder: Path) -> dict[str, dict[str, object]]:
    if folder.absolute() == DEFAULT_FOLDER:
        return {}
    home = folder.absolute()
    return {
        "coordinator": {"ca": home / "tls/ca.crt"},
        "supernode": {
            "key": home / "node.key",
            "secret": home / "superexec.secret",
            "state": home / "state/supernode",
        },
        "superexec": {"state": home / "state/superexec"},
        "learner": {"socket": home / "state/learner.sock"},
    }


def _toml(tables: dict[str, dict[str, object]]) -> str:
    return "".join(f"\n[{name}]\n{_lines(values)}" for name, values in tables.items())


def _lines(values: dict[str, object]) -> str:
    return "".join(f"{key} = {json.dumps(str(value))}\n" for key, value in values.items())


def hand_over_certificate(settings: ServerSettings) -> None:
    """Have the gateway's unit load the certificate that the settings name."""
    from zk0d.config.machine import GatewaySettings
    from zk0d.machine import units

    own, usual = settings.gateway, GatewaySettings()
    lines: list[str] = []
    if (own.certificate, own.key) != (usual.certificate, usual.key):
        lines = [
            f"LoadCredential=server.{kind}:{path}"
            for kind, path in (("crt", own.certificate), ("key", own.key))
        ]
    units.write_drop_in("zk0d-gateway.service", "50-certificate", "your own certificate", lines)


def write_gateway(folder: Path, settings: ServerSettings) -> bool:
    """Write nginx's configuration, after nginx has read it; whether it changed.

    The system's unit hands nginx its files; without it nginx takes them from where they lie, and
    keeps what it writes itself in the state folder.

    Raises
    ------
    ConfigError
        With nginx's words, if it refuses.
    """
    import subprocess
    import tempfile

    from zk0d.errors import ConfigError
    from zk0d.machine import units
    from zk0d.machine.gateway import configuration

    def here(runtime: Path) -> str:
        own, ca = settings.gateway, settings.superlink.ca
        return configuration(
            settings, certificate=own.certificate, key=own.key, ca=ca, runtime=runtime, log="off"
        )

    path, program = folder / GATEWAY, nginx()
    if units.by_systemd(folder):
        text = configuration(settings)
    else:
        gateway_state(settings).mkdir(parents=True, exist_ok=True)
        text = here(gateway_state(settings))
    if program:
        with tempfile.TemporaryDirectory() as draft:
            (Path(draft) / "nginx.conf").write_text(here(Path(draft)), encoding="utf-8")
            said = subprocess.run(
                [program, "-t", "-q", "-e", "stderr", "-c", f"{draft}/nginx.conf"],
                capture_output=True,
                text=True,
                check=False,
            )
        if said.returncode:
            lines = said.stderr.strip().splitlines() or ["it says nothing"]
            raise ConfigError(f"[gateway]: nginx refuses what these settings give ({lines[0]}).")
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    write_file(path, text)
    return True


def gateway_state(settings: ServerSettings) -> Path:
    """Where nginx keeps its own files if systemd does not start it."""
    return settings.superlink.state / "gateway"


def reload_gateway(settings: ServerSettings) -> None:
    """Have an nginx that systemd did not start read its certificate again, if one runs."""
    import os

    with contextlib.suppress(OSError, ValueError):
        pid = int((gateway_state(settings) / "nginx.pid").read_text(encoding="ascii"))
        if "nginx" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8"):
            os.kill(pid, signal.SIGHUP)


def nginx() -> str | None:
    """The gateway's program, if it is installed."""
    import shutil

    # Where it is installed is on root's PATH alone.
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/sbin")


def invite(settings: ServerSettings) -> Invite:
    """What a contributor needs to find this coordinator and to know it."""
    from cryptography import x509

    from zk0d.errors import ConfigError
    from zk0d.machine.certificates import LOOPBACK, names_of
    from zk0d.machine.enrolment import Invite

    gateway = settings.gateway
    try:
        seen = x509.load_pem_x509_certificate(gateway.certificate.read_bytes())
        ca = settings.superlink.ca.read_text(encoding="utf-8")
        ours = _is_issued_by(seen, x509.load_pem_x509_certificate(ca.encode()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"gateway.certificate: {gateway.certificate} cannot be read ({error}); zk0bot server"
            " init makes it."
        ) from None
    address = gateway.address
    if not address:
        names = [name for name in names_of(seen) if name not in LOOPBACK] or ["localhost"]
        host = f"[{names[0]}]" if ":" in names[0] else names[0]
        address = f"{host}:{gateway.port}"
    return Invite(address, ca if ours else "")


def _is_issued_by(certificate: Certificate, ca: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def init_client(
    folder: Path, name: str, coordinator: str, ca: bytes | None, dataset: str | None
) -> None:
    """Everything of a contributor; what is there already is kept, but for the CA.

    ``ca`` is the coordinator's certificate; ``None`` for the system's authorities.
    """
    from zk0d.config.machine import ClientSettings
    from zk0d.config.names import DatasetUri
    from zk0d.machine.keys import make_node_key, make_secret

    if dataset:
        dataset = str(DatasetUri.typed(dataset))
    values = {"name": name, "dataset-uri": dataset, "coordinator": {"address": coordinator}}
    ClientSettings.parse(values, where="this node")
    (folder / "tls").mkdir(exist_ok=True)
    path = folder / "tls" / "ca.crt"
    if ca is None:
        path.unlink(missing_ok=True)
        path.symlink_to(SYSTEM_CA)
    else:
        write_file(path, ca)
    if is_new(folder / "node.key"):
        make_node_key(folder / "node.key")
    if is_new(folder / "superexec.secret"):
        make_secret(folder / "superexec.secret")
    if is_new(folder / "client.toml"):
        lines = f"name = {json.dumps(name)}\n"
        if dataset:
            lines += f"dataset-uri = {json.dumps(dataset)}\n"
        tables = _client_paths(folder)
        tables["coordinator"] = {"address": coordinator, **tables.get("coordinator", {})}
        write_file(
            folder / "client.toml", f"# docs/settings.md has every key.\n{lines}{_toml(tables)}"
        )


def is_new(path: Path) -> bool:
    """Whether nothing is there; says so if something is."""
    if path.exists():
        typer.echo(f"{path} is there already and kept", err=True)
        return False
    return True
