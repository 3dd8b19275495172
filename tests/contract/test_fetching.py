"""Fetching from a real TLS server on loopback; only the resolver and the address check are ours."""

from __future__ import annotations

import asyncio
import base64
import datetime
import io
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from proxy.errors import InvalidRequest
from proxy.fetching import FetchPolicy, fetch_image, is_public

WHERE = "messages[0].content[1]"
HOST = "pictures.example"
LOOPBACK = "127.0.0.1"
BOUND_S = 10.0
UNTOLD = "The image could not be downloaded from the URL."


def png(size: tuple[int, int] = (8, 6)) -> bytes:
    output = io.BytesIO()
    Image.new("RGB", size, "red").save(output, "PNG")
    return output.getvalue()


PNG = png()
PNG_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(target: str, status: str = "302 Found") -> bytes:
    return answer(b"", status, f"location: {target}")


Script = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Site:
    """A TLS server that plays one script per path, and remembers what it was asked."""

    port: int = 0
    scripts: dict[str, Script] = field(default_factory=lambda: {"/a.png": answer(PNG)})
    requests: list[str] = field(default_factory=list)
    connections: int = 0

    async def treat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            script = self.scripts[head.split(" ")[1]]
            if isinstance(script, bytes):
                writer.write(script)
                await writer.drain()
            else:
                await script(writer)
        except (OSError, EOFError):
            pass  # It left.
        finally:
            writer.close()


@dataclass(frozen=True)
class Certificates:
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate for HOST, signed by itself, and a client that trusts it and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file: Path = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return Certificates(server, ssl.create_default_context(cafile=str(file)))


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None) -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site.treat, LOOPBACK, 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()


@pytest.fixture
async def site(certificates: Certificates) -> AsyncIterator[Site]:
    async with serving(certificates.server) as site:
        yield site


