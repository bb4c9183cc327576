"""Send a POST to an address that somebody else chose: to no private address, along no redirect, and not for long."""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

__all__ = ["Refused", "checked_url", "post"]

_CONNECT = 5.0
_WHOLE = 15.0


class Refused(OSError):
    """The host has no address that may be used."""


def checked_url(url: object, *, allow_private: bool) -> str:
    """Return the scheme and host of *url*, which may be shown. Raises ``ValueError`` for a URL that cannot be used."""
    if not isinstance(url, str) or not url.isascii() or any(character <= " " for character in url):
        raise ValueError("it is no URL")
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_private):
        raise ValueError("it does not begin with https://")
    if not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError("it needs a host, and no user and fragment")
    parts.hostname.encode("idna")  # raises where a part of it is empty or too long, as looking it up would
    return f"{parts.scheme}://{parts.hostname}{'' if parts.port is None else f':{parts.port}'}"


def post(url: str, body: bytes, headers: Mapping[str, str], *, allow_private: bool = False) -> int:
    """Return the status of the answer. Raises ``OSError`` or ``http.client.HTTPException`` where there is none within
    15 seconds. The answer's body is not read."""
    parts = urlsplit(url)
    host, is_secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if is_secure else 80)
    connection = http.client.HTTPConnection(host, port)
    connected = _connect(host, port, allow_private)
    # A server that sends a byte now and then would keep the time-out of each read from passing.
    last = threading.Timer(_WHOLE, lambda: _shut_down(connected))  # the one that there is then: TLS makes another
    last.daemon = True
    last.name = "bgmiddleware-post"
    last.start()
    try:
        if is_secure:
            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=host)
        connection.sock = connected
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, body, {**headers, "Host": parts.netloc, "Connection": "close"})
        return connection.getresponse().status
    finally:
        last.cancel()
        connection.close()
        connected.close()


def _connect(host: str, port: int, allow_private: bool) -> socket.socket:
    """Connect to an address that was checked: were the name looked up again, it might have another one."""
    refused: OSError = Refused(f"{host} has no public address")
    until = time.monotonic() + _WHOLE
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not allow_private and not _is_public(str(address[0])):
            continue
        if time.monotonic() >= until:  # a name may have any number of addresses at which nobody answers
            break
        connected = socket.socket(family, kind, protocol)
        connected.settimeout(_CONNECT)
        try:
            connected.connect(address)
            return connected
        except OSError as error:
            connected.close()
            refused = error
    raise refused


# Of IPv6, nothing else is given out (RFC 4291 §2.4): site-local addresses, say, and those of IPv4 in old spellings pass
# for global ones in Python.
_UNICAST = ipaddress.IPv6Network("2000::/3")
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # how a network without IPv4 spells that (RFC 6052)


def _is_public(address: str) -> bool:
    known = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(known, ipaddress.IPv4Address):
        return known.is_global and not known.is_multicast
    inner = ipaddress.IPv4Address(int(known) & 0xFFFFFFFF) if known in _TRANSLATED else known.ipv4_mapped
    if inner is not None:
        return _is_public(str(inner))
    return known in _UNICAST and known.is_global and (known.sixtofour is None or known.sixtofour.is_global)


def _shut_down(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not what TLS makes of it, which takes away what another thread is reading with.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
