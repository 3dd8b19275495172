"""What every engine takes and gives: a `Turn` in, typed events out, one protocol.

API, audit and admin know this module only, so that none of them can tell which engine ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from proxy.engines.confinement import Confinement
    from proxy.engines.running import RunningTurn
    from proxy.errors import EngineError

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Text:
    """A part of a message that is text."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A part of a message that is an image, as a data URL that has been checked."""

    url: str


Part = Text | Image


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model asks the caller to run one of its tools; `arguments` is JSON text, verbatim."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation, with the role that the caller gave it.

    An assistant's message may carry the tool calls that it made; one of the role `tool` answers the
    call of the id `tool_call_id`.
    """

    role: Role
    content: str | tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Text(self.content),) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The text of all its parts."""
        return "\n".join(part.text for part in self.parts if isinstance(part, Text))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the caller's that the model may ask for; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """What to ask, where, and under which policy.

    `deadline` is absolute, in seconds of the event loop's clock (`loop.time()`, monotonic); it
    covers queue, start and answer. `cwd` is a real path that the policy has checked. The confinement
    decides the mode: without one it is a chat turn, which has no environment; with one an agent
    turn, whose commands reach what it says. `model` is a name of Codex's catalogue; None leaves the choice to Codex. `tools` are the
    caller's own: a turn ends as completed when the model asks for some of them. `output_schema`
    constrains the answer, in OpenAI's strict form. `key` says whose turn it is, opaquely: the queue
    is fair between keys, and at most `max_queued` turns of one key wait in it. None of the rest
    means Codex's own choice.
    """

    request_id: str
    messages: tuple[Message, ...]
    cwd: str
    deadline: float
    confinement: Confinement | None = None
    model: str | None = None
    effort: str | None = None
    tools: tuple[Tool, ...] = ()
    output_schema: Mapping[str, Any] | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    wants_reasoning: bool = False
    key: str = ""
    max_queued: int | None = None

    @property
    def is_agent(self) -> bool:
        return self.confinement is not None

    @property
    def sandbox(self) -> str:
        """What holds the turn, in the audit row's words."""
        return self.confinement.name if self.confinement else "read-only"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one turn. Cached is part of input, reasoning part of output."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_output_tokens: int


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """Codex has accepted the turn; from here on it may cost money."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer, in order. An engine without deltas gives the whole text at once."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the model's reasoning summary; never part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class MessageDone:
    """One whole message of the model. Commentary is a remark on the way, not the answer."""

    text: str
    is_commentary: bool = False


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The model asks for a tool of the caller's; several come in the model's order."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class AnswerRestarted:
    """Codex reconnected and asks again: the text since the last `MessageDone` is void."""


@dataclass(frozen=True, slots=True)
class CommandStarted:
    """The agent runs a command; `cwd` is empty where the engine does not say."""

    item_id: str
    command: str
    cwd: str = ""


@dataclass(frozen=True, slots=True)
class CommandInput:
    """The agent typed into a command that runs: it may be a shell, so this is an action too."""

    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class CommandFinished:
    """The agent's command ended; `exit_code` is None where it was refused or killed."""

    item_id: str
    command: str
    status: str
    exit_code: int | None
    duration_ms: int | None
    output: str
    cwd: str = ""


@dataclass(frozen=True, slots=True)
class FileChange:
    """The agent's patch touched a file; `kind` is add, update, delete or move (to `moved_to`).

    `diff` is a unified one, without file names; None where the engine does not show it.
    """

    path: str
    kind: str
    diff: str | None = None
    moved_to: str = ""
    status: str = "completed"


@dataclass(frozen=True, slots=True)
class WebSearched:
    """The agent searched the web, or opened a page there."""

    query: str


