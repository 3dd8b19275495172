"""What reaches the model beside the caller's own text: next to nothing for a chat, on every model."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.e2e.conftest import LiveSite
from tests.provider import Text

QUESTION: Any = [{"role": "user", "content": "hi"}]
MOST_BYTES = 2048

NOT_OFFERED = {"spawn_agent", "request_user_input", "web_search", "wait", "exec", "clock"}
"""What Codex would offer an agent, and a gateway must not."""


@pytest.mark.parametrize("engine", ["app-server", "exec"])
def test_a_chat_costs_at_most_two_kilobytes_on_every_model(live: LiveSite, engine: str) -> None:
    client = live.client(live.issue_key(engine=engine, name=engine))
    models = [model.id for model in client.models.list() if model.id != "default"]
    assert len(models) >= 5
    sizes = {}
    for model in models:
        client.chat.completions.create(model=model, messages=QUESTION)
        request = live.provider.requests[-1]
        assert request.body["model"] == model
        assert request.tools() == []
        sizes[model] = request.size - len("hi")
    assert {model: size for model, size in sizes.items() if size > MOST_BYTES} == {}


def test_one_worker_serves_chat_and_agent_side_by_side(live: LiveSite) -> None:
    secret = live.run_code(
        """
root = AllowedRoot.objects.get(alias="workspace")
key, result = ApiKey.objects.issue(**issue({"name": "agent", "default_root": root}))
key.allowed_roots.add(root)
AgentGrant.objects.create(key=key, reason="a test").roots.add(root)
"""
    )
    gate = threading.Event()
    live.provider.reply(Text(("so far", " done"), gate=gate))
    asked, answers = len(live.provider.requests), []
    agent = threading.Thread(
        target=lambda: answers.append(
            live.client(secret).chat.completions.create(
                model="default", messages=QUESTION, metadata={"agent": "true"}
            )
        )
    )
    agent.start()
    for_agent = live.provider.wait_for_request(asked + 1)
    chat = live.client().chat.completions.create(model="default", messages=QUESTION)
    gate.set()
    agent.join(20)
    rows = [live.row_of(str(answer._request_id)) for answer in (chat, *answers)]
    assert [row["agent_mode"] for row in rows] == [0, 1]
    assert rows[0]["worker"] == rows[1]["worker"]
    names = {str(tool.get("name")) for tool in for_agent.tools()}
    assert {"exec_command", "apply_patch"} <= names
    assert not names & NOT_OFFERED
    assert live.provider.requests[-1].tools() == []
