"""Images that a message names by an https URL, fetched as by a stranger outside this network.

A URL from a caller may aim at what only this server can reach: its own ports, machines behind the
firewall, a cloud's metadata address. So the name is resolved here, once; each address it has must
be a public one; and the connection goes to exactly the address that was checked, while TLS and the
Host header keep the name. A second look at DNS, which might answer otherwise, never happens. Each
redirect starts all of this anew.

Whatever fails before an image is there is told in the same words, since "refused" for one host and
"no such host" for another would draw a map of the internal network. The log has the reason.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx

from proxy.errors import InvalidRequest
from proxy.images import MAX_BYTES, NO_REMOTE_URLS, check_image

logger = logging.getLogger(__name__)

REDIRECTS = (301, 302, 303, 307, 308)
MAX_URL_CHARS = 8_192
MAX_ADDRESSES = 4
"""A name may have hundreds; trying them all would make this server a port scanner."""
HEADERS = {
    "accept": "image/png, image/jpeg, image/webp, image/gif",
    "accept-encoding": "identity",  # the limit on bytes is then the limit on what is unpacked
    "user-agent": "codexsite",
}

# What IANA sets aside, as a list of our own: `is_global` changed its mind between Python versions
# and counts multicast as global.
NOT_PUBLIC_V4 = [
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier NAT; a cloud's metadata at 100.100.100.200
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's host services, on an address that looks public
        "169.254.0.0/16",  # link-local; the clouds' metadata at 169.254.169.254
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
]
GLOBAL_UNICAST_V6 = ip_network("2000::/3")
NOT_PUBLIC_V6 = [
    ip_network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation
    )
]
NAT64 = ip_network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Return whether an IP address is one of the open internet: global, unicast, nobody's own."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return False
    if isinstance(address, IPv6Address) and address in NAT64:
        # How a network with IPv6 alone reaches IPv4: judged by the address inside.
        address = IPv4Address(address.packed[-4:])
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_V4)
    return address in GLOBAL_UNICAST_V6 and not any(address in net for net in NOT_PUBLIC_V6)


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a name, the preferred first. Raises OSError or ValueError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True)
class FetchPolicy:
    """What may be fetched. Make one per process: reading the trusted certificates takes a while.

    `timeout_s` is for the whole fetch, redirects included. `allows` is asked about every address
    that `resolve` returned for a name, and one refusal is enough.
    """

    ports: frozenset[int] = frozenset({443})
    max_bytes: int = MAX_BYTES
    max_redirects: int = 3
    timeout_s: float = 10.0
    allows: Callable[[str], bool] = is_public
    resolve: Callable[[str, int], Awaitable[Sequence[str]]] = resolve
    tls: ssl.SSLContext = field(
        default_factory=lambda: httpx.create_ssl_context(trust_env=False), repr=False
    )


@cache
def default_policy() -> FetchPolicy:
    """Return the strict policy, made once: it reads the trusted certificates."""
    return FetchPolicy()


async def fetch_image(
    url: str, where: str, *, policy: FetchPolicy | None, detail: object = None
) -> str:
    """Return the data URL of the image at an https URL, checked as `images.check_data_url` does.

    `where` is the part's place for the error's `param`. A policy of None means that this server
    fetches nothing. Raises InvalidRequest, and nothing else for anything the other side may do.
    Cancelling closes the connection; a name server that hangs keeps a thread until its own timeout.
    """
    if policy is None:
        raise _refusal(NO_REMOTE_URLS, where)
    try:
        async with asyncio.timeout(policy.timeout_s):
            data = await _follow(_parse(url), policy)
    except _TooLarge as error:
        megabytes = policy.max_bytes / 1_000_000
        message = f"The image is too large: at most {megabytes:g} MB."
        raise _refusal(message, where) from error
    except _BadUrl as error:
        message = "Expected a data URL, or an https URL without a login, on an allowed port."
        raise _refusal(message, where) from error
    # TimeoutError and the errors of TLS are kinds of OSError.
    except (_NotFetched, httpx.TransportError, OSError) as error:
        logger.info("An image was not fetched: %s: %s", type(error).__name__, error)
        message = "The image could not be downloaded from the URL."
        raise _refusal(message, where) from error
    return await asyncio.to_thread(check_image, data, detail, where)


class _NotFetched(Exception):
    """Why not, in words for the log only."""


class _BadUrl(Exception):
    """The URL itself will not do, which its text alone tells."""


class _TooLarge(Exception):
    pass


def _refusal(message: str, where: str) -> InvalidRequest:
    return InvalidRequest(message, param=f"{where}.image_url.url", code="invalid_image_url")


def _parse(text: str) -> httpx.URL:
    if len(text) > MAX_URL_CHARS:
        raise _BadUrl
    try:
        return httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise _BadUrl from error


async def _follow(url: httpx.URL, policy: FetchPolicy) -> bytes:
    """Fetch a URL and where it leads to; every hop is checked like the first."""
    for _ in range(policy.max_redirects + 1):
        answer = await _fetch(url, policy)
        if isinstance(answer, bytes):
            return answer
        try:
            url = url.join(_parse(answer))
        except (httpx.InvalidURL, ValueError) as error:
            raise _BadUrl from error
    raise _NotFetched("too many redirects")


async def _fetch(url: httpx.URL, policy: FetchPolicy) -> bytes | str:
    """Return the body, or where the server redirects to."""
    addresses = await _checked_addresses(url, policy)
    refused: httpx.TransportError | None = None
    for address in addresses:
        try:
            return await _fetch_from(address, url, policy)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            refused = error
    raise _NotFetched("no address accepts a connection") from refused


async def _checked_addresses(url: httpx.URL, policy: FetchPolicy) -> Sequence[str]:
    port = url.port or 443
    if url.scheme != "https" or url.userinfo or not url.host or port not in policy.ports:
        raise _BadUrl
    host = url.raw_host.decode("ascii")
    try:
        addresses = await policy.resolve(host, port)
    except (OSError, ValueError) as error:
        raise _NotFetched(f"no address for {host!r}") from error
    if not addresses or not all(policy.allows(address) for address in addresses):
        raise _NotFetched(f"{host!r} has no address, or one that is not public")
    return addresses[:MAX_ADDRESSES]


async def _fetch_from(address: str, url: httpx.URL, policy: FetchPolicy) -> bytes | str:
    # The bare transport: a client would add cookies, the environment's proxies and .netrc.
    async with httpx.AsyncHTTPTransport(verify=policy.tls, trust_env=False) as transport:
        request = httpx.Request(
            "GET",
            url.copy_with(host=address, fragment=None),
            headers={"host": url.netloc.decode("ascii"), **HEADERS},
            extensions={
                "sni_hostname": url.raw_host.decode("ascii"),
                "timeout": {"connect": policy.timeout_s / MAX_ADDRESSES},
            },
        )
        response = await transport.handle_async_request(request)
        try:
            if response.status_code in REDIRECTS and "location" in response.headers:
                return str(response.headers["location"])
            if response.status_code != 200:
                raise _NotFetched(f"{url.host!r} answered with status {response.status_code}")
            return await _read(response, policy.max_bytes)
        finally:
            await response.aclose()


async def _read(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise _TooLarge
    return bytes(body)
