"""The address that a server of ours listens on."""

import ipaddress
import os
import socket

from lorafit.errors import LorafitError

_WAITING = 2048  # connections that nobody has taken yet


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket on an address; port 0 takes a free one.

    Raises:
        LorafitError: it is taken already, or not this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=_WAITING)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0  # of a name that is not known below 0
        reason = (os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)).lower()
        raise LorafitError(f"{host}:{port} can't be listened on: {reason}.") from None


def url_of(listener: socket.socket) -> str:
    """Return where a socket is reached, such as ``http://127.0.0.1:8000``."""
    address, port = listener.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"
