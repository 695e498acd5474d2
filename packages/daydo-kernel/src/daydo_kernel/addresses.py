"""Where a request comes from, decided once for limits, audit and logs.

The peer of the socket is a fact. Everything in ``X-Forwarded-For`` is a claim, and each proxy appends on the right the
peer that it saw: so the list is read from the right, and only for as long as the one who says so is a proxy of ours.
The first address that is not is the client; what stands further to the left, anybody may have written.

The server must not do this beforehand: switch uvicorn's ``proxy_headers`` off. ``Forwarded`` (RFC 7239) is not read: a
proxy that writes one of the two passes on the other as the client sent it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

HOPS_MAX = 16  # proxies in a row; the header is not read beyond
HOP_CHARS_MAX = 64
IPV6_GROUP_BITS = 64  # what one household or one phone is given

_WITH_PORT = re.compile(r"\[([0-9a-fA-F:.]+)\](?::\d{1,5})?|(\d{1,3}(?:\.\d{1,3}){3}):\d{1,5}")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class TrustedProxies:
    """Who may say where a request comes from: networks such as ``10.0.0.0/8`` or ``fd00::/8``; by default nobody.

    Raises:
        ValueError: one is no network, or is everybody.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(map(_network, networks))
        self._trusts = lru_cache(maxsize=1_024)(self._is_one_of_ours)

    def client_address(self, scope: Mapping[str, Any]) -> str:
        """The address of the client of an ASGI request: an IP in its shortest form.

        Where the server says something else, or nothing (a Unix socket), that, or "".
        """
        client = scope.get("client")
        address: str = normal_address(client[0]) if client else ""
        if not self._networks or not self._trusts(address):
            return address
        for hop in _hops(scope["headers"]):
            named = normal_address(hop)
            if not _parse(named):
                return address  # a proxy of ours wrote what we cannot read: what it is called itself is certain
            address = named
            if not self._trusts(address):
                return address
        return address

    def _is_one_of_ours(self, address: str) -> bool:
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._networks)


@lru_cache(maxsize=4_096)
def normal_address(text: str) -> str:
    """``text`` without port and brackets, in its shortest form, and IPv4 as IPv4; anything else as it is."""
    bare = text.strip()
    if found := _WITH_PORT.fullmatch(bare):
        bare = found[1] or found[2]
    parsed = _parse(bare)
    if parsed is None:
        return text
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


@lru_cache(maxsize=4_096)
def address_group(address: str) -> str:
    """Whom a limit by address counts for: an IPv4 address, or the /64 of an IPv6 one, of which everybody has all."""
    parsed = _parse(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(ip_network((parsed.packed, IPV6_GROUP_BITS), strict=False))
    return normal_address(address)


def _hops(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """What ``X-Forwarded-For`` lists, nearest first; a list may come in several lines."""
    lines = [value for name, value in headers if name == b"x-forwarded-for"]
    nearest = b",".join(lines)[-HOPS_MAX * HOP_CHARS_MAX :]
    return [hop.decode("latin-1").strip() for hop in reversed(nearest.split(b","))][:HOPS_MAX] if lines else []


def _parse(text: str) -> Address | None:
    try:
        return None if "%" in text else ip_address(text)  # a zone says something on its own host only
    except ValueError:
        return None


def _network(text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no network ({error}); write 10.0.0.0/8, or an address") from None
    if network.prefixlen == 0:
        raise ValueError(f"{text!r} trusts everybody, who could then be anybody; name the network of your proxies")
    return network
