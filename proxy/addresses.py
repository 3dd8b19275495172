"""Where a request really came from, behind proxies or not. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)


def client_address(
    remote_addr: str, forwarded_for: str, trusted: Sequence[IPv4Network | IPv6Network]
) -> str:
    """Return the client's IP address, or `remote_addr` as it is where that is none (a socket).

    `forwarded_for` is the whole X-Forwarded-For header. Each proxy appends the address it saw, so
    it is read from the right, for as long as the hop that wrote an entry is a trusted one: what a
    client put there itself never counts.
    """
    current = _parse(remote_addr)
    if current is None:
        return remote_addr
    for entry in reversed(forwarded_for.split(",")):
        previous = _parse(entry)
        if previous is None or not any(current in network for network in trusted):
            break
        current = previous
    return str(current)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address as proxies write it: `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]`, `[::1]:80`."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A dual-stack socket shows IPv4 clients as ::ffff:1.2.3.4; networks are named as IPv4.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
