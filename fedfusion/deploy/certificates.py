"""Keys and certificates of a deployment: its own authority, the server's certificate, one key pair per device."""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedfusion.federation.tls import check_dates
from fedfusion.types import FedfusionError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
LOCAL = ("localhost", "127.0.0.1", "superlink")  # the last is its name among containers
LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"  # what stands between the dots of a name
SKEW = datetime.timedelta(days=1)  # a device whose clock is behind by less trusts the certificate at once


def check_hosts(hosts: Sequence[str]) -> None:
    """Refuse what a certificate cannot name.

    Raises
    ------
    FedfusionError
        With every host that is neither an address nor a DNS name.
    """
    wrong = [f"'{host}'" for host in hosts if not (_address(host) or _is_name(host))]
    if wrong:
        raise FedfusionError(
            f"--host {', '.join(wrong)}: neither an IP address nor a DNS name (give it without port and https://; of "
            "other letters than a to z give the form that begins with xn--)"
        )


def write_authority(home: Path) -> None:
    """Make `ca.key` and `ca.crt`: the authority that devices trust, and nobody else."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("fedfusion deployment")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _unsigned(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write_key(home / "ca.key", key, PrivateFormat.PKCS8)
    (home / "ca.crt").write_bytes(certificate.public_bytes(Encoding.PEM))


def write_server(home: Path, hosts: Sequence[str], valid_from: datetime.datetime | None = None) -> None:
    """Make `server.key` and `server.crt` for localhost and `hosts`, signed by the authority in `home`."""
    authority = x509.load_pem_x509_certificate((home / "ca.crt").read_bytes())
    signer = load_pem_private_key((home / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP384R1())
    names = x509.SubjectAlternativeName([_alternative(host) for host in (*LOCAL, *hosts)])
    certificate = (
        _unsigned(_name("fedfusion SuperLink"), authority.subject, key.public_key(), SERVER_DAYS, valid_from)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    _write_key(home / "server.key", key, PrivateFormat.PKCS8)
    (home / "server.crt").write_bytes(certificate.public_bytes(Encoding.PEM))


def write_device_key(folder: Path) -> None:
    """Make `key` and `key.pub`, by which the SuperLink knows one device."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_key(folder / "key", key, PrivateFormat.OpenSSH)
    (folder / "key.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")


def validity(home: Path) -> tuple[datetime.datetime, datetime.datetime]:
    """From when until when the server's certificate holds."""
    certificate = x509.load_pem_x509_certificate((home / "server.crt").read_bytes())
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def check_certificates(home: Path) -> None:
    """Refuse certificates that no device would trust.

    Raises
    ------
    FedfusionError
        Where one cannot be read, the authority did not sign the server's, or it holds only later or no longer.
    """
    try:
        authority = x509.load_pem_x509_certificate((home / "ca.crt").read_bytes())
        server = x509.load_pem_x509_certificate((home / "server.crt").read_bytes())
        key = load_pem_private_key((home / "server.key").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise FedfusionError(f"a certificate or key in {home} cannot be read ({error})") from error
    again = f"make another: fedfusion deploy init --dir {home} --rotate"
    try:
        server.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise FedfusionError(
            f"{home / 'server.crt'} was not issued by the authority {home / 'ca.crt'}: the certificate of another "
            f"deployment lies here ({again})"
        ) from error
    if key.public_key() != server.public_key():
        raise FedfusionError(f"{home / 'server.key'} is not the key of {home / 'server.crt'} ({again})")
    check_dates(server, "the server's certificate", again)


def _unsigned(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    valid_from: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    start = valid_from or datetime.datetime.now(datetime.UTC) - SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(host: str) -> x509.GeneralName:
    address = _address(host)
    return x509.IPAddress(address) if address else x509.DNSName(host)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_name(host: str) -> bool:
    """Whether a host is a DNS name, and no address that was mistyped."""
    labels = host.split(".")
    return len(host) <= 253 and all(re.fullmatch(LABEL, label) for label in labels) and not labels[-1].isdigit()


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    """Write a private key that its owner alone can read, at every moment."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, form, NoEncryption()))
