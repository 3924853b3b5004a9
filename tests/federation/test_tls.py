import contextlib
import datetime
import shutil
import socket
import ssl
import threading

import pytest

from fedfusion.deploy.certificates import write_authority, write_server
from fedfusion.federation.tls import reach
from fedfusion.types import FedfusionError

DAY = datetime.timedelta(days=1)


@pytest.fixture
def home(tmp_path):
    write_authority(tmp_path)
    write_server(tmp_path, [])
    return tmp_path


@contextlib.contextmanager
def server(home, greeting=b""):
    """A server with the certificate in `home`, or one that sends `greeting` in the clear; its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "server.crt", home / "server.key")
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    if greeting:
                        connection.sendall(greeting)
                        connection.recv(1)
                    else:
                        context.wrap_socket(connection, server_side=True).close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


def test_the_server_of_the_authority_is_trusted(home):
    with server(home) as address:
        reach(address, home / "ca.crt")


def test_the_server_of_another_authority_is_not(home, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_authority(other)
    with server(home) as address, pytest.raises(FedfusionError, match=f"{address} is not certified by .*other deploym"):
        reach(address, other / "ca.crt")


def test_an_expired_certificate_is_named_with_both_times(home):
    write_server(home, [], datetime.datetime.now(datetime.UTC) - 400 * DAY)
    wrong = r"certificate of the SuperLink at .* expired at 20.* and the clock of this machine says 20"
    with server(home) as address, pytest.raises(FedfusionError, match=wrong):
        reach(address, home / "ca.crt")


def test_a_certificate_from_the_future_is_named_with_both_times(home):
    write_server(home, [], datetime.datetime.now(datetime.UTC) + 2 * DAY)
    wrong = r"certificate of the SuperLink at .* holds from 20.*, but the clock of this machine says 20.*set the clock"
    with server(home) as address, pytest.raises(FedfusionError, match=wrong):
        reach(address, home / "ca.crt")


def test_a_host_that_the_certificate_does_not_name_is_refused(home, monkeypatch):
    monkeypatch.setattr("fedfusion.deploy.certificates.LOCAL", ("localhost",))
    write_server(home, [])
    with server(home) as address, pytest.raises(FedfusionError, match="does not name 127.0.0.1 .*--host 127.0.0.1"):
        reach(address, home / "ca.crt")


def test_what_speaks_no_tls_is_named(home):
    with server(home, b"SSH-2.0-OpenSSH\r\n") as address, pytest.raises(FedfusionError, match="no SuperLink with TLS"):
        reach(address, home / "ca.crt")


def test_where_nothing_answers_the_command_is_named(home):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(FedfusionError, match=f"no SuperLink answers at {address} .*fedfusion deploy up"):
        reach(address, home / "ca.crt")


def test_an_authority_that_cannot_be_read_is_named(home):
    with server(home) as address, pytest.raises(FedfusionError, match="absent.crt cannot be read"):
        reach(address, home / "absent.crt")
    shutil.copy(home / "server.key", home / "ca.crt")
    with server(home) as address, pytest.raises(FedfusionError, match="ca.crt cannot be read"):
        reach(address, home / "ca.crt")
