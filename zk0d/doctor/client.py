"""Rules about a contributor."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zk0d.config.machine import ClientSettings
from zk0d.doctor.finding import Host, Unchecked, Wrong, in_one_line, rule
from zk0d.doctor.machine import ask
from zk0d.learning.chosen_gpu import chosen_gpu
from zk0d.learning.nvidia import Trouble, nvml, trouble
from zk0d.services.coordinator import (
    CLOCK_AHEAD,
    CLOCK_BEHIND,
    KEY_SHARED,
    KEY_SHARED_CURE,
    Word,
    ask_presence,
)
from zk0d.services.gpu_power import KEY, UNIT, check_bounds, learners_environment

CURVE = "secp384r1"
CONNECT_SECONDS = 10.0
TORCH_SECONDS = 180.0
DAY = 86400.0
_TORCH = """\
import json, torch
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda,
                  "count": torch.cuda.device_count() if torch.cuda.is_available() else 0}))
"""


@rule("shared-ports")
def shared_ports(folder: Path) -> str:
    """None of its ports is one of another contributor's on this machine, or the coordinator's."""
    from zk0d.machine.instances import check_ports

    check_ports(folder)
    return "no other settings of this machine name its ports"


@rule("key")
def key(path: Path) -> str:
    """The node's key is P-384, and the public half beside it is its own."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from zk0d.errors import ConfigError
    from zk0d.machine.keys import fingerprint, private_fingerprint, sealed_form

    sealed = sealed_form(path)
    if sealed.exists() and not path.exists():
        own = fingerprint(path.with_suffix(".pub"))
        return f"{sealed}: sealed for this machine, fingerprint {own}"
    anew = f"move {path} away, then zk0bot node keygen makes one; then enrol it"
    try:
        own = private_fingerprint(path)
        loaded = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except ConfigError as error:
        if not path.exists():
            cure = "zk0bot node keygen makes one; then enrol it"
            raise Wrong("supernode.key: this node has no key.", error.message, cure) from None
        path.open("rb").close()  # one that only root reads is not wrong
        raise Wrong("supernode.key: the key cannot be used.", error.message, anew) from None
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    if loaded.curve.name != CURVE:
        raise Wrong(
            f"supernode.key: {path} is not a P-384 key.", f"its curve is {loaded.curve.name}", anew
        )
    public = path.with_suffix(".pub")
    if public.exists() and fingerprint(public) != own:
        raise Wrong(
            f"{public} is not the public half of {path}.",
            f"their fingerprints are {fingerprint(public)[:16]} and {own[:16]}",
            f"ssh-keygen -y -f {path} > {public}; enroll that",
        )
    return f"{path}: P-384, fingerprint {own}"


@rule("gpu")
def gpu(
    device: str,
    load: Callable[[], Any] = nvml,
    trouble: Callable[[], Trouble | None] = trouble,
    ask_torch: Callable[[], dict[str, Any]] | None = None,
    user: str = "learner",
) -> str:
    """The GPU that ``user`` is to use is there, and PyTorch can use it."""
    seen = _gpus(load)
    wants = device.startswith("cuda")
    if not seen:
        if found := trouble():
            if device == "cpu":
                return f"NVIDIA GPU, {found.cause}; not used, since {user}.device is 'cpu'"
            raise Wrong(
                f"this machine's NVIDIA GPU cannot be used, and {user}.device is '{device}'.",
                found.cause,
                f"{found.cure}; or set {user}.device to 'cpu' to compute on the processor",
            )
        if wants:
            raise Wrong(
                f"{user}.device is '{device}', but this machine shows no NVIDIA GPU.",
                "NVIDIA's library finds no driver or no GPU",
                "install NVIDIA's driver until nvidia-smi lists the GPU, or set"
                f" {user}.device to 'auto'",
            )
        return f"no NVIDIA GPU; the {user} computes on the CPU ({user}.device is '{device}')"
    if device == "cpu":
        return f"{seen}; not used, since {user}.device is 'cpu'"
    torch = (ask_torch or _ask_torch)()
    said = f"{seen}; torch {torch['version']} for CUDA {torch['cuda'] or 'none'}"
    if not torch["count"]:
        raise Wrong(
            "PyTorch cannot use the GPU of this machine.",
            said,
            f"install a driver that is as new as PyTorch's CUDA, or set {user}.device to 'cpu'",
        )
    index = device.partition(":")[2]
    if index.isdigit() and int(index) >= torch["count"]:
        raise Wrong(
            f"{user}.device is '{device}', but PyTorch sees {torch['count']} GPU(s).",
            said,
            f"set {user}.device to one of cuda:0 to cuda:{torch['count'] - 1}",
        )
    return said


