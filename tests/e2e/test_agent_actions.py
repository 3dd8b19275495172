"""What an agent does, on record: both engines, the real codex, its real sandbox."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.e2e.conftest import LiveSite, children_of, wait_until
from tests.processes import WAIT_S
from tests.provider import CustomToolCall, FunctionCall, Hang, Script, Text

ENGINES = ["app-server", "exec"]
AGENTS = 20
GO: Any = [{"role": "user", "content": "go"}]


@dataclass
class Agent:
    """A key with a grant in a folder of its own, on one engine."""

    live: LiveSite
    engine: str
    folder: Path
    secret: str

    def ask(self, *scripts: Script, **metadata: str) -> tuple[Any, list[dict[str, Any]]]:
        """Run one agent turn; return the answer and its actions, once the last is stored."""
        self.live.provider.reply(*scripts, Text(("It is done.",)))
        answer = self.live.client(self.secret).chat.completions.create(
            model="gpt-5.5", messages=GO, metadata={"agent": "true", **metadata}
        )
        row = self.live.row_of(answer._request_id or "")
        return answer, self.actions(row["request_id"], row["action_count"])

    def actions(self, request_id: str, count: int) -> list[dict[str, Any]]:
        """The actions of a request, comparison included, once there are so many beside it."""

        def are_there() -> bool:
            return (
                len([row for row in self.rows(request_id) if row["kind"] != "comparison"]) >= count
            )

        wait_until(are_there)
        return self.rows(request_id)

    def rows(self, request_id: str = "") -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(self.live.data_dir / "db.sqlite3")) as connection:
            connection.row_factory = sqlite3.Row
            query = "SELECT * FROM audit_agentaction WHERE request_id LIKE ? ORDER BY id"
            return [dict(row) for row in connection.execute(query, [request_id or "%"])]


@pytest.fixture(scope="module")
def agents(live: LiveSite, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Agent]:
    """Return what gives an agent on an engine, each in a folder of its own; all made at once."""
    base = tmp_path_factory.mktemp("projects")
    for name in range(2 * AGENTS):
        folder = base / f"project{name}"
        folder.mkdir()
        (folder / "a.txt").write_text("hello\n")
        (folder / "old.txt").write_text("one\ntwo\n")
        (folder / "mv.txt").write_text("m\n")
    secrets = live.run_code(f"""
result = []
for number in range({2 * AGENTS}):
    engine = {ENGINES!r}[number % 2]
    root = AllowedRoot.objects.create(alias=f"project{{number}}", path=f"{base}/project{{number}}")
    fields = {{"name": f"agent{{number}}", "engine": engine, "default_root": root}}
    key, secret = ApiKey.objects.issue(**issue(fields))
    key.allowed_roots.add(root)
    AgentGrant.objects.create(key=key, reason="test").roots.add(root)
    result.append(secret)
