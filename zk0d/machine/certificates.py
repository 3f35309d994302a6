"""A coordinator's TLS: a small certificate authority and what it signs.

``server.crt`` is what nodes see, at the gateway; it is renewed. ``link.crt`` is the SuperLink's
own, for loopback, and never leaves the host: it lives as long as the authority, so that renewing
interrupts no run.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from zk0d.errors import ConfigError
from zk0d.files import make_folder, write_file
from zk0d.machine.keys import write_private

CA_DAYS = 3650
SERVER_DAYS = 397
RENEW_DAYS = 30  #: renewed when it is valid for less
SHOWN_SECONDS = 2.0  #: a server has so long to show its certificate
LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Certificates:
    """Files of a coordinator's TLS."""

    ca: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path, names: list[str]) -> Certificates:
    """A certificate authority and a server certificate for ``names`` (hosts or addresses)."""
    make_folder(folder)
    now = datetime.datetime.now(datetime.UTC)
    ca_key, ca = _authority(now)
    files = Certificates(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    write_private(folder / "ca.key", _pem(ca_key))
    _write(files.ca, ca)
    for name, alternatives, days in _pairs():
        key, certificate = _signed(ca_key, ca, alternatives or names, now, days)
        write_private(folder / f"{name}.key", _pem(key))
        _write(folder / f"{name}.crt", certificate)
    return files


def make_authority() -> tuple[bytes, str]:
    """Another certificate authority: its key and its certificate (PEM)."""
    key, ca = _authority(datetime.datetime.now(datetime.UTC))
    return _pem(key), ca.public_bytes(serialization.Encoding.PEM).decode()


def authority(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, str]:
    """The key and the certificate (PEM) of the authority that signs.

    Raises
    ------
    ConfigError
        If they cannot be read.
    """
    key, ca = _read_authority(folder)
    return key, ca.public_bytes(serialization.Encoding.PEM).decode()


def sign_all(folder: Path, ca: str, key: Path) -> None:
    """New ``server.crt`` and ``link.crt``, by another authority, for the same names.

    Parameters
    ----------
    ca, key
        The authority's certificate (PEM) and its key's file.

    Raises
    ------
    ConfigError
        If the key is not the authority's, or the old certificate cannot be read.
    """
    now = datetime.datetime.now(datetime.UTC)
    authority = x509.load_pem_x509_certificate(ca.encode())
    try:
        ca_key = serialization.load_pem_private_key(key.read_bytes(), None)
        names = names_of(x509.load_pem_x509_certificate((folder / "server.crt").read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: the certificates cannot be read ({error}).") from None
    if ca_key.public_key() != authority.public_key():
        raise ConfigError(f"{key}: is not the key of the next CA; ca.next.key is.")
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    for name, alternatives, days in _pairs():
        _replace(folder, name, *_signed(ca_key, authority, alternatives or names, now, days))


def uses(folder: Path, ca: str) -> bool:
    """Whether :func:`sign_all` has begun with an authority (PEM), or its key has its place.

    Raises
    ------
    ConfigError
        If a certificate or a key cannot be read.
    """
    key, _ = _read_authority(folder)
    authority = x509.load_pem_x509_certificate(ca.encode())
    if key.public_key() == authority.public_key():
        return True
    try:
        for name, _, _ in _pairs():
            certificate = x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
            own = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
            # The key is written first: one that does not fit was made with the next certificate.
            if is_issued_by(certificate, authority) or own.public_key() != certificate.public_key():
                return True
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None
    return False


def renew(folder: Path, *, force: bool = False, now: datetime.datetime | None = None) -> bool:
    """A new ``server.crt`` and key for the same names, if the old one ends soon; whether it did.

    Raises
    ------
    ConfigError
        If the authority or the certificate cannot be read.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    try:
        old = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None
    ca_key, ca = _read_authority(folder)
    if not force and old.not_valid_after_utc - now > datetime.timedelta(days=RENEW_DAYS):
        return False
    _replace(folder, "server", *_signed(ca_key, ca, names_of(old), now, SERVER_DAYS))
    return True


def _pairs() -> tuple[tuple[str, list[str], int], ...]:
    """What an authority signs: for which names, if not for those that nodes use; for how long."""
    return ("server", [], SERVER_DAYS), ("link", list(LOOPBACK), CA_DAYS)


def _replace(
    folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> None:
    """Each by a rename; who starts in between finds a pair that does not fit, and is restarted."""
    write_file(folder / f"{name}.key", _pem(key), mode=0o600)
    _write(folder / f"{name}.crt", certificate)


def _read_authority(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The authority that signs: ``ca.crt`` holds two certificates while one follows another."""
    try:
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        known = x509.load_pem_x509_certificates((folder / "ca.crt").read_bytes())
        ca = next((each for each in known if each.public_key() == key.public_key()), None)
        if ca is None:
            raise ValueError("ca.key is not the key of ca.crt")
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key, ca


def _unreadable(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{folder}: the certificates cannot be read ({error}); zk0bot server init makes them."
    )


def _authority(now: datetime.datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "zk0d federation CA")])
    certificate = (
        _builder(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return key, certificate


def expiry_of(path: Path) -> float:
    """When the certificate in a file ends, in seconds since 1970.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, or is no certificate.
    """
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()


def shown_expiry(port: int) -> float:
    """When the certificate ends that a server on loopback shows: not what lies on its disk.

    Raises
    ------
    OSError
        If none answers there.
    """
    shown = ssl.get_server_certificate(("127.0.0.1", port), timeout=SHOWN_SECONDS)
    return x509.load_pem_x509_certificate(shown.encode()).not_valid_after_utc.timestamp()


def names_of(certificate: x509.Certificate) -> list[str]:
    """The hosts and addresses that a certificate is for."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return [*found.get_values_for_type(x509.DNSName), *addresses]


def is_issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _signed(
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    names: list[str],
    now: datetime.datetime,
    days: int,
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "zk0d coordinator")])
    days = min(days, (ca.not_valid_after_utc - now).days)
    certificate = (
        _builder(subject, ca.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA384())
    )
    return key, certificate


def _write(path: Path, certificate: x509.Certificate) -> None:
    write_file(path, certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Clocks differ: a certificate made here is valid a little before now there.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
