import datetime
import re
import shutil
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedfusion.deploy.certificates import (
    check_certificates,
    check_hosts,
    validity,
    write_authority,
    write_device_key,
    write_server,
)
from fedfusion.types import FedfusionError

DAY = datetime.timedelta(days=1)


@pytest.fixture
def home(tmp_path):
    write_authority(tmp_path)
    write_server(tmp_path, ["192.168.7.1", "edge.example.org"])
    return tmp_path


def test_the_certificate_names_the_hosts_and_is_signed_by_the_authority(home):
    check_certificates(home)
    server = x509.load_pem_x509_certificate((home / "server.crt").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "edge.example.org"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"127.0.0.1", "192.168.7.1"} == {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
    first, last = validity(home)
    now = datetime.datetime.now(datetime.UTC)
    assert first < now - DAY / 2 and last > now + 300 * DAY  # a clock that is hours behind trusts it, too


def test_a_device_key_is_a_pair_on_p384_that_its_owner_alone_reads(tmp_path):
    write_device_key(tmp_path)
    private = load_ssh_private_key((tmp_path / "key").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "key.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name == "secp384r1"
    assert private.public_key() == public
    former = (tmp_path / "key").read_bytes()
    write_device_key(tmp_path)
    assert (tmp_path / "key").read_bytes() != former


def test_every_private_key_is_for_its_owner_alone(home):
    write_device_key(home)
    for name in ("ca.key", "server.key", "key"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600, name


def test_the_certificate_of_another_authority_is_refused(home, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_authority(other)
    shutil.copy(other / "ca.crt", home / "ca.crt")
    with pytest.raises(FedfusionError, match="was not issued by the authority .*--rotate"):
        check_certificates(home)


def test_a_key_of_another_certificate_is_refused(home):
    certificate = (home / "server.crt").read_bytes()
    write_server(home, [])
    (home / "server.crt").write_bytes(certificate)
    with pytest.raises(FedfusionError, match="server.key is not the key of"):
        check_certificates(home)


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key"])
def test_a_file_that_is_no_certificate_is_named(home, name):
    (home / name).write_text("nothing")
    with pytest.raises(FedfusionError, match=f"a certificate or key in {re.escape(str(home))} cannot be read"):
        check_certificates(home)


def test_an_expired_certificate_is_refused_with_both_times(home):
    write_server(home, [], datetime.datetime.now(datetime.UTC) - 400 * DAY)
    with pytest.raises(FedfusionError, match=r"expired at 20.* and the clock of this machine says 20.*--rotate"):
        check_certificates(home)


def test_a_certificate_from_the_future_speaks_of_the_clock_with_both_times(home):
    write_server(home, [], datetime.datetime.now(datetime.UTC) + 2 * DAY)
    with pytest.raises(FedfusionError, match=r"from 20.* on, but the clock of this machine says 20.*set the clock"):
        check_certificates(home)


def test_a_host_is_an_address_or_a_name():
    check_hosts(["192.168.0.1", "fe80::1", "edge.example.org", "my_server", "xn--mnchen-3ya.de", "a" * 63])
    wrong = [
        "",
        "münchen",
        "192.168.0.1:8000",
        "192.168.0.300",
        "http://a:1",
        "a b",
        "-a",
        "a-",
        "a..b",
        "a.",
        "a" * 64,
    ]
    for host in wrong:
        with pytest.raises(FedfusionError, match=f"^--host '{re.escape(host)}': neither an IP address nor a DNS name"):
            check_hosts(["10.0.0.1", host])
    with pytest.raises(FedfusionError, match="^--host '', 'a b': neither"):
        check_hosts(["", "a b"])
    with pytest.raises(FedfusionError):
        check_hosts([".".join(["a" * 63] * 4)])