@rule("gpu-power")
def gpu_power(
    host: Host,
    settings: ClientSettings,
    load: Callable[[], Any] = nvml,
    environment: Callable[[], Mapping[str, str]] = learners_environment,
    contributor: str = "",
) -> str:
    """The power limit that the owner set holds for the learner's GPU."""
    watts = settings.limits.gpu_power_watts
    if not host.systemd or contributor:
        raise Wrong(
            f"{KEY} has no effect here.",
            f"only the system's service {UNIT} may set it, by the machine's own client.toml",
            f"set {KEY} to 0, and use limits.power-share",
        )
    library = load()
    devices = settings.learner.all_devices
    if library is None or "cpu" in devices:
        raise Wrong(
            f"{KEY} is {watts}, and the learner uses no NVIDIA GPU here.",
            f"it is to use {', '.join(devices)}; see the rule gpu",
            f"set {KEY} to 0",
        )
    said = []
    for device in devices:
        gpu = chosen_gpu(library, device, environment())
        check_bounds(library, gpu, watts)
        now = library.nvmlDeviceGetPowerManagementLimit(gpu.handle) / 1000
        said.append(f"{gpu} may draw {now:g} W")
        if now != watts:
            told = ask("systemctl", "show", UNIT, "--property=StatusText", "--value").stdout
            raise Wrong(
                f"{said[-1]}, and {KEY} is {watts}.",
                in_one_line(told) or f"{UNIT} has not set it",
                f"systemctl restart {UNIT}; journalctl -u {UNIT} says why it is refused",
            )
    return ", ".join(said)


