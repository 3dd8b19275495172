"""A stand-in for the codex binary: a real child that can be told to misbehave.

What the user's message says is what it does, a verb on each line (`think: hm`, then `die`); anything
else is echoed. How it starts is told by files in its folder and by its environment. Whatever it
receives it writes down in `record.jsonl` there. It uses the standard library only and imports
little, since a test may start four of them.

    say: a b c             a message, word by word            think: hm     a reasoning summary
    remark: text           a commentary message               command: ls   a command that succeeds
    chatter                words until it is stopped          hang          silence until it is stopped
    wait: NAME             until the file NAME is there       deaf          ignores an interrupt
    die                    SIGKILL to itself                  die-mid-line  after half a line
    die-first: NAME        SIGKILL unless the file NAME is there, which it makes
    exit: 101              ends by itself                     fail: JSON    {"message": …, "info": …}
    ignore-term            from now on, in every child too    grandchild    a child that outlives it
    long-line: 1000000     a message of that many letters     flood-stderr: 1000000
    replay                 reconnects and begins again        unknown-frames
    server-request         asks for an approval, and says what it was answered
    late-turn-start        answers `turn/start` at the end    hold-turn-start: NAME   when NAME is there
    mute-turn-start        never answers `turn/start`, though the turn runs
    garble                 a notification without its fields

The file `hold-thread-start` holds the answer to `thread/start` until `go-thread-start` is there. The
file `refuse` makes it fail at once. Environment: FAKE_OVERLOADED=n answers the first n thread/start with -32001,
FAKE_LOGGED_OUT=1, FAKE_MUTE=1 never answers `initialize`, FAKE_NO_CATALOGUE=1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NoReturn

Json = dict[str, Any]

VERSION = "0.163.0"
USAGE = {"input": 111, "cached_input": 30, "output": 77, "reasoning_output": 20}
MODELS = ("fake-1", "fake-2")
POLL_S = 0.005
PREAMBLE_END = "not as JSON.\n\n"


class Interrupted(Exception):
    """`turn/interrupt` has come."""


class Failure(Exception):
    """The turn fails with a message and, for app-server, a `codexErrorInfo`."""

    def __init__(self, message: str, info: object) -> None:
        super().__init__(message)
        self.message, self.info = message, info


class Notebook:
    """What the tests read: one JSON object a line, whole lines only."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._file = os.open(
            os.path.join(folder, "record.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )

    def note(self, **facts: object) -> None:
        os.write(self._file, json.dumps({"pid": os.getpid(), **facts}).encode() + b"\n")

    def leave(self, name: str) -> None:
        with open(os.path.join(self.folder, name), "w"):
            pass

    def has(self, name: str) -> bool:
        return os.path.exists(os.path.join(self.folder, name))


class Out:
    """Standard output, written to by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def line(self, frame: object) -> None:
        self.raw(json.dumps(frame, ensure_ascii=False).encode() + b"\n")

    def raw(self, data: bytes) -> None:
        with self._lock:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(1, rest) :]


class Voice:
    """How one engine tells what happens in a turn."""

    def __init__(self, out: Out, notebook: Notebook) -> None:
        self.out, self.notebook = out, notebook
        self.halt = threading.Event()
        self.is_deaf = False
        self._items = 0

    def new_id(self) -> str:
        self._items += 1
        return f"item_{self._items}"

    def wait(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            if self.halt.is_set() and not self.is_deaf:
                raise Interrupted
            time.sleep(POLL_S)

    def message(self, words: list[str], phase: str | None = None) -> None:
        raise NotImplementedError

    def think(self, text: str) -> None:
        raise NotImplementedError

    def command(self, command: str) -> None:
        raise NotImplementedError

    def reconnect(self) -> None:
        raise NotImplementedError

    def approval(self) -> str:
        raise NotImplementedError

    def unknown(self) -> None:
        raise NotImplementedError

    def garble(self) -> None:
        raise NotImplementedError


class AppServerVoice(Voice):
    """Notifications of one thread."""

    def __init__(self, server: AppServer, thread_id: str, turn_id: str) -> None:
        super().__init__(server.out, server.notebook)
        self._server = server
        self._about: Json = {"threadId": thread_id, "turnId": turn_id}

    def notify(self, method: str, **params: object) -> None:
        self.out.line({"method": method, "params": {**self._about, **params}})

    def begin_message(self, words: list[str], phase: str | None) -> Json:
        item = {"type": "agentMessage", "id": self.new_id(), "text": "", "phase": phase}
        self.notify("item/started", item=item)
        for word in words:
            self.notify("item/agentMessage/delta", itemId=item["id"], delta=word)
        return item

    def message(self, words: list[str], phase: str | None = None) -> None:
        item = self.begin_message(words, phase)
        self.notify("item/completed", item={**item, "text": "".join(words)})

    def think(self, text: str) -> None:
        self.notify("item/reasoning/summaryTextDelta", itemId=self.new_id(), delta=text)

    def command(self, command: str) -> None:
        item = {"type": "commandExecution", "id": self.new_id(), "command": command}
        self.notify("item/started", item={**item, "status": "inProgress"})
        result = {"status": "completed", "exitCode": 0, "durationMs": 3, "aggregatedOutput": "out"}
        self.notify("item/completed", item={**item, **result})

    def reconnect(self) -> None:
        self.begin_message(["lost "], None)
        error = {
            "message": "Reconnecting... 1/5",
            "codexErrorInfo": {"responseStreamDisconnected": {}},
        }
        self.notify("error", error=error, willRetry=True)

    def approval(self) -> str:
        self.out.line(
            {"id": 0, "method": "item/commandExecution/requestApproval", "params": self._about}
        )
        answer = self._server.answers.get(timeout=10)
        return str(answer.get("result", {}).get("decision"))

    def unknown(self) -> None:
        self.out.raw(b"this is no frame\n\n[]\n7\n")
        self.out.line({"id": 999_999, "result": {}})
        self.out.line({"method": "nobody/knows"})
        self.notify("item/started", item={"type": "novelty", "id": "n"})
        self.notify("item/completed", item={"type": "novelty", "id": "n"})

    def garble(self) -> None:
        self.notify("item/completed", item={"type": "agentMessage"})

    def usage(self) -> None:
        total = {f"{_camel(name)}Tokens": count for name, count in USAGE.items()}
        self.notify("thread/tokenUsage/updated", tokenUsage={"total": total, "last": total})

    def over(self, status: str, error: Json | None = None) -> None:
        turn = {"id": self._about["turnId"], "items": [], "status": status, "error": error}
        self.notify("turn/completed", turn=turn)


def _camel(name: str) -> str:
    head, _, tail = name.partition("_")
    return head + tail.capitalize()


class ExecVoice(Voice):
    """Lines of one run."""

    def item(self, **fields: object) -> None:
        self.out.line({"type": "item.completed", "item": {"id": self.new_id(), **fields}})

    def message(self, words: list[str], phase: str | None = None) -> None:
        self.item(type="agent_message", text="".join(words))

    def think(self, text: str) -> None:
        self.item(type="reasoning", text=text)

    def command(self, command: str) -> None:
        item = {"id": self.new_id(), "type": "command_execution", "command": command}
        self.out.line({"type": "item.started", "item": {**item, "status": "in_progress"}})
        result = {"status": "completed", "exit_code": 0, "aggregated_output": "out"}
        self.out.line({"type": "item.completed", "item": {**item, **result}})

    def reconnect(self) -> None:
        self.out.line({"type": "error", "message": "Reconnecting... 1/5 (lost)"})

    def unknown(self) -> None:
        self.out.raw(b"\n")
        self.out.line({"type": "nobody.knows"})
        self.item(type="novelty")

    def garble(self) -> None:
        self.item(type="agent_message")


def play(text: str, voice: Voice) -> None:
    """Do what the message says, line by line."""
    for line in text.splitlines():
        verb, _, argument = line.partition(":")
        _do(verb, argument.strip(), line, voice)


def _do(verb: str, argument: str, line: str, voice: Voice) -> None:
    match verb:
        case "say":
            words = argument.split()
            voice.message([*(f"{word} " for word in words[:-1]), *words[-1:]])
        case "remark":
            voice.message([argument], "commentary")
        case "think":
            voice.think(argument)
        case "command":
            voice.command(argument)
        case "chatter":
            _chatter(voice)
        case "hang":
            voice.wait(lambda: False)
        case "deaf":
            voice.is_deaf = True
        case "wait":
            voice.wait(lambda: voice.notebook.has(argument))
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
            voice.wait(lambda: False)
        case "die-first":
            if not voice.notebook.has(argument):
                voice.notebook.leave(argument)
                os.kill(os.getpid(), signal.SIGKILL)
                voice.wait(lambda: False)
        case "die-mid-line":
            voice.out.raw(b'{"type":"item.comp')
            os.kill(os.getpid(), signal.SIGKILL)
            voice.wait(lambda: False)
        case "exit":
            os._exit(int(argument))
        case "fail":
            error = json.loads(argument)
            raise Failure(error["message"], error.get("info"))
        case "grandchild":
            voice.notebook.note(grandchild=os.posix_spawnp("sleep", ["sleep", "600"], os.environ))
        case "long-line":
            voice.message(["x" * int(argument)])
        case "flood-stderr":
            os.write(2, b"noise and more of it\n" * (int(argument) // 21))
        case "replay":
            voice.reconnect()
        case "unknown-frames":
            voice.unknown()
        case "garble":
            voice.garble()
        case "server-request":
            voice.message([voice.approval()])
        case "ignore-term" | "late-turn-start" | "hold-turn-start" | "mute-turn-start":
            pass  # done before the turn began
        case _:
            voice.message([line])


def _chatter(voice: Voice) -> NoReturn:
    began = time.monotonic()
    while True:
        voice.think("still thinking ")
        until = time.monotonic() + POLL_S
        voice.wait(lambda: time.monotonic() > until)  # noqa: B023 - called at once
        if time.monotonic() > began + 60:
            os._exit(3)


def prepare(text: str) -> None:
    """What only the main thread can do before the turn."""
    if "ignore-term" in text.splitlines():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def argument_of(verb: str, text: str) -> str | None:
    for line in text.splitlines():
        name, _, argument = line.partition(":")
        if name == verb:
            return argument.strip()
    return None


class AppServer:
    """`codex app-server --stdio`."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook, self.out = notebook, Out()
        self.answers: SimpleQueue[Json] = SimpleQueue()
        self._overloaded = int(os.environ.get("FAKE_OVERLOADED", "0"))
        self._texts: dict[str, str] = {}
        self._voices: dict[str, AppServerVoice] = {}
        self._count = 0

    def serve(self) -> None:
        for line in sys.stdin.buffer:
            frame = json.loads(line)
            self.notebook.note(got=frame)
            if "method" not in frame:
                self.answers.put(frame)
            elif "id" in frame:
                self._take(frame["id"], frame["method"], frame["params"])
        if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
            threading.Event().wait()
        os._exit(0)

    def answer(self, number: int, result: object) -> None:
        self.out.line({"id": number, "result": result})

    def refuse(self, number: int, code: int, message: str) -> None:
        self.out.line({"id": number, "error": {"code": code, "message": message}})

    def _take(self, number: int, method: str, params: Json) -> None:
        match method:
            case "initialize":
                if not os.environ.get("FAKE_MUTE"):
                    self.answer(number, {"userAgent": f"codexsite/{VERSION} (Fake 1; x) y"})
            case "model/list":
                self.answer(number, {"data": [_listed(model) for model in MODELS]})
            case "account/read":
                account = None if os.environ.get("FAKE_LOGGED_OUT") else {"type": "apiKey"}
                self.answer(number, {"account": account, "requiresOpenaiAuth": True})
            case "thread/start":
                self._start_thread(number, params)
            case "thread/inject_items":
                users = [item for item in params["items"] if item["role"] == "user"]
                self._texts[params["threadId"]] = users[-1]["content"][0]["text"]
                self.answer(number, {})
            case "turn/start":
                self._start_turn(number, params["threadId"])
            case "turn/interrupt":
                self._interrupt(number, params["threadId"])
            case "thread/unsubscribe":
                self.answer(number, {"status": "unsubscribed"})
            case "thread/backgroundTerminals/clean":
                self.answer(number, {})
            case _:
                self.refuse(number, -32600, f"Invalid request: {method}")

    def _start_thread(self, number: int, params: Json) -> None:
        if self._overloaded:
            self._overloaded -= 1
            self.refuse(number, -32001, "Server overloaded; retry later.")
            return
        if params.get("model") == "refused":
            self.refuse(number, -32600, "failed to load configuration of /home/codex/secret")
            return
        self._count += 1
        thread_id = f"thread-{os.getpid()}-{self._count}"
        self._texts[thread_id] = ""
        result = {"thread": {"id": thread_id}, "model": params.get("model") or MODELS[0]}
        if not self.notebook.has("hold-thread-start"):
            self.answer(number, result)
        else:
            held = ("go-thread-start", number, result)
            threading.Thread(target=self._hold, args=held, daemon=True).start()

    def _hold(self, name: str, number: int, result: object) -> None:
        while not self.notebook.has(name):
            time.sleep(POLL_S)
        self.answer(number, result)

    def _start_turn(self, number: int, thread_id: str) -> None:
        text = self._texts[thread_id]
        prepare(text)
        voice = self._voices[thread_id] = AppServerVoice(self, thread_id, f"turn-{number}")
        threading.Thread(target=self._turn, args=(number, text, voice), daemon=True).start()

    def _turn(self, number: int, text: str, voice: AppServerVoice) -> None:
        started: Json = {"id": f"turn-{number}", "items": [], "status": "inProgress", "error": None}
        lines = text.splitlines()
        is_late = "late-turn-start" in lines
        if held := argument_of("hold-turn-start", text):
            self._hold(held, number, {"turn": started})
        elif not is_late and "mute-turn-start" not in lines:
            self.answer(number, {"turn": started})
        voice.notify("turn/started", turn=started)
        try:
            play(text, voice)
        except Interrupted:
            voice.over("interrupted")
        except Failure as failure:
            error = {"message": failure.message, "codexErrorInfo": failure.info}
            voice.notify("error", error=error, willRetry=False)
            voice.over("failed", error)
        else:
            voice.usage()
            voice.over("completed")
        if is_late:
            self.answer(number, {"turn": started})

    def _interrupt(self, number: int, thread_id: str) -> None:
        voice = self._voices.get(thread_id)
        if voice is None:
            self.refuse(number, -32600, "no active turn to interrupt")
            return
        voice.halt.set()
        if not voice.is_deaf:
            self.answer(number, {})


def _listed(model: str) -> Json:
    return {
        "model": model,
        "displayName": model.title(),
        "supportedReasoningEfforts": [{"reasoningEffort": "low"}, {"reasoningEffort": "high"}],
        "isDefault": model == MODELS[0],
    }


def execute(notebook: Notebook, argv: list[str]) -> int:
    """`codex exec --json … -`."""
    out = Out()
    prompt = sys.stdin.read()
    notebook.note(prompt=prompt, instructions=_instructions(argv))
    os.write(2, b"Reading additional input from stdin...\n")
    if not prompt.strip():
        os.write(2, b"No prompt provided via stdin.\n")
        return 1
    text = _last_user(prompt)
    prepare(text)
    voice = ExecVoice(out, notebook)
    if "mute-turn-start" not in text.splitlines():
        out.line({"type": "thread.started", "thread_id": "t"})
        out.line({"type": "turn.started"})
    try:
        play(text, voice)
    except Failure as failure:
        out.line({"type": "error", "message": failure.message})
        out.line({"type": "turn.failed", "error": {"message": failure.message}})
        return 1
    usage = {f"{name}_tokens": count for name, count in USAGE.items()}
    out.line({"type": "turn.completed", "usage": usage})
    return 0


def _last_user(prompt: str) -> str:
    head, found, listing = prompt.partition(PREAMBLE_END)
    if not found or not head.startswith("Below is a conversation"):
        return prompt
    users = [message for message in json.loads(listing) if message["role"] == "user"]
    return str(users[-1]["content"])


def _instructions(argv: list[str]) -> str | None:
    for argument in argv:
        key, _, value = argument.partition("=")
        if key == "model_instructions_file":
            with open(json.loads(value), encoding="utf-8") as file:
                return file.read()
        if key == "developer_instructions":
            return str(json.loads(value))
    return None


def catalogue() -> Json:
    """`codex debug models --bundled`."""
    model = {"tool_mode": "code", "multi_agent_version": 2, "experimental_supported_tools": ["x"]}
    return {
        "models": [{"slug": slug, "apply_patch_tool_type": "freeform", **model} for slug in MODELS]
    }


def main(folder: str, argv: list[str]) -> int:
    notebook = Notebook(folder)
    notebook.note(start=argv, cwd=os.getcwd(), environment=dict(os.environ))
    if notebook.has("refuse"):
        os.write(2, b"Error: CODEX_HOME points to a path that does not exist\n")
        return 1
    if argv[:1] == ["app-server"]:
        AppServer(notebook).serve()
        return 0
    if argv[:1] == ["exec"]:
        return execute(notebook, argv)
    if argv == ["debug", "models", "--bundled"] and not os.environ.get("FAKE_NO_CATALOGUE"):
        Out().line(catalogue())
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
