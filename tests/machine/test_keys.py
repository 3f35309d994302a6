from __future__ import annotations

import ipaddress
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, uses_nist_ec_curve

from zk0d.errors import ConfigError
from zk0d.machine.certificates import make_certificates
from zk0d.machine.keys import (
    fingerprint,
    make_node_key,
    make_secret,
    public_pem,
    write_private,
)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_node_key_is_private_and_flowers(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    name = make_node_key(path)
    assert mode(path) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    public = tmp_path / "node.pub"
    assert name == fingerprint(public)
    key = bytes_to_public_key(public_pem(public))
    assert uses_nist_ec_curve(key)
    assert key.curve.name == "secp384r1"
    assert fingerprint(public) != make_node_key(tmp_path / "other.key")


def test_an_existing_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    make_node_key(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        make_node_key(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "nonsense", None])
def test_a_wrong_public_key_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "node.pub"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"node\.pub"):
        public_pem(path)


def test_an_rsa_key_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    public = rsa.generate_private_key(65537, 2048).public_key()
    path = tmp_path / "rsa.pub"
    path.write_bytes(
        public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    with pytest.raises(ConfigError, match="not an elliptic-curve key"):
        public_pem(path)


def test_the_server_certificate_is_signed_for_its_names(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "tls", ["127.0.0.1", "localhost", "robots.example"])
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "robots.example"]
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    certificate.verify_directly_issued_by(ca)
    assert mode(files.key) == mode(tmp_path / "tls" / "ca.key") == 0o600
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    subprocess.run(
        ["openssl", "verify", "-CAfile", str(files.ca), str(files.certificate)], check=True
    )


def test_secrets_differ_and_are_private(tmp_path: Path) -> None:
    make_secret(tmp_path / "a")
    make_secret(tmp_path / "b")
    assert mode(tmp_path / "a") == 0o600
    assert (tmp_path / "a").read_text() != (tmp_path / "b").read_text()
    assert len((tmp_path / "a").read_text()) == 64


def test_private_files_are_private_before_they_are_written(tmp_path: Path) -> None:
    write_private(tmp_path / "deep" / "secret", b"x")
    assert mode(tmp_path / "deep" / "secret") == 0o600