@rule("coordinator-name")
def coordinator_name(address: str) -> str:
    """The coordinator's name is known here."""
    if not address:
        raise Wrong(
            "coordinator.address is missing.",
            "client.toml names no coordinator",
            'write address = "HOST:PORT" into [coordinator] of client.toml',
        )
    host, port = _split(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Wrong(
            f"coordinator.address: the name {host} is not known here.",
            getattr(error, "strerror", None) or type(error).__name__,
            "check its spelling and this machine's name server, or write its address to /etc/hosts",
        ) from None
    return f"{host} is {', '.join(dict.fromkeys(str(each[4][0]) for each in found))}"


@rule("gateway")
def gateway(address: str, ca: Path, state: Path, seconds: float = CONNECT_SECONDS) -> str:
    """The gateway answers over TLS, with a certificate that the CA signed for its name."""
    trust = _trust(ca, state)
    if not address:
        raise Unchecked("coordinator.address is missing")
    host, port = _split(address)
    try:
        with (
            socket.create_connection((host, port), timeout=seconds) as plain,
            trust.wrap_socket(plain, server_hostname=host) as secured,
        ):
            certificate, version = secured.getpeercert() or {}, secured.version()
    except ssl.SSLCertVerificationError as error:
        raise Wrong(
            f"coordinator.ca: the certificate of {address} is not trusted.",
            error.verify_message,
            "if the coordinator has another CA (ask its operator), zk0bot client join with a new"
            " invite, then zk0bot client stop and start; if the name or the date is wrong, the"
            " operator has to make a new certificate",
        ) from None
    except ssl.SSLError as error:
        raise Wrong(
            f"coordinator.address: {address} does not speak TLS as a gateway does.",
            error.reason or type(error).__name__,
            "check the port; the gateway's is 9443 unless its operator says otherwise",
        ) from None
    except OSError as error:
        raise Wrong(
            f"coordinator.address: {address} cannot be reached.",
            error.strerror
            or ("no answer in time" if isinstance(error, TimeoutError) else "")
            # A name that is not known, for which there is a rule of its own.
            or type(error).__name__,
            "check address and firewall, and ask the operator whether the gateway runs",
        ) from None
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / DAY
    return f"{address}, {version}, its certificate is good for {days:.0f} days"


@rule("enrolled")
def enrolled(settings: ClientSettings) -> str:
    """The coordinator knows this node's key."""
    own, word = _ask_coordinator(settings)
    if not word.answer.get("enrolled"):
        raise Wrong(
            "the coordinator does not know this node's key.",
            f"{settings.coordinator.presence_page} says that {own[:16]} is not enrolled",
            "send the output of zk0bot node request to the coordinator's operator",
        )
    if word.answer.get("shared"):
        raise Wrong(
            f"{KEY_SHARED}.",
            f"{settings.coordinator.presence_page} saw two SuperNodes with {own[:16]} side by side",
            KEY_SHARED_CURE,
        )
    here = "online" if word.answer.get("online") else "not online"
    return f"key {own[:16]} is enrolled, {here}"


@rule("clock-at-coordinator")
def clock_at_coordinator(settings: ClientSettings) -> str:
    """The clock is near enough to the coordinator's, which judges signatures by its own."""
    ahead = _ask_coordinator(settings)[1].clock_ahead
    said = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if not -CLOCK_BEHIND <= ahead <= CLOCK_AHEAD:
        raise Wrong(
            "this machine's clock is too far from the coordinator's, which refuses it.",
            said,
            "set it: timedatectl set-ntp true",
        )
    return said


def _ask_coordinator(settings: ClientSettings) -> tuple[str, Word]:
    from zk0d.errors import ConfigError
    from zk0d.machine.keys import fingerprint, private_fingerprint

    path, coordinator = settings.supernode.key, settings.coordinator
    if not (coordinator.address or coordinator.presence):
        raise Unchecked("coordinator.address is missing")
    try:
        own = private_fingerprint(path)
    except ConfigError as error:
        try:  # the public half can be read by everybody
            own = fingerprint(path.with_suffix(".pub"))
        except ConfigError:
            raise Unchecked(f"this node's key is not known: {error.message}") from None
    word = ask_presence(
        f"{coordinator.presence_page}/nodes/{own}", _trust(coordinator.ca, settings.supernode.state)
    )
    if word.failure:
        raise Unchecked(f"{coordinator.presence_page} does not answer ({word.failure})")
    return own, word


def _trust(ca: Path, state: Path) -> ssl.SSLContext:
    from zk0d.errors import ConfigError
    from zk0d.machine.authorities import Authorities

    if ca.exists():
        ca.open("rb").close()  # one that only root reads is not wrong
    try:
        return Authorities.read(ca, state).context()
    except ConfigError as error:
        raise Wrong(
            f"coordinator.ca: {ca} is missing or no certificate.",
            error.message,
            "ask the coordinator's operator for an invite, then zk0bot client join",
        ) from None


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _gpus(load: Callable[[], Any]) -> str:
    library = load()
    if library is None:
        return ""
    names = [
        _text(library.nvmlDeviceGetName(library.nvmlDeviceGetHandleByIndex(index)))
        for index in range(library.nvmlDeviceGetCount())
    ]
    cuda = int(library.nvmlSystemGetCudaDriverVersion())
    return (
        f"{', '.join(names)}; driver {_text(library.nvmlSystemGetDriverVersion())}"
        f" for CUDA {cuda // 1000}.{cuda % 1000 // 10}"
        if names
        else ""
    )


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _ask_torch() -> dict[str, Any]:
    """What PyTorch sees, in a process of its own: it takes seconds and a gigabyte."""
    try:
        said = subprocess.run(
            [sys.executable, "-P", "-c", _TORCH],
            capture_output=True,
            text=True,
            check=False,
            timeout=TORCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Unchecked(f"PyTorch did not load within {TORCH_SECONDS:.0f} s") from None
    if said.returncode:
        last = (said.stderr.strip().splitlines() or ["it is silent"])[-1]
        raise Unchecked(f"PyTorch does not load ({in_one_line(last)})")
    found: dict[str, Any] = json.loads(said.stdout.strip().splitlines()[-1])
    return found
