"""Whether a SuperLink answers, and can be trusted; if not, why, in words."""

import datetime
import socket
import ssl
from pathlib import Path

from cryptography import x509

from fedfusion.types import FedfusionError

TIMEOUT_S = 5.0
NOT_YET, EXPIRED, HOSTNAME, ADDRESS = 9, 10, 62, 64  # OpenSSL's X509_V_ERR_*


def reach(address: str, authority: Path) -> None:
    """Shake hands with the SuperLink at `address`, trusting the certificates of `authority` alone.

    Raises
    ------
    FedfusionError
        If nothing answers, or what answers is not the SuperLink of this authority.
    """
    host, _, port = address.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise FedfusionError(f"{authority} cannot be read ({error})") from error
    try:
        with (
            socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        _explain(error, address, authority)
    except ssl.SSLError as error:
        raise FedfusionError(f"what answers at {address} is no SuperLink with TLS ({error.reason})") from error
    except OSError as error:
        raise FedfusionError(
            f"no SuperLink answers at {address} ({error.strerror or error}); start it: fedfusion deploy up"
        ) from error


def check_dates(certificate: x509.Certificate, what: str, fix: str) -> None:
    """Refuse a certificate that has expired, or holds only later.

    Raises
    ------
    FedfusionError
        With the time of this machine and that of the certificate.
    """
    now = datetime.datetime.now(datetime.UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > last:
        raise FedfusionError(
            f"{what} expired at {last:%Y-%m-%d %H:%M:%S} UTC, and the clock of this machine says "
            f"{now:%Y-%m-%d %H:%M:%S} UTC ({fix})"
        )
    if now < first:
        raise FedfusionError(
            f"{what} holds from {first:%Y-%m-%d %H:%M:%S} UTC on, but the clock of this machine says "
            f"{now:%Y-%m-%d %H:%M:%S} UTC (set the clock, or {fix})"
        )


def _explain(error: ssl.SSLCertVerificationError, address: str, authority: Path) -> None:
    """Say why the certificate at `address` is not trusted."""
    host, _, port = address.rpartition(":")
    if error.verify_code in (NOT_YET, EXPIRED):
        sent = x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())
        check_dates(sent, f"the certificate of the SuperLink at {address}", "fedfusion deploy init --rotate")
    if error.verify_code in (HOSTNAME, ADDRESS):
        raise FedfusionError(
            f"the certificate of the SuperLink at {address} does not name {host} "
            f"(fedfusion deploy init --rotate --host {host}, where the SuperLink runs)"
        ) from error
    raise FedfusionError(
        f"the SuperLink at {address} is not certified by {authority}: it is that of another deployment, or this is "
        "not its ca.crt (copy the ca.crt of its deployment folder)"
    ) from error
