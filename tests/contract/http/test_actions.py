"""Actions of an agent beside its answer, and on record, whatever the engine says and does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from audit.models import AgentAction
from proxy.engines.base import (
    CommandFinished,
    CommandStarted,
    FileChange,
    McpCalled,
    MessageDone,
    TextDelta,
    WebSearched,
)
from proxy.errors import WorkerDied
from tests.contract.http.conftest import HELLO
from tests.contract.http.test_agent import grant
from tests.contract.http.waiting import until

STARTED = CommandStarted("c", "ls", "/srv")
FINISHED = CommandFinished("c", "ls", "completed", 0, 12, "a.txt\n", "/srv")
SHOWING = {"agent": "true", "show_actions": "true"}


async def actions(site: Any) -> list[AgentAction]:
    await asyncio.to_thread(site.service.audit_log.flush)
    found: list[AgentAction] = await site.database(
        lambda: list(AgentAction.objects.order_by("request_id", "number"))
    )
    return found


async def test_actions_are_on_record_and_counted_though_nobody_asked_to_see_them(site: Any):
    await grant(site)
    site.engine.script = [STARTED, FINISHED, WebSearched("rain"), *HELLO]

    answer = await site.client.ask(metadata={"agent": "true"})

    assert "actions" not in answer.json()
    row = await site.recorded(answer, "ok")
    assert row.action_count == 2
    command, search, comparison = await actions(site)
    assert {action.request_id for action in (command, search, comparison)} == {row.request_id}
    assert (command.kind, command.status, command.exit_code) == ("command", "completed", 0)
    assert (command.key_name, command.root_alias, command.cwd) == ("laptop", "project", "/srv")
    assert (search.kind, search.command, comparison.kind) == ("web_search", "rain", "comparison")


async def test_whole_answer_lists_each_action_once_in_its_last_state(site: Any):
    await grant(site)
    mcp = McpCalled("calc", "add", '{"a":2}', "failed", 3, "no")
    remark = MessageDone("I look.", is_commentary=True)
    site.engine.script = [remark, STARTED, FINISHED, mcp, *HELLO]

    body = (await site.client.ask(metadata=SHOWING)).json()

    assert body["choices"][0]["message"]["content"] == "Hello"
    shown = body["actions"]
    assert [action["type"] for action in shown] == [
        "commentary",
        "command",
        "mcp_call",
        "comparison",
    ]
    assert shown[0] == {"choice": 0, "type": "commentary", "text": "I look."}
    assert (shown[1]["number"], shown[1]["status"]) == (1, "completed")
    assert (shown[2]["command"], shown[2]["output_head"]) == ('calc.add {"a":2}', "no")
    assert not {"cwd", "key_id", "instance", "boot"} & set(shown[1])


async def test_stream_shows_them_beside_empty_deltas(site: Any):
    await grant(site)
    site.engine.script = [STARTED, FINISHED, *HELLO]

    answer = await site.client.ask(metadata=SHOWING, stream=True)

    events = [
        json.loads(line.removeprefix("data: "))
        for line in answer.body.decode().split("\n\n")
        if line.startswith("data: {")
    ]
    shown = [event for event in events if "codex_action" in event]
    assert [event["codex_action"]["status"] for event in shown][:2] == ["running", "completed"]
    for event in shown:
        assert event["choices"] == [
            {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
        ]
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert text == "Hello"


async def test_legacy_endpoint_shows_them_too(site: Any):
    await grant(site)
    site.engine.script = [FINISHED, *HELLO]
    fields = {"model": "default", "prompt": "hi", "metadata": SHOWING}
    answer = await site.client.post("/v1/completions", json=fields)
    assert answer.json()["actions"][0]["type"] == "command"
    answer = await site.client.post("/v1/completions", json={**fields, "stream": True})
    assert b'"codex_action":{"choice":0,"type":"command"' in answer.body


async def test_actions_of_an_answer_that_is_checked_and_repaired_are_on_record(site: Any):
    await grant(site)
    site.engine.scripts = [
        [FINISHED, TextDelta("no JSON"), MessageDone("no JSON")],
        [FINISHED, TextDelta("{}"), MessageDone("{}")],
    ]
    body = (await site.client.ask(metadata=SHOWING, response_format={"type": "json_object"})).json()
    assert body["choices"][0]["message"]["content"] == "{}"
    numbers = [action["number"] for action in body["actions"]]
    assert numbers == sorted(numbers)
    assert (await site.row()).action_count == 2


async def test_several_choices_share_the_numbers_and_name_their_choice(site: Any):
    await grant(site)
    site.engine.script = [FINISHED, *HELLO]
    body = (await site.client.ask(metadata=SHOWING, n=2)).json()
    commands = [action for action in body["actions"] if action["type"] == "command"]
    assert sorted(action["choice"] for action in commands) == [0, 1]
    assert len({action["number"] for action in body["actions"]}) == len(body["actions"])


async def test_chat_has_no_trail_but_may_show_remarks(site: Any):
    site.engine.script = [MessageDone("Hm.", is_commentary=True), *HELLO]
    body = (await site.client.ask(metadata={"show_actions": "true"})).json()
    assert body["actions"] == [{"choice": 0, "type": "commentary", "text": "Hm."}]
    assert (await site.row()).action_count is None
    assert await actions(site) == []


async def test_what_a_command_changed_is_found_before_the_answer_ends(site: Any):
    def change(_: Any) -> TextDelta:
        (site.folder / "made.txt").write_text("x\n")
        return TextDelta("")

    await grant(site)
    site.engine.script = [STARTED, change, FINISHED, *HELLO]
    body = (await site.client.ask(metadata=SHOWING)).json()
    (found,) = [action for action in body["actions"] if action["type"] == "shell_change"]
    assert (found["path"], found["change"], found["lines_added"]) == ("made.txt", "add", 1)


async def test_change_without_a_command_says_that_something_else_did_it(site: Any):
    def change(_: Any) -> TextDelta:
        (site.folder / "made.txt").write_text("x\n")
        return TextDelta("")

    await grant(site)
    site.engine.script = [change, *HELLO]
    await site.client.ask(metadata={"agent": "true"})
    assert "ran no command" in (await actions(site))[0].note


async def test_paths_are_told_from_the_root_also_of_an_inner_folder(site: Any):
    inner = site.folder / "inner"
    inner.mkdir()
    await grant(site)
    site.engine.script = [FileChange(f"{inner}/a.txt", "add", "+x\n"), *HELLO]
    await site.client.ask(metadata={"agent": "true", "cwd": str(inner)})
    (patch,) = [action for action in await actions(site) if action.kind == "patch"]
    assert (patch.path, patch.lines_added, patch.diff) == ("inner/a.txt", 1, "+x\n")


async def test_command_whose_worker_died_is_unfinished(site: Any):
    await grant(site)
    site.engine.script = [TextDelta("x"), STARTED, WorkerDied("It died.")]
    answer = await site.client.ask(metadata={"agent": "true"})
    assert answer.status == 502
    assert (await actions(site))[0].status == "unfinished"


async def test_client_that_leaves_is_no_end_of_the_record(site: Any):
    await grant(site)
    go_on = asyncio.Event()
    site.engine.script = [STARTED, go_on, FINISHED, *HELLO]
    exchange = site.client.open(
        "POST", "/v1/chat/completions",
        json={"model": "default", "messages": [{"role": "user", "content": "hi"}],
              "metadata": {"agent": "true"}},
    )  # fmt: skip
    await until(lambda: bool(site.engine.turns))
    while not await actions(site):
        pass
    exchange.leave()
    await exchange.left()
    (command, comparison) = await actions(site)
    assert (command.status, comparison.kind) == ("unfinished", "comparison")
    assert (await site.row()).outcome == "cancelled"


@pytest.mark.parametrize("value", ["yes", "1", "", 1, [], {}])
async def test_show_actions_of_any_other_value_is_400(site: Any, value: Any):
    answer = await site.client.ask(metadata={"show_actions": value})
    await site.refused(answer, 400, "invalid_value")
    assert answer.error["param"] == "metadata.show_actions"


async def test_columns_hold_no_answer_and_no_prompt(site: Any):
    """Of the agent's words only commands, their output and diffs are kept."""
    await grant(site)
    site.engine.script = [MessageDone("secret remark", is_commentary=True), FINISHED, *HELLO]
    await site.client.ask("secret question", metadata={"agent": "true"})
    text = str([vars(action) for action in await actions(site)])
    assert "secret" not in text
    assert "Hello" not in text


async def test_agent_that_may_write_nothing_is_not_compared(site: Any):
    await grant(site, level="read")
    site.engine.script = [STARTED, FINISHED, *HELLO]
    await site.client.ask(metadata={"agent": "true"})
    comparison = (await actions(site))[-1]
    assert (comparison.kind, comparison.status) == ("comparison", "unfinished")
    assert "write nothing" in comparison.note