class Names:
    """A resolver by table that counts; a name's answers follow one another, the last one stays."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {HOST: [[LOOPBACK]], **{k.replace("_", "."): v for k, v in answers.items()}}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        known = self.answers.get(host)
        if known is None:
            raise OSError(f"no such host: {host}")
        self.asked.append(host)
        return known[min(self.asked.count(host), len(known)) - 1]


def policy(site: Site, certificates: Certificates, **changes: object) -> FetchPolicy:
    values = {
        "ports": frozenset({site.port}),
        "allows": lambda address: address == LOOPBACK,
        "resolve": Names(),
        "tls": certificates.client,
        "timeout_s": BOUND_S,
        **changes,
    }
    return FetchPolicy(**values)  # type: ignore[arg-type]


@pytest.fixture
def fetch(site: Site, certificates: Certificates) -> Callable[..., Awaitable[str]]:
    async def run(path: str = "/a.png", **changes: object) -> str:
        own = path.startswith("/") and not path.startswith("//")
        url = f"https://{HOST}:{site.port}{path}" if own else path
        async with asyncio.timeout(2 * BOUND_S):
            return await fetch_image(url, WHERE, policy=policy(site, certificates, **changes))

    return run


@pytest.fixture
def refusal(fetch: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
    """Fetch what must be refused; return the message."""

    async def run(path: str = "/a.png", **changes: object) -> str:
        with pytest.raises(InvalidRequest) as caught:
            await fetch(path, **changes)
        assert caught.value.param == f"{WHERE}.image_url.url"
        assert caught.value.code == "invalid_image_url"
        return caught.value.message

    return run


async def test_image_is_fetched_by_address_and_asked_for_by_name(site, fetch):
    names = Names()

    assert await fetch(resolve=names) == PNG_URL

    assert names.asked == [HOST]
    [head] = site.requests
    assert head.startswith("GET /a.png HTTP/1.1\r\n")
    assert f"\r\nhost: {HOST}:{site.port}\r\n" in head.lower()


async def test_no_credential_cookie_or_proxy_of_ours_is_used(
    site, fetch, monkeypatch, tmp_path: Path
):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {HOST} login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTPS_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://{LOOPBACK}:9")
    site.scripts["/start"] = answer(b"", "302 Found", "location: /a.png", "set-cookie: a=b")

    assert await fetch("/start") == PNG_URL

    heads = "".join(site.requests).lower()
    assert len(site.requests) == 2
    assert not any(name in heads for name in ("\ncookie", "\nauthorization", "\nreferer", "secret"))


async def test_low_detail_scales_a_fetched_image_down(site, certificates):
    site.scripts["/a.png"] = answer(png((1600, 800)))

    url = await fetch_image(
        f"https://{HOST}:{site.port}/a.png",
        WHERE,
        policy=policy(site, certificates),
        detail="low",
    )

    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert image.size == (512, 256)


async def test_without_a_policy_nothing_is_fetched():
    with pytest.raises(InvalidRequest, match="does not download images") as caught:
        await fetch_image("https://example.com/a.png", WHERE, policy=None)
    assert caught.value.code == "invalid_image_url"


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example/a.png",
        "ftp://pictures.example/a.png",
        "file:///etc/passwd",
        "//pictures.example/a.png",
        "https:///a.png",
        "https://pictures.example/a.png",  # 443, which this policy does not list
        "https://pictures.example:22/a.png",
        "https://pictures.example:99999/a.png",
        "https://me:secret@pictures.example:{port}/a.png",
        "https://me@pictures.example:{port}/a.png",
        "https://pictures.example:{port}/a\n.png",
        "https://[::1",
        "https://" + "a" * 9000,
    ],
    ids=lambda url: url[:40],
)
async def test_url_of_another_kind_is_refused_unasked(site, refusal, url: str):
    names = Names()

    assert "https URL" in await refusal(url.replace("{port}", str(site.port)), resolve=names)

    assert (site.connections, names.asked) == (0, [])


async def test_one_private_address_among_others_refuses_the_name(site, refusal):
    names = Names(**{HOST: [[LOOPBACK, "10.0.0.1"]]})

    assert await refusal(resolve=names) == UNTOLD

    assert site.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001"])
async def test_loopback_by_any_name_is_refused_by_the_policy_itself(site, certificates, host: str):
    strict = FetchPolicy(ports=frozenset({site.port}), tls=certificates.client)

    with pytest.raises(InvalidRequest) as caught:
        await fetch_image(f"https://{host}:{site.port}/a.png", WHERE, policy=strict)

    assert caught.value.code == "invalid_image_url"
    assert site.connections == 0


async def test_name_that_moves_after_the_check_is_not_followed(site, fetch):
    names = Names(**{HOST: [[LOOPBACK], ["10.0.0.1"]]})

    assert await fetch(resolve=names) == PNG_URL

    assert names.asked == [HOST]


async def test_name_that_moves_between_redirects_is_refused(site, refusal):
    names = Names(**{HOST: [[LOOPBACK], ["10.0.0.1"]]})
    site.scripts["/start"] = redirect("/a.png")

    assert await refusal("/start", resolve=names) == UNTOLD

    assert len(site.requests) == 1


async def test_next_address_is_tried_where_one_does_not_answer(fetch):
    names = Names(**{HOST: [["127.0.0.2", LOOPBACK]]})

    assert await fetch(resolve=names, allows=lambda _: True) == PNG_URL


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
async def test_redirect_is_followed(site, fetch, status: str):
    site.scripts["/start"] = redirect(f"https://{HOST}:{site.port}/a.png", status)

    assert await fetch("/start") == PNG_URL


@pytest.mark.parametrize(
    "target",
    [
        "http://pictures.example/a.png",
        "file:///etc/passwd",
        "https://pictures.example:22/",
        "https://[",
    ],
)
async def test_redirect_to_another_kind_of_url_is_refused(site, refusal, target: str):
    site.scripts["/start"] = redirect(target)

    await refusal("/start")

    assert len(site.requests) == 1


async def test_redirect_to_a_private_address_is_refused(site, refusal):
    names = Names(intern_example=[["10.0.0.1"]])
    site.scripts["/start"] = redirect(f"https://intern.example:{site.port}/a.png")

    assert await refusal("/start", resolve=names) == UNTOLD


async def test_redirects_in_a_circle_end(site, refusal):
    site.scripts["/start"] = redirect("/start")

    assert await refusal("/start") == UNTOLD

    assert len(site.requests) == 4


async def test_internal_host_missing_host_and_silent_host_sound_alike(site, refusal):
    names = Names(intern_example=[["10.0.0.1"]])
    told = {
        await refusal(f"https://{host}:{site.port}/", resolve=names)
        for host in ("intern.example", "missing.example")
    }
    site.scripts["/a.png"] = answer(b"nothing", "404 Not Found")
    told.add(await refusal())

    assert told == {UNTOLD}


async def test_certificate_of_another_name_is_refused(site, refusal):
    names = Names(other_example=[[LOOPBACK]])

    assert await refusal(f"https://other.example:{site.port}/a.png", resolve=names) == UNTOLD

    assert site.requests == []


async def test_server_without_tls_is_refused(certificates):
    async with serving(None) as plain:
        with pytest.raises(InvalidRequest, match=UNTOLD):
            await fetch_image(
                f"https://{HOST}:{plain.port}/a.png",
                WHERE,
                policy=policy(plain, certificates, timeout_s=1.0),
            )


async def test_body_above_the_limit_is_cut_off(site, refusal):
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:  # until the other side leaves, which raises here
            writer.write(b"x" * 65_536)
            await writer.drain()

    site.scripts["/a.png"] = endless

    assert await refusal(max_bytes=1_000_000) == "The image is too large: at most 1 MB."


async def test_body_that_drips_is_given_up_at_the_deadline(site, refusal):
    left = asyncio.Event()

    async def dripping(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + PNG[:20])
        try:
            await writer.wait_closed()
        finally:
            left.set()

    site.scripts["/a.png"] = dripping

    assert await refusal(timeout_s=0.3) == UNTOLD

    await asyncio.wait_for(left.wait(), BOUND_S)


async def test_deadline_covers_a_name_server_that_hangs(refusal):
    async def hang(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    assert await refusal(timeout_s=0.1, resolve=hang) == UNTOLD


@pytest.mark.parametrize(
    "script",
    [
        b"",
        b"\0\1\2 nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\ncut",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
        answer(b"", "204 No Content"),
        answer(PNG[:9], "206 Partial Content"),
        answer(b"", "302 Found"),
        answer(b"oh", "500 Internal Server Error"),
    ],
    ids=lambda script: repr(script[:24]),
)
async def test_broken_answer_is_refused(site, refusal, script: bytes):
    site.scripts["/a.png"] = script

    assert await refusal() == UNTOLD


@pytest.mark.parametrize(
    ("body", "code"), [(b"<html>", "image_parse_error"), (b"", "empty_image_file")]
)
async def test_what_is_no_image_is_refused_whatever_it_calls_itself(site, fetch, body, code):
    site.scripts["/a.png"] = answer(body, "200 OK", "content-type: image/png")

    with pytest.raises(InvalidRequest) as caught:
        await fetch()

    assert caught.value.code == code


async def test_what_is_an_image_is_taken_whatever_it_calls_itself(site, fetch):
    site.scripts["/a.png"] = answer(PNG, "200 OK", "content-type: text/html")

    assert await fetch() == PNG_URL


async def test_cancelled_fetch_lets_go_of_its_connection(site, fetch):
    asked, left = asyncio.Event(), asyncio.Event()

    async def silent(writer: asyncio.StreamWriter) -> None:
        asked.set()
        try:
            await writer.wait_closed()
        finally:
            left.set()

    site.scripts["/a.png"] = silent
    task = asyncio.create_task(fetch())
    await asyncio.wait_for(asked.wait(), BOUND_S)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(left.wait(), BOUND_S)


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=())), head=st.sampled_from(["", "https://"]))
def test_any_text_is_refused(text: str, head: str):
    async def nowhere(host: str, port: int) -> Sequence[str]:
        raise OSError("no such host")

    strict = FetchPolicy(resolve=nowhere, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    with pytest.raises(InvalidRequest):
        asyncio.run(fetch_image(head + text, WHERE, policy=strict))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00::1",
     "64:ff9b::8.8.8.8"],
)  # fmt: skip
def test_address_of_the_open_internet_is_public(address: str):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "10.1.2.3", "172.16.0.1"),
        *("172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200"),
        *("168.63.129.16", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.9.9"),
        *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:8.8.8.8"),
        *("fe80::1", "fe80::1%eth0", "2a00::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254"),
        *("ff02::1", "100::1", "2001::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::"),
        *("2002:808:808::", "3fff::1", "4000::1", "5f00::1", "64:ff9b::127.0.0.1"),
        *("64:ff9b::169.254.169.254", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8", "", "localhost"),
        *("8.8.8", "0x8.8.8.8"),
    ],
)  # fmt: skip
def test_every_other_address_is_not(address: str):
    assert not is_public(address)
