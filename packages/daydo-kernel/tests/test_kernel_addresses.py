"""Who a request comes from, whatever anybody claims."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_kernel.addresses import HOPS_MAX, TrustedProxies, address_group, normal_address

OURS = TrustedProxies(["10.0.0.0/8", "fd00::/8", "192.0.2.7"])

in_ours = st.ip_addresses(network="10.0.0.0/8").map(str) | st.ip_addresses(network="fd00::/8").map(str)
outside = st.ip_addresses(v=4).map(str).filter(lambda text: not text.startswith("10.") and text != "192.0.2.7")
claims = st.lists(st.text(st.characters(codec="latin-1", exclude_characters=","), max_size=80), max_size=8)


def scope(peer: str | None, *forwarded: str) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", line.encode("latin-1")) for line in forwarded]
    return {"client": (peer, 1234) if peer is not None else None, "headers": [(b"host", b"example.com"), *headers]}


def test_nobody_is_trusted_by_default() -> None:
    """Without proxies of ours the peer of the socket is the client, whatever a header says."""
    assert TrustedProxies().client_address(scope("10.1.1.1", "198.51.100.1")) == "10.1.1.1"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.9 ,fd00::2"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1", "10.0.0.2"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("192.0.2.7", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("192.0.2.7", ["198.51.100.1:80"], "198.51.100.1"),
        ("192.0.2.8", ["198.51.100.1"], "192.0.2.8"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, fe80::1%eth0"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.4, 10.0.0.3"], "10.0.0.4"),
        ("testclient", ["198.51.100.1"], "testclient"),
        (None, ["198.51.100.1"], ""),
    ],
)
def test_the_list_is_read_from_the_right(peer: str | None, forwarded: list[str], client: str) -> None:
    """As far as our proxies vouch for it, over several lines, and not one step further."""
    assert OURS.client_address(scope(peer, *forwarded)) == client


@given(claims, outside, st.lists(in_ours, min_size=1, max_size=5))
def test_nothing_a_client_writes_changes_who_it_is(claimed: list[str], client: str, proxies: list[str]) -> None:
    """Whatever stands to the left of what the outermost proxy saw makes no difference."""
    *appended, peer = [client, *proxies]
    assert OURS.client_address(scope(peer, ",".join([*claimed, *appended]))) == client


@given(claims, outside)
def test_a_client_without_a_proxy_is_its_peer(claimed: list[str], client: str) -> None:
    """Who does not come through a proxy of ours cannot say anything."""
    assert OURS.client_address(scope(client, ",".join(claimed))) == client


def test_a_long_list_is_not_read_to_its_end() -> None:
    """The header is bounded from the right: a megabyte of it costs what sixteen hops cost."""
    many = ", ".join(["198.51.100.1", *["10.0.0.2"] * HOPS_MAX])
    assert OURS.client_address(scope("10.0.0.1", many)) == "10.0.0.2"
    assert OURS.client_address(scope("10.0.0.1", "9" * 1_000_000 + ", 198.51.100.1")) == "198.51.100.1"


@given(st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None))
def test_an_ipv6_address_counts_for_its_network(address: Any) -> None:
    """A household has a /64: all of its addresses are one, and no other's are."""
    group = ip_network(address_group(str(address)))
    assert address in group
    assert group.prefixlen == 64
    other = ip_address(int(address) ^ (1 << 64))
    assert address_group(str(other)) != str(group)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_counts_for_itself(address: Any) -> None:
    """Also where the socket speaks IPv6 and shows it mapped."""
    assert address_group(str(address)) == address_group(f"::ffff:{address}") == str(address)


@given(st.text(max_size=80))
def test_any_text_has_one_form(text: str) -> None:
    """What is no address stays as it is, and nothing raises."""
    once = normal_address(text)
    assert normal_address(once) == once or once == text
    assert isinstance(address_group(text), str)


@pytest.mark.parametrize("network", ["10.0.0.0/33", "proxy.internal", "10.0.0.1/8", "", "0.0.0.0/0", "::/0"])
def test_what_is_no_network_of_proxies_is_refused(network: str) -> None:
    """A mistyped one, one with host bits, and everybody."""
    with pytest.raises(ValueError, match=r"network"):
        TrustedProxies([network])
