"""exec and app-server: what one cannot do the other does, or a 400 says so; never in silence."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image as Picture

from proxy.engines.base import Image, TextDelta
from tests.contract.http.openai_shapes import USER, called, message_of, tool


def png() -> str:
    output = io.BytesIO()
    Picture.new("RGB", (3, 2)).save(output, "PNG")
    return f"data:image/png;base64,{base64.b64encode(output.getvalue()).decode()}"


def picture(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


CALLING = {
    "role": "assistant",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
ONLY_APP_SERVER = {
    "tools": ({"tools": [tool()]}, "tools"),
    "legacy functions": ({"functions": [tool()["function"]]}, "tools"),
    "calls in the history": (
        {"messages": [USER, CALLING, {"role": "tool", "tool_call_id": "1", "content": "a"}]},
        "messages",
    ),
    "a late system message": ({"messages": [USER, {"role": "system", "content": "a"}]}, "messages"),
}
BOTH = {
    "plain": {},
    "system first": {"messages": [{"role": "system", "content": "a"}, USER]},
    "image": {"messages": [{"role": "user", "content": [picture(png())]}]},
    "effort": {"reasoning_effort": "low"},
    "n": {"n": 2},
    "tools that may not be called": {"tools": [tool()], "tool_choice": "none"},
}


class TestExec:
    @pytest.mark.parametrize(
        "fields", [fields for fields, _ in ONLY_APP_SERVER.values()], ids=ONLY_APP_SERVER
    )
    async def test_of_the_server_hands_over_what_it_cannot_do(
        self, site: Any, fields: dict[str, Any]
    ) -> None:
        await site.set_options(engine="exec")
        site.engine.script = [called()] if "messages" not in fields else [TextDelta("a")]
        row = await site.recorded(await site.client.ask(**fields), "ok")
        assert row.engine == "app-server"
        assert (len(site.engine.turns), site.exec_engine.turns) == (1, [])

    @pytest.mark.parametrize(("fields", "param"), ONLY_APP_SERVER.values(), ids=ONLY_APP_SERVER)
    @pytest.mark.parametrize("stream", [False, True])
    async def test_of_the_key_refuses_it_and_names_the_other(
        self, site: Any, fields: dict[str, Any], param: str, stream: bool
    ) -> None:
        await site.change(engine="exec")
        answer = await site.client.ask(**fields, stream=stream)
        await site.refused(answer, 400, "unsupported_parameter")
        assert answer.error["param"] == param
        assert "app-server" in answer.error["message"]
        assert site.engine.turns == site.exec_engine.turns == []

    @pytest.mark.parametrize("fields", BOTH.values(), ids=BOTH)
    async def test_does_itself_what_it_can(self, site: Any, fields: dict[str, Any]) -> None:
        await site.change(engine="exec")
        row = await site.recorded(await site.client.ask(**fields), "ok")
        assert row.engine == "exec"
        assert site.engine.turns == []

    async def test_can_be_forced_to_call(self, site: Any) -> None:
        await site.change(engine="exec")
        site.exec_engine.script = [TextDelta('{"calls":[{"tool":"f","arguments":{"a":1}}]}')]
        answer = await site.client.ask(tools=[tool()], tool_choice="required")
        assert len(message_of(answer)["tool_calls"]) == 1
        await site.recorded(answer, "ok")


class TestImages:
    async def test_data_url_reaches_the_turn(self, site: Any) -> None:
        content = [{"type": "text", "text": "What?"}, picture(png(), detail="high")]
        answer = await site.client.ask(messages=[{"role": "user", "content": content}, USER])
        row = await site.recorded(answer, "ok")
        parts = site.engine.turns[0].messages[0].parts
        assert parts[1] == Image(png())
        assert row.asked == {"messages": 2, "images": 1}

    @pytest.mark.parametrize(
        ("part", "param", "code"),
        [
            (picture("https://example.com/a.png"), ".image_url.url", "invalid_image_url"),
            (picture("http://127.0.0.1/"), ".image_url.url", "invalid_image_url"),
            (picture("file:///etc/passwd"), ".image_url.url", "invalid_image_url"),
            (picture(""), ".image_url.url", "invalid_image_url"),
            (picture("data:image/png;base64,!"), ".image_url.url", "invalid_base64_image"),
            (picture("data:image/png;base64,AAAA"), ".image_url.url", "image_parse_error"),
            (picture("data:image/png;base64,"), ".image_url.url", "empty_image_file"),
            (picture("data:text/plain;base64,AAAA"), ".image_url.url", "unsupported_image_media_type"),
            (picture(png(), detail="huge"), ".image_url.detail", "invalid_value"),
            (picture(png(), detail=5), ".image_url.detail", "invalid_type"),
            ({"type": "image_url"}, ".image_url", "missing_required_parameter"),
            ({"type": "image_url", "image_url": {}}, ".image_url.url", "missing_required_parameter"),
            ({"type": "image_url", "image_url": png()}, ".image_url", "invalid_type"),
        ],
    )  # fmt: skip
    async def test_bad_one_is_400_at_its_place(
        self, site: Any, part: dict[str, Any], param: str, code: str
    ) -> None:
        content = [{"type": "text", "text": "a"}, part]
        answer = await site.client.ask(messages=[USER, {"role": "user", "content": content}])
        await site.refused(answer, 400, code)
        assert answer.error["param"] == f"messages[1].content[1]{param}"
        assert site.engine.turns == []

    @pytest.mark.parametrize("kind", ["input_audio", "file", "video_url"])
    async def test_other_media_are_400(self, site: Any, kind: str) -> None:
        part = {"type": kind, kind: {"data": "AAAA", "format": "wav"}}
        answer = await site.client.ask(messages=[{"role": "user", "content": [part]}])
        await site.refused(answer, 400, "unsupported_parameter")
        assert answer.error["param"] == "messages[0].content[0]"
