"""Which machines a source may be read from: names are looked up and checked before anything opens.

An address that a stranger types into a page must not reach the machines around the server.
"""

from __future__ import annotations

import ipaddress
import socket

from streaming.sources.trouble import Trouble, TroubleError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def resolve(host: str, port: int, allow_private: bool) -> list[str]:
    """The numeric addresses of a host, in the resolver's order.

    allow_private: also machines of the local network and this machine itself. Raises TroubleError
    where the name is not known, or where one of its addresses is not allowed: a name with a public
    and a private address is a trick.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TroubleError(Trouble.NAME_NOT_KNOWN) from error
    numbers = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and not all(is_public(number) for number in numbers):
        raise TroubleError(Trouble.NOT_ALLOWED)
    return numbers


def is_public(number: str) -> bool:
    """Whether a numeric address belongs to a machine on the public internet."""
    address: IPAddress = ipaddress.ip_address(number.partition("%")[0])
    embedded = _embedded(address)
    if embedded is not None:
        address = embedded
    return address.is_global and not address.is_multicast


def _embedded(address: IPAddress) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside one of IPv6 that leads there: mapped, 6to4, or translated (NAT64)."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
