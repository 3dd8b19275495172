"""The real codex binary with the scripted provider and with the demo: do they speak its language?"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from codex_cli_bin import bundled_codex_path

from benchmarks.bare import (
    CHAT,
    LEAN_EXEC,
    AppServer,
    TurnFailed,
    lean_catalogue,
    run_exec,
)
from proxy.demo import NOTICE, DemoProvider, overrides
from proxy.engines.base import Message
from proxy.engines.conversation import as_prompt
from tests.provider import (
    CustomToolCall,
    Disconnect,
    Fail,
    FunctionCall,
    Hang,
    Incomplete,
    Reasoning,
    ScriptedProvider,
    SseFailed,
    Stall,
    Text,
)

pytestmark = pytest.mark.e2e

CODEX = str(bundled_codex_path())
COUNTED = {"inputTokens": 111, "cachedInputTokens": 30, "outputTokens": 77}


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.fixture
def demo() -> Iterator[DemoProvider]:
    running = DemoProvider(word_pause_s=0.001)
    running.start()
    yield running
    running.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "seen-by-ls.txt").touch()
    return (tmp_path / "workspace").resolve()


def agent_thread(workspace: Path, model: str) -> dict[str, object]:
    trust = {str(workspace): {"trust_level": "untrusted"}}
    return {
        "cwd": str(workspace),
        "sandbox": "workspace-write",
        "dynamicTools": [],
        "model": model,
        "config": {"projects": trust},
    }


async def test_exec_gets_the_scripted_answer_and_usage(provider, home, workspace):
    answer = await run_exec(CODEX, home, workspace, provider.overrides, "hi")
    assert answer.text == "Hello world"
    assert answer.usage["input_tokens"] == 111
    assert answer.usage["reasoning_output_tokens"] == 20
    assert provider.wait_for_request().texts("user")[-1] == "hi"


async def test_app_server_gets_reasoning_text_and_usage(provider, home):
    provider.reply((Reasoning(("I ", "think")), Text(("a", "b", "c"), phase="final_answer")))
    async with AppServer.running(CODEX, home, provider.overrides) as codex:
        answer = await codex.ask("hi")
    reasoning = next(item for item in answer.items if item["type"] == "reasoning")
    assert reasoning["summary"] == ["I think"]
    assert answer.text == "abc"
    assert answer.items[-1]["phase"] == "final_answer"
    assert COUNTED.items() <= answer.usage.items()


async def test_a_scripted_command_runs_and_its_output_comes_back(provider, home, workspace):
    provider.default = lambda body: (
        Text(("done",))
        if any(item["type"] == "function_call_output" for item in body["input"])
        else FunctionCall("exec_command", {"cmd": "echo from-the-shell"})
    )
    async with AppServer.running(CODEX, home, provider.overrides) as codex:
        answer = await codex.ask("go", agent_thread(workspace, "gpt-5.5"))
    assert answer.text == "done"
    assert "from-the-shell" in provider.requests[1].tool_outputs()[0]


async def test_a_scripted_patch_is_applied(provider, home, workspace):
    patch = "*** Begin Patch\n*** Add File: new.txt\n+hello\n*** End Patch\n"
    provider.reply(CustomToolCall("apply_patch", patch))
    async with AppServer.running(CODEX, home, provider.overrides) as codex:
        await codex.ask("go", agent_thread(workspace, "gpt-5.5"))
    assert (workspace / "new.txt").read_text() == "hello\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (Fail(400, {"error": {"message": "no such thing"}}), "no such thing"),
        (Fail(502, "<html>bad gateway</html>"), "502 Bad Gateway"),
        (SseFailed("context_length_exceeded"), "context window"),
        (SseFailed("server_error", "it broke", ("partial",)), "it broke"),
        (Incomplete("max_output_tokens"), "max_output_tokens"),
        (Disconnect(after=2), "stream disconnected"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
async def test_each_scripted_failure_fails_the_turn(provider, home, script, message):
    provider.reply(script)
    async with AppServer.running(CODEX, home, provider.overrides) as codex:
        with pytest.raises(TurnFailed, match=message):
            await codex.ask("hi")
        assert (await codex.ask("again")).text == "Hello world"
    assert len(provider.requests) == 2
    assert provider.disconnects == 0


async def test_a_hanging_provider_answers_once_it_is_released(provider, home):
    hang, stall = Hang(), Stall(after=2)
    releases = (hang.release, stall.release)
    provider.reply(hang, stall)
    async with AppServer.running(CODEX, home, provider.overrides) as codex:
        for number, release in enumerate(releases, 1):
            turn = asyncio.ensure_future(codex.ask("hi"))
            await asyncio.to_thread(provider.wait_for_request, number)
            assert not turn.done()
            release.set()
            await turn
    assert provider.disconnects == 0


async def test_a_killed_codex_is_seen_as_a_disconnect_within_a_second(provider, home):
    provider.reply(Text(gate=threading.Event()))
    async with AppServer.running(CODEX, home, provider.overrides) as codex:
        turn = asyncio.ensure_future(codex.ask("hi"))
        await asyncio.to_thread(provider.wait_for_request)
        started = time.monotonic()
    await asyncio.to_thread(provider.wait_for_disconnect)
    assert time.monotonic() - started < 1
    assert provider.disconnected.is_set()
    with pytest.raises(TurnFailed):
        await turn


async def test_a_hundred_streams_at_once(provider):
    gate = threading.Event()
    provider.default = Text(("a", "b"), gate=gate)
    body = b'{"input": []}'
    head = b"POST /v1/responses HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
    host, port = provider.base_url.removeprefix("http://").removesuffix("/v1").split(":")

    async def stream() -> bytes:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + body)
        content = await reader.read()
        writer.close()
        await writer.wait_closed()
        return content

    streams = [asyncio.ensure_future(stream()) for _ in range(100)]
    await asyncio.to_thread(provider.wait_for_request, 100)
    assert not any(each.done() for each in streams)
    gate.set()
    assert all(b"response.completed" in content for content in await asyncio.gather(*streams))


async def test_the_demo_answers_through_exec(demo, home, workspace):
    catalogue = await asyncio.to_thread(lean_catalogue, CODEX, home, home / "models.json")
    settings = (*overrides(demo.base_url), f'model_catalog_json="{catalogue}"', *LEAN_EXEC)
    prompt = as_prompt([Message("user", "one"), Message("assistant", "ok"), Message("user", "two")])
    answer = await run_exec(CODEX, home, workspace, settings, prompt)
    assert answer.text == f"{NOTICE} You said: two"
    assert answer.usage["input_tokens"] > 0
    assert answer.usage["output_tokens"] > 0


@pytest.mark.parametrize("model", ["gpt-6.1-sol", "gpt-5.5"])
async def test_the_demo_chats_and_runs_one_command_through_app_server(demo, home, workspace, model):
    async with AppServer.running(CODEX, home, overrides(demo.base_url)) as codex:
        chat = await codex.ask("hi", {**CHAT, "model": model})
        agent = await codex.ask("go", agent_thread(workspace, model))
    assert chat.text == f"{NOTICE} You said: hi"
    commands = [item for item in agent.items if item["type"] == "commandExecution"]
    assert [command["exitCode"] for command in commands] == [0]
    assert "hello from the codexsite demo" in agent.text
    assert str(workspace) in agent.text
    assert "seen-by-ls.txt" in agent.text
