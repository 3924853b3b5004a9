"""Is the service of this container up? Where to ask is in the environment, as `HEALTH`.

An address that begins with `http` is asked for; of any other, `host:port`, it is enough that somebody listens. With
`HEALTH_CA` the certificate of the service must be of that authority.
"""

import os
import socket
import ssl
import sys
import urllib.request

TIMEOUT_S = 4.0


def check(address: str, authority: str | None) -> None:
    """Raise an OSError where nobody answers."""
    if not address.startswith("http"):
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), TIMEOUT_S).close()
        return
    context = ssl.create_default_context(cafile=authority) if authority else None
    urllib.request.urlopen(address, timeout=TIMEOUT_S, context=context).close()


if __name__ == "__main__":
    try:
        check(os.environ["HEALTH"], os.environ.get("HEALTH_CA"))
    except OSError as error:
        sys.exit(f"{os.environ['HEALTH']}: {error}")
