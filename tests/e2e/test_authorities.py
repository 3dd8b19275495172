"""TLS to the model provider: an authority at the end of the bundle is trusted, an unknown one is not."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from codex_cli_bin import bundled_codex_path

from benchmarks.bare import AppServer, TurnFailed, environment
from proxy.demo import overrides
from proxy.engines.certificates import spread_out
from tests.provider import ScriptedProvider


@contextlib.asynccontextmanager
async def tls_in_front_of(provider: ScriptedProvider, authority: trustme.CA) -> AsyncIterator[str]:
    """Serve the provider over TLS; gives the base URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    plain_port = int(provider.base_url.split(":")[2].partition("/")[0])

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", plain_port)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    server = await asyncio.start_server(connect, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"


@pytest.mark.parametrize("is_known", [True, False])
async def test_codex_trusts_just_the_authorities_of_the_bundle(tmp_path: Path, is_known: bool):
    ours, others = trustme.CA(), [trustme.CA(), trustme.CA()]
    bundle, home = tmp_path / "bundle.pem", tmp_path / "home"
    home.mkdir()
    known = [*others, *([ours] if is_known else [])]
    bundle.write_bytes(b"".join(authority.cert_pem.bytes() for authority in known))
    env = environment(home) | spread_out(tmp_path / "made", bundle)
    with ScriptedProvider() as provider:
        async with (
            tls_in_front_of(provider, ours) as base_url,
            AppServer.running(str(bundled_codex_path()), home, overrides(base_url), env) as server,
        ):
            if is_known:
                assert (await server.ask("hi")).text == "Hello world"
            else:
                with pytest.raises(TurnFailed):
                    await server.ask("hi")