@dataclass(frozen=True, slots=True)
class McpCalled:
    """The agent called a tool of an MCP server; `arguments` is JSON, `output` its answer or error."""

    server: str
    tool: str
    arguments: str
    status: str
    duration_ms: int | None
    output: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Codex did not do what the model asked for: `what` is escalation, command or patch.

    `asked` is the command or the patch, `reason` what the model was told.
    """

    what: str
    asked: str
    reason: str
    cwd: str = ""


@dataclass(frozen=True, slots=True)
class ActionRecorded:
    """An action of the agent's is on record as these columns; again when more is known of it."""

    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class UsageReported:
    """What the turn has cost so far; a later report replaces an earlier one."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Completed:
    """The one end of a turn that went well."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The one end of a turn that did not."""

    error: EngineError


Event = (
    TurnStarted
    | TextDelta
    | ReasoningDelta
    | MessageDone
    | ToolCalled
    | AnswerRestarted
    | CommandStarted
    | CommandInput
    | CommandFinished
    | FileChange
    | WebSearched
    | McpCalled
    | Refused
    | ActionRecorded
    | UsageReported
    | Completed
    | Failed
)


@dataclass(frozen=True, slots=True)
class Model:
    """One entry of Codex's catalogue."""

    id: str
    display_name: str
    efforts: tuple[str, ...]
    is_default: bool
    service_tiers: tuple[str, ...] = ()
    takes_images: bool = True


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a started Codex says of itself.

    `account` is None where nobody is logged in, else its kind (`apiKey`, `chatgpt`, ...);
    `needs_login` is False with a model provider of one's own. `is_lean` is False where no lean
    catalogue could be derived from this codex, so that its prompts are larger.
    """

    codex_version: str
    models: tuple[Model, ...]
    account: str | None
    needs_login: bool
    is_lean: bool = True

    @property
    def can_ask(self) -> bool:
        return self.account is not None or not self.needs_login


@dataclass(frozen=True, slots=True)
class User:
    """An account of this machine that children run as; its groups beside `gid` are dropped."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything an engine is built from; another value means another engine.

    `overrides` are `key=value` pairs in Codex's `-c` syntax. `environment` is the whole
    environment of the children: nothing of the server's own reaches them unless listed there.
    `login_id` changes when another account logs in, so that workers are replaced then. A worker
    above `worker_max_mb` of resident memory, or older than `worker_max_age_s`, is replaced behind
    its turns; it keeps up to `spare_threads` threads open ahead of need. Without `is_lean` Codex
    keeps its own catalogue of models. `user` is whom the children run as; None is the server's own.
    """

    codex_bin: str
    codex_home: str
    scratch_dir: str
    environment: Mapping[str, str]
    overrides: tuple[str, ...] = ()
    ephemeral: bool = True
    workers: int = 1
    turns_per_worker: int = 100
    worker_max_mb: int = 1024
    worker_max_age_s: float = 86_400.0
    spare_threads: int = 4
    is_lean: bool = True
    max_concurrency: int = 4
    max_queue_size: int = 64
    queue_timeout_s: float = 30.0
    login_id: str = field(default="", compare=True)
    user: User | None = None


class Engine(Protocol):
    """Runs turns. Owned by one event loop, closed by whoever opened it.

    The promises, tested on every engine by one suite (`tests/contract/engines`): deltas come in
    order; a turn has exactly one end and nothing after it; its deadline is absolute; closing it
    stops it and leaves no process; a failure is an `EngineError`; usage is what Codex reported.
    """

    name: str

    def run(self, turn: Turn) -> RunningTurn:
        """Start the turn and return at once; every failure arrives as its `Failed` event.

        The caller owns the result and must `aclose()` it, whatever happened.
        """
        ...

    async def inspect(self) -> Inspection:
        """Return version, catalogue and login of a started Codex.

        Raises `EngineUnavailable` where it cannot start. Safe to cancel.
        """
        ...

    async def aclose(self) -> None:
        """Fail the running turns, end every child, and wait for that, each wait bounded."""
        ...
