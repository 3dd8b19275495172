"""Does the real codex see every image that the checks let through? It drops what it dislikes."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import pytest
from codex_cli_bin import bundled_codex_path
from PIL import Image

from benchmarks.bare import CHAT, AppServer
from proxy.errors import InvalidRequest
from proxy.images import check_image
from tests.provider import ScriptedProvider

OMITTED = "image content omitted because it could not be processed"


def encoded(format_: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: Any):
    output = io.BytesIO()
    noise = Image.effect_noise(size, 60)
    picture = Image.new(mode, size) if mode == "I;16" else noise.convert(mode)
    picture.save(output, format_, **options)
    return output.getvalue()


MORE: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "blue")]}
GOOD = [
    *(encoded("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(encoded("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(encoded("WEBP", mode) for mode in ("RGB", "RGBA")),
    *(encoded("GIF", mode) for mode in ("L", "P", "RGB")),
    *(encoded(name, "RGB", **MORE) for name in ("PNG", "MPO", "WEBP", "GIF")),
    encoded("JPEG", progressive=True),
    encoded("WEBP", lossless=True),
    encoded("PNG", size=(3000, 2)),
    encoded("JPEG", size=(1, 1)),
]


async def shown(home: Path, urls: list[str]) -> list[dict[str, Any]]:
    """Return the parts that reach the model for these data URLs in one message."""
    with ScriptedProvider() as provider:
        async with AppServer.running(str(bundled_codex_path()), home, provider.overrides) as codex:
            started = await codex.call("thread/start", {"ephemeral": True, **CHAT})
            thread = {"threadId": started["thread"]["id"]}
            content = [{"type": "input_image", "image_url": url} for url in urls]
            item = {"type": "message", "role": "user", "content": content}
            await codex.call("thread/inject_items", {**thread, "items": [item]})
            await codex.call("turn/start", {**thread, "input": []})
            request = await asyncio.to_thread(provider.wait_for_request)
    message = [item for item in request.body["input"] if item.get("role") == "user"][-1]
    return list(message["content"])


@pytest.mark.parametrize("detail", [None, "low"])
async def test_every_accepted_image_reaches_the_model(tmp_path: Path, detail: str | None):
    urls = [check_image(data, detail, "messages[0].content[0]") for data in GOOD]

    parts = await shown(tmp_path, urls)

    assert [part["type"] for part in parts] == ["input_image"] * len(urls)


async def test_cut_off_image_is_refused_or_reaches_the_model(tmp_path: Path):
    urls = []
    for data in GOOD:
        for cut in (1, 2, 3, 5, 8, 12, 13, 16, 20, 30, 60):
            try:
                urls.append(check_image(data[:-cut], None, "messages[0].content[0]"))
            except InvalidRequest:
                pass
    assert urls  # a GIF may lack its last byte

    parts = await shown(tmp_path, urls)

    assert [part["type"] for part in parts] == ["input_image"] * len(urls)


async def test_codex_still_drops_what_it_cannot_decode(tmp_path: Path):
    """The reason for all these checks; should it fail, they may be lighter."""
    url = f"data:image/png;base64,{base64.b64encode(encoded('PNG')[:-12]).decode()}"

    [part] = await shown(tmp_path, [url])

    assert part == {"type": "input_text", "text": OMITTED}
