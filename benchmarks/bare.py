"""Codex without any server around it: the baseline of the benchmarks, as small as it can be.

`AppServer` is a minimal JSON-RPC loop over one `codex app-server`; `run_exec` is one `codex exec`.
Both ask for what a lean chat completion needs and nothing else, so that a server's own cost is the
difference to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

LINE_LIMIT = 64 * 2**20
ANSWER_TIMEOUT_S = 120.0
STARTS_AT_ONCE = 16
"""Codex answers -32001 (overloaded) where many more turns start at the same moment."""

Json = dict[str, Any]

PROCESS_FLAGS = ("--disable", "apps", "--disable", "plugins")
PROCESS_OVERRIDES = (
    "mcp_servers={}",
    "thread_unload_delay_secs=0",
    "features.unbounded_connection_retries=false",
    "analytics.enabled=false",
    "check_for_update_on_startup=false",
    "project_doc_max_bytes=0",
    "skills.bundled.enabled=false",
)
UNHEARD = (
    "thread/started",
    "thread/status/changed",
    "account/rateLimits/updated",
    "remoteControl/status/changed",
)
LEAN: Json = {
    "features.multi_agent": False,
    "features.goals": False,
    "features.skill_search": False,
    "features.sleep_tool": False,
    "skills.include_instructions": False,
    "web_search": "disabled",
    "include_environment_context": False,
    "include_permissions_instructions": False,
    "include_collaboration_mode_instructions": False,
    "tools.experimental_request_user_input": {"enabled": False},
}
# `exec` always has an environment, so the tools that come with one go by their own switches.
LEAN_EXEC = (
    *(f"{key}={json.dumps(value)}" for key, value in LEAN.items() if not isinstance(value, dict)),
    "tools.experimental_request_user_input={enabled=false}",
    *(
        f"features.{name}=false"
        for name in ("unified_exec", "shell_tool", "view_image", "image_generation")
    ),
)
CHAT: Json = {
    "cwd": "/",
    "sandbox": "read-only",
    "environments": [],
    "dynamicTools": [],
    "baseInstructions": "",
    "config": LEAN,
}


@dataclass
class Answer:
    """What one turn gave; `pieces` are its deltas, each with its time on the monotonic clock."""

    text: str = ""
    pieces: list[tuple[float, str]] = field(default_factory=list)
    items: list[Json] = field(default_factory=list)
    usage: Json = field(default_factory=dict)


class TurnFailed(RuntimeError):
    """Codex refused a call, failed the turn, or went away."""


def provider_overrides(base_url: str) -> tuple[str, ...]:
    """Return the overrides that make Codex ask the model provider at `base_url`."""
    provider = (
        f'{{name="bench",base_url="{base_url}",wire_api="responses",'
        "supports_websockets=false,request_max_retries=0,stream_max_retries=0}"
    )
    return ('model_provider="bench"', f"model_providers.bench={provider}")


def environment(codex_home: Path) -> dict[str, str]:
    """Return the whole environment of a bare Codex."""
    return {"PATH": os.environ["PATH"], "HOME": str(codex_home), "CODEX_HOME": str(codex_home)}


def quick_authorities(folder: Path) -> dict[str, str]:
    """Return variables that spare Codex the parsing of the system's certificates in every turn.

    One authority by file and all of them by folder, which Codex reads without parsing: what this
    server does for its own workers. Nothing where the system keeps no bundle in a file.
    """
    bundle = Path(ssl.get_default_verify_paths().openssl_cafile)
    pem = r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----"
    text = bundle.read_text() if bundle.is_file() else ""
    first = re.search(pem, text, re.DOTALL)
    if first is None:
        return {}
    (folder / "authorities").mkdir()
    (folder / "authorities" / "bundle.pem").write_text(text)
    (folder / "one.pem").write_text(first[0] + "\n")
    return {"SSL_CERT_FILE": str(folder / "one.pem"), "SSL_CERT_DIR": str(folder / "authorities")}


def config_flags(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("-c", override)]


def lean_catalogue(codex_bin: str, codex_home: Path, target: Path) -> Path:
    """Write Codex's bundled model catalogue to `target`, without what makes a request large."""
    out = subprocess.run(
        (codex_bin, "debug", "models", "--bundled"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(codex_home),
        timeout=ANSWER_TIMEOUT_S,
        check=True,
    )
    catalogue = json.loads(out.stdout)
    for model in catalogue["models"]:
        model.pop("tool_mode", None)
        model.pop("multi_agent_version", None)
        model["experimental_supported_tools"] = []
        model["apply_patch_tool_type"] = None
    target.write_text(json.dumps(catalogue))
    return target


async def stop_group(child: asyncio.subprocess.Process) -> None:
    """End a child that leads its own process group, and everything in that group."""
    for sig, patience_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sig)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), patience_s)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