""")
    left = {engine: list(range(place, 2 * AGENTS, 2)) for place, engine in enumerate(ENGINES)}

    def make(engine: str) -> Agent:
        number = left[engine].pop()
        return Agent(live, engine, base / f"project{number}", secrets[number])

    return make


@pytest.fixture(params=ENGINES)
def agent(request: pytest.FixtureRequest, agents: Callable[[str], Agent]) -> Agent:
    return agents(request.param)


def of_kind(actions: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [action for action in actions if action["kind"] == kind]


PATCH = """*** Begin Patch
*** Update File: a.txt
@@
-hello
+hello there
*** Add File: new.txt
+one
+two
*** Delete File: old.txt
*** End Patch
"""


def test_command_is_on_record_with_its_end_and_its_output(agent: Agent) -> None:
    _, actions = agent.ask(FunctionCall("exec_command", {"cmd": "echo out; ls; exit 3"}))

    (command,) = of_kind(actions, "command")
    output = "out\na.txt\nmv.txt\nold.txt\n"
    assert "echo out; ls; exit 3" in command["command"]
    assert (command["status"], command["exit_code"]) == ("failed", 3)
    assert command["cwd"] == str(agent.folder)
    assert command["duration_ms"] >= 0
    assert command["output_head"] == output
    assert command["output_bytes"] == len(output)
    assert command["output_sha256"] == hashlib.sha256(output.encode()).hexdigest()
    assert command["key_name"].startswith("agent")


def test_patch_is_on_record_file_by_file_with_its_lines(agent: Agent) -> None:
    _, actions = agent.ask(CustomToolCall("apply_patch", PATCH))

    found = {
        row["path"]: (row["change"], row["lines_added"], row["lines_removed"], row["diff"])
        for row in of_kind(actions, "patch")
    }
    assert found["new.txt"][:3] == ("add", 2, 0)
    assert found["old.txt"][:3] == ("delete", 0, 2)
    assert found["a.txt"] == ("update", 1, 1, "@@ -1 +1 @@\n-hello\n+hello there\n")
    assert not of_kind(actions, "shell_change")


def test_patch_that_moves_a_file(agents: Callable[[str], Agent]) -> None:
    agent = agents("app-server")
    patch = "*** Begin Patch\n*** Update File: mv.txt\n*** Move to: sub/moved.txt\n@@\n-m\n+mm\n*** End Patch\n"

    _, actions = agent.ask(CustomToolCall("apply_patch", patch))

    (row,) = of_kind(actions, "patch")
    assert (row["change"], row["path"], row["moved_to"]) == ("move", "mv.txt", "sub/moved.txt")
    assert row["diff"] == "@@ -1 +1 @@\n-m\n+mm\n"
    assert not of_kind(actions, "shell_change")


def test_what_commands_do_to_files_is_found_and_told_from_patches(agent: Agent) -> None:
    _, actions = agent.ask(
        CustomToolCall("apply_patch", PATCH),
        FunctionCall(
            "exec_command",
            {"cmd": "echo more >> new.txt; mkdir sub; echo x > sub/made.txt; mv mv.txt gone.txt"},
        ),
    )

    found = {row["path"]: row for row in of_kind(actions, "shell_change")}
    assert set(found) == {"new.txt", "sub/made.txt", "mv.txt"}
    assert (found["new.txt"]["change"], found["new.txt"]["lines_added"]) == ("update", 1)
    assert "+more" in found["new.txt"]["diff"]
    assert "+two" not in found["new.txt"]["diff"]
    assert (found["sub/made.txt"]["change"], found["sub/made.txt"]["diff"]) == (
        "add",
        "@@ -0,0 +1 @@\n+x\n",
    )
    assert (found["mv.txt"]["change"], found["mv.txt"]["moved_to"]) == ("move", "gone.txt")
    assert len(of_kind(actions, "patch")) == 3
    (comparison,) = of_kind(actions, "comparison")
    assert comparison["note"].startswith("Compared 3 files with ")


def test_refusals_are_on_record(agents: Callable[[str], Agent]) -> None:
    agent = agents("app-server")
    _, actions = agent.ask(
        FunctionCall(
            "exec_command",
            {
                "cmd": "echo esc",
                "sandbox_permissions": "require_escalated",
                "justification": "please",
            },
        ),
        FunctionCall("exec_command", {"cmd": "rm -rf x"}),
        CustomToolCall(
            "apply_patch", "*** Begin Patch\n*** Add File: /etc/evil\n+x\n*** End Patch\n"
        ),
        CustomToolCall(
            "apply_patch", "*** Begin Patch\n*** Update File: a.txt\n@@\n-no\n+x\n*** End Patch\n"
        ),
    )

    assert [row["kind"] for row in actions] == [
        "escalation_refused", "command_refused", "patch_refused", "patch_refused",
    ]  # fmt: skip
    escalation, command, outside, broken = actions
    assert escalation["command"] == "echo esc"
    assert "approval policy is Never" in escalation["note"]
    assert "please" in escalation["note"]
    assert "rm -f style" in command["note"]
    assert (outside["path"], outside["status"]) == ("/etc/evil", "refused")
    assert "writing outside of the project" in outside["note"]
    assert (broken["path"], "verification failed" in broken["note"]) == ("a.txt", True)


def test_what_is_typed_into_a_running_command_is_on_record(agents: Callable[[str], Agent]) -> None:
    def type_into(body: dict[str, Any]) -> FunctionCall:
        number = re.search(r"session ID (\d+)", str(body["input"][-1]["output"]))
        assert number
        typed = {"session_id": int(number[1]), "chars": "echo typed > t.txt\nexit 4\n"}
        return FunctionCall("write_stdin", {**typed, "yield_time_ms": 2_000})

    agent = agents("app-server")
    shell = {"cmd": "sh", "tty": True, "yield_time_ms": 300}

    _, actions = agent.ask(FunctionCall("exec_command", shell), type_into)

    (typed,) = of_kind(actions, "input")
    assert typed["command"] == "echo typed > t.txt\nexit 4\n"
    assert of_kind(actions, "command")[0]["exit_code"] == 4
    assert [row["path"] for row in of_kind(actions, "shell_change")] == ["t.txt"]


def test_command_that_outlives_the_turn_is_unfinished(agent: Agent) -> None:
    _, actions = agent.ask(FunctionCall("exec_command", {"cmd": "sleep 60", "yield_time_ms": 300}))

    (command,) = of_kind(actions, "command")
    assert (command["status"], command["exit_code"]) == ("unfinished", None)


def test_actions_before_a_codex_that_was_killed_are_there(agent: Agent) -> None:
    hang = Hang()
    before = len(agent.live.provider.requests)
    agent.live.provider.reply(
        FunctionCall("exec_command", {"cmd": "echo x > made.txt"}),
        (FunctionCall("exec_command", {"cmd": "sleep 60", "yield_time_ms": 300})),
        hang,
    )
    with httpx.stream(
        "POST", f"{agent.live.url}/v1/chat/completions", timeout=WAIT_S,
        headers={"authorization": f"Bearer {agent.secret}"},
        json={"model": "gpt-5.5", "stream": True, "messages": GO, "metadata": {"agent": "true"}},
    ) as answer:  # fmt: skip
        request_id = answer.headers["x-request-id"].replace("-", "")
        agent.live.provider.wait_for_request(before + 3)
        for pid in children_of(agent.live.server.process.pid):
            with contextlib.suppress(OSError):
                if b"codex" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                    os.kill(pid, signal.SIGKILL)
        answer.read()
        assert b'"error"' in answer.content
    hang.release.set()

    actions = agent.actions(request_id, 3)
    assert [(row["kind"], row["status"]) for row in actions] == [
        ("command", "completed"), ("command", "unfinished"),
        ("shell_change", "completed"), ("comparison", "completed"),
    ]  # fmt: skip
    assert agent.live.row_of(request_id)["error_code"] == "engine_crashed"
    wait_until(lambda: agent.live.row_of(request_id)["action_count"] == 3)


def test_client_that_left_changes_nothing_of_the_record(agent: Agent) -> None:
    hang = Hang()
    before = len(agent.live.provider.requests)
    agent.live.provider.reply(FunctionCall("exec_command", {"cmd": "echo x > made.txt"}), hang)
    with httpx.stream(
        "POST", f"{agent.live.url}/v1/chat/completions", timeout=WAIT_S,
        headers={"authorization": f"Bearer {agent.secret}"},
        json={"model": "gpt-5.5", "stream": True, "messages": GO, "metadata": {"agent": "true"}},
    ) as answer:  # fmt: skip
        request_id = answer.headers["x-request-id"].replace("-", "")
        agent.live.provider.wait_for_request(before + 2)
    hang.release.set()

    actions = agent.actions(request_id, 2)
    assert [row["kind"] for row in actions] == ["command", "shell_change", "comparison"]
    wait_until(lambda: agent.live.row_of(request_id)["action_count"] == 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_actions_are_shown_beside_the_answer_where_they_are_asked_for(
    agents: Callable[[str], Agent], engine: str
) -> None:
    agent = agents(engine)
    script: list[Script] = [
        (
            Text(("I will look.",), phase="commentary"),
            FunctionCall("exec_command", {"cmd": "cat a.txt; echo x > made.txt"}),
        ),
    ]
    answer, _ = agent.ask(*script, show_actions="true")
    assert answer.choices[0].message.content == "It is done."
    shown = answer.model_extra["actions"]
    # Of exec's messages it is known only at the next one which of them is no answer.
    order = ["commentary", "command"] if engine == "app-server" else ["command", "commentary"]
    assert [action["type"] for action in shown] == [*order, "shell_change", "comparison"]
    by_type = {action["type"]: action for action in shown}
    command, change = by_type["command"], by_type["shell_change"]
    assert by_type["commentary"]["text"] == "I will look."
    assert (command["exit_code"], command["output_head"]) == (0, "hello\n")
    assert (change["path"], change["diff"]) == ("made.txt", "@@ -0,0 +1 @@\n+x\n")

    (agent.folder / "made.txt").unlink()
    agent.live.provider.reply(*script, Text(("It is ", "done.")))
    client = agent.live.client(agent.secret)
    metadata = {"agent": "true", "show_actions": "true"}
    with client.chat.completions.stream(
        model="gpt-5.5", messages=GO, metadata=metadata, stream_options={"include_usage": True}
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "It is done."
    chunks = [event.chunk for event in events if event.type == "chunk"]
    extras = [chunk.model_extra or {} for chunk in chunks]
    streamed = [extra["codex_action"] for extra in extras if "codex_action" in extra]
    kinds = [(action["type"], action.get("status")) for action in streamed]
    remark = [("commentary", None)]
    commands = [("command", "running"), ("command", "completed")]
    assert kinds == [
        *(remark + commands if engine == "app-server" else commands + remark),
        ("shell_change", "completed"), ("comparison", "completed"),
    ]  # fmt: skip


def test_actions_are_not_shown_unasked(agent: Agent) -> None:
    answer, _ = agent.ask(
        (Text(("Hm.",), phase="commentary"), FunctionCall("exec_command", {"cmd": "true"}))
    )
    assert "actions" not in answer.model_extra
    assert answer.choices[0].message.content == "It is done."


def test_output_is_cut_and_may_be_left_out(agents: Callable[[str], Agent]) -> None:
    agent = agents("app-server")
    _, actions = agent.ask(FunctionCall("exec_command", {"cmd": "seq 1 2000"}))
    (command,) = of_kind(actions, "command")
    assert (len(command["output_head"]), len(command["output_tail"])) == (2000, 2000)
    assert command["output_tail"].endswith("1999\n2000\n")
    assert command["output_bytes"] == 8893

    agent.live.run_code(
        "ProxySettings(action_output_chars=0, action_diff_chars=0, compared_files=0).save()"
    )
    try:
        _, actions = agent.ask(
            FunctionCall("exec_command", {"cmd": "seq 1 9; echo x > y.txt"}),
            CustomToolCall("apply_patch", PATCH),
        )
    finally:
        agent.live.run_code("ProxySettings().save()")
    (command,) = of_kind(actions, "command")
    assert (command["output_head"], command["output_tail"]) == ("", "")
    assert command["output_bytes"] == 18
    assert not of_kind(actions, "shell_change")
    assert {row["diff"] for row in of_kind(actions, "patch")} == {""}
    assert "switch it off" in of_kind(actions, "comparison")[0]["note"]


def test_two_agents_in_one_folder_are_not_told_apart(agents: Callable[[str], Agent]) -> None:
    agent = agents("app-server")
    hang, before = Hang(), len(agent.live.provider.requests)
    agent.live.provider.reply(hang)
    with httpx.stream(
        "POST", f"{agent.live.url}/v1/chat/completions", timeout=WAIT_S,
        headers={"authorization": f"Bearer {agent.secret}"},
        json={"model": "gpt-5.5", "stream": True, "messages": GO, "metadata": {"agent": "true"}},
    ) as other:  # fmt: skip
        agent.live.provider.wait_for_request(before + 1)
        other_id = other.headers["x-request-id"]
        _, actions = agent.ask(FunctionCall("exec_command", {"cmd": "echo x > made.txt"}))
        hang.release.set()
        other.read()
    (change,) = of_kind(actions, "shell_change")
    assert f"uncertain: request {other_id}" in change["note"]


def test_show_actions_of_another_value_is_400(live: LiveSite) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        live.client().chat.completions.create(
            model="gpt-5.5", messages=GO, metadata={"show_actions": "yes"}
        )
    assert error.value.param == "metadata.show_actions"