class AppServer:
    """One running `codex app-server`; several turns may run on it at once."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self.pid = child.pid
        self._stdin, self._stdout = child.stdin, child.stdout
        self._last_id = 0
        self._has_gone = False
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self._calls: dict[int, asyncio.Future[Json]] = {}
        self._threads: dict[str, asyncio.Queue[Json]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls,
        codex_bin: str,
        codex_home: Path,
        overrides: Sequence[str],
        env: Mapping[str, str] | None = None,
    ) -> AsyncIterator[AppServer]:
        """Start it and say hello; leaving the block ends it and whatever it started."""
        child = await asyncio.create_subprocess_exec(
            *(codex_bin, "app-server", "--stdio", *PROCESS_FLAGS),
            *config_flags((*PROCESS_OVERRIDES, *overrides)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(env or environment(codex_home)),
            limit=LINE_LIMIT,
            start_new_session=True,
        )
        server = cls(child)
        reader = asyncio.create_task(server._read())
        try:
            await server._say_hello()
            yield server
        finally:
            await stop_group(child)
            # The end of its output ends the reader, which wakes whoever still waits.
            await asyncio.wait_for(reader, ANSWER_TIMEOUT_S)

    async def _say_hello(self) -> None:
        client = {"name": "bench", "title": "bench", "version": "1"}
        capabilities = {"experimentalApi": True, "optOutNotificationMethods": UNHEARD}
        await self.call("initialize", {"clientInfo": client, "capabilities": capabilities})
        self._send({"method": "initialized"})

    async def call(self, method: str, params: Json) -> Json:
        """Return the result of one JSON-RPC call, or raise `TurnFailed`."""
        if self._has_gone:
            raise TurnFailed("codex app-server has gone")
        self._last_id += 1
        future = self._calls[self._last_id] = asyncio.get_running_loop().create_future()
        self._send({"id": self._last_id, "method": method, "params": params})
        return await asyncio.wait_for(future, ANSWER_TIMEOUT_S)

    def _send(self, message: Json) -> None:
        self._stdin.write(orjson.dumps(message) + b"\n")

    async def _read(self) -> None:
        try:
            while line := await self._stdout.readline():
                self._dispatch(orjson.loads(line))
        finally:
            self._has_gone = True
            for call in self._calls.values():
                if not call.done():
                    call.set_exception(TurnFailed("codex app-server has gone"))
            for queue in self._threads.values():
                queue.put_nowait({"method": "gone", "params": {}})

    def _dispatch(self, message: Json) -> None:
        if "method" in message:
            queue = self._threads.get(message.get("params", {}).get("threadId", ""))
            if queue is not None:
                queue.put_nowait(message)
            return
        call = self._calls.pop(message["id"], None)
        if call is None or call.done():
            return
        if "error" in message:
            call.set_exception(TurnFailed(message["error"]["message"]))
        else:
            call.set_result(message["result"])

    async def ask(self, text: str, thread: Json | None = None) -> Answer:
        """Run one turn on a fresh thread that asks `text`; raise `TurnFailed` if it goes wrong.

        `thread` are the parameters of `thread/start`; without them it is a lean chat.
        """
        params = {"ephemeral": True, "approvalPolicy": "never", **(thread or CHAT)}
        async with self._starts:
            thread_id = (await self.call("thread/start", params))["thread"]["id"]
            queue = self._threads[thread_id] = asyncio.Queue()
            try:
                message = {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": text}],
                }
                await self.call("thread/inject_items", {"threadId": thread_id, "items": [message]})
                await self.call("turn/start", {"threadId": thread_id, "input": []})
            except BaseException:
                self._leave(thread_id)
                raise
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await _collect(queue)
        finally:
            self._leave(thread_id)

    def _leave(self, thread_id: str) -> None:
        # Behind the answer: nobody waits for the thread's end.
        del self._threads[thread_id]
        self._last_id += 1
        unsubscribe = {"method": "thread/unsubscribe", "params": {"threadId": thread_id}}
        self._send({"id": self._last_id, **unsubscribe})


async def _collect(events: asyncio.Queue[Json]) -> Answer:
    answer = Answer()
    while True:
        event = await events.get()
        method, params = event["method"], event["params"]
        if method == "item/agentMessage/delta":
            answer.pieces.append((time.monotonic(), params["delta"]))
        elif method == "item/completed":
            answer.items.append(params["item"])
            if params["item"]["type"] == "agentMessage":
                answer.text = params["item"]["text"]
        elif method == "thread/tokenUsage/updated":
            answer.usage = params["tokenUsage"]["total"]
        elif method == "gone":
            raise TurnFailed("codex app-server has gone")
        elif method == "turn/completed":
            if params["turn"]["status"] != "completed":
                raise TurnFailed(str(params["turn"]["error"]))
            return answer


async def run_exec(
    codex_bin: str,
    codex_home: Path,
    cwd: Path,
    overrides: Sequence[str],
    text: str,
    *,
    sandbox: str = "read-only",
    model: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Answer:
    """Ask `text` of one `codex exec --json`; raise `TurnFailed` if it goes wrong."""
    child = await asyncio.create_subprocess_exec(
        *(codex_bin, "exec", "--json", "--skip-git-repo-check", "--ephemeral", "-s", sandbox),
        *("--ignore-user-config", "--ignore-rules", *PROCESS_FLAGS, "--cd", str(cwd)),
        *config_flags((*PROCESS_OVERRIDES, *overrides)),
        *(("--model", model) if model else ()),
        "-",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env or environment(codex_home)),
        start_new_session=True,
    )
    try:
        out, err = await asyncio.wait_for(child.communicate(text.encode()), ANSWER_TIMEOUT_S)
    finally:
        await stop_group(child)
    answer, ended = Answer(), time.monotonic()
    if child.returncode != 0 and not out:
        raise TurnFailed(f"codex exec ended with {child.returncode}: {err.decode()[-300:]}")
    for event in map(json.loads, out.splitlines()):
        if event["type"] == "turn.failed":
            raise TurnFailed(event["error"]["message"])
        if event["type"] == "item.completed":
            answer.items.append(event["item"])
            if event["item"]["type"] == "agent_message":
                answer.text = event["item"]["text"]
                answer.pieces = [(ended, answer.text)]
        if event["type"] == "turn.completed":
            answer.usage = event["usage"]
    return answer
