"""What OpenAI's clients send and expect, field by field, as pydantic models.

Strict: a numeric string is no number. Unknown fields are accepted, as clients send many; null is
absent. `asked` decides what becomes of each.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from proxy.openapi import Described


def _must_be_text(value: object) -> object:
    """Say that a type is wrong before its value is found to be none of the choices."""
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    return value


ChoiceOfText = BeforeValidator(_must_be_text)


class _Lenient(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class ImageUrl(_Lenient):
    url: str = Field(description="A data URL; an https URL where the server may fetch images.")
    detail: Annotated[Any, Described(Literal["auto", "low", "high", "original"] | None)] = None


class ContentPart(_Lenient):
    type: str = Field(description="`text`, `image_url` (user) or `refusal` (assistant).")
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None


class CalledFunction(_Lenient):
    name: str
    arguments: str


class ToolCallOfHistory(_Lenient):
    id: Annotated[str, Field(min_length=1)]
    type: str | None = None
    function: CalledFunction | None = None


class ChatMessage(_Lenient):
    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool", "function"], ChoiceOfText
    ]
    content: str | list[ContentPart] | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: list[ToolCallOfHistory] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None


class FunctionDefinition(_Lenient):
    """A function that the model may call, described to it by a JSON schema."""

    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(_Lenient):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(_Lenient):
    name: str


class NamedTool(_Lenient):
    """The one function that must be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(_Lenient):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class AllowedToolsChoice(_Lenient):
    """The functions that this answer may call, or must call one of."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class TextFormat(_Lenient):
    type: Literal["text"]


class JsonObjectFormat(_Lenient):
    type: Literal["json_object"]


class AnswerSchema(_Lenient):
    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaFormat(_Lenient):
    type: Literal["json_schema"]
    json_schema: AnswerSchema


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice
ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat
StopTexts = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]


class StreamOptions(_Lenient):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Penalty = Annotated[float, Field(ge=-2, le=2)]
AtLeastOne = Annotated[int, Field(ge=1)]


class ChatCompletionRequest(_Lenient):
    """The body of POST /v1/chat/completions: every field of OpenAI's reference.

    What becomes of each stands in the README's table, which a test holds against this class.
    """

    model: str = Field(description="A model of GET /v1/models, or `default`.")
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, Any] | None = Field(
        None,
        description='`cwd`: a folder or a root\'s alias to work in. `agent`: "true" asks for agent mode. '
        '`show_actions`: "true" shows what the agent does, in extra fields of the answer.',
    )
    n: AtLeastOne | None = None
    stop: Annotated[str | list[str] | None, Described(str | StopTexts | None)] = None
    max_tokens: AtLeastOne | None = None
    max_completion_tokens: AtLeastOne | None = None
    tools: list[Annotated[Any, Described(FunctionTool)]] | None = None
    tool_choice: Annotated[str | dict[str, Any] | None, Described(ToolChoice | None)] = None
    parallel_tool_calls: bool | None = None
    functions: list[Annotated[Any, Described(FunctionDefinition)]] | None = None
    function_call: Annotated[
        str | dict[str, Any] | None, Described(Literal["none", "auto"] | FunctionName | None)
    ] = None
    response_format: Annotated[dict[str, Any] | None, Described(ResponseFormat | None)] = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    verbosity: Annotated[Literal["low", "medium", "high"], ChoiceOfText] | None = None
    service_tier: (
        Annotated[Literal["auto", "default", "flex", "scale", "priority", "fast"], ChoiceOfText]
        | None
    ) = None
    modalities: Annotated[
        list[str] | None,
        Described(Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None),
    ] = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # Hints: checked, not carried out, and named in x-ignored-params.
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = None
    user: str | None = None
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    store: bool | None = None
    prediction: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None


HINTS = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "store",
    "prediction",
    "moderation",
)
"""Fields that Codex has no way to carry out, and whose loss changes no answer's meaning."""


class CompletionRequest(_Lenient):
    """The body of the legacy POST /v1/completions, with one prompt."""

    model: str = Field(description="A model of GET /v1/models, or `default`.")
    prompt: str | list[str]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, Any] | None = None
    n: AtLeastOne | None = None
    stop: Annotated[str | list[str] | None, Described(str | StopTexts | None)] = None
    max_tokens: AtLeastOne | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = None
    user: str | None = None


class PromptTokensDetails(BaseModel):
    cached_tokens: int
    audio_tokens: int


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class CalledTool(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    annotations: list[Any]
    reasoning_content: str | None = None
    tool_calls: list[CalledTool] | None = None
    function_call: CalledFunction | None = None


class CodexAction(BaseModel):
    """One action of an agent, or a remark of the model on the way (`commentary`, with `text`).

    Shown only with `metadata.show_actions`. An action that lasts comes twice in a stream, under one
    `number`: as `running`, and whole. What is not known is left out.
    """

    type: Literal[
        "command", "input", "patch", "shell_change", "web_search", "mcp_call",
        "escalation_refused", "command_refused", "patch_refused", "comparison", "commentary",
    ]  # fmt: skip
    choice: int
    number: int | None = None
    status: Literal["running", "completed", "failed", "refused", "unfinished"] | None = None
    text: str | None = None
    command: str | None = None
    change: Literal["add", "update", "delete", "move"] | None = None
    path: str | None = None
    moved_to: str | None = None
    exit_code: int | None = None
    duration_ms: int | None = None
    lines_added: int | None = None
    lines_removed: int | None = None
    output_bytes: int | None = None
    output_sha256: str | None = None
    output_head: str | None = None
    output_tail: str | None = None
    diff: str | None = None
    note: str | None = None


class Choice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call", "content_filter"]


class ChatCompletion(BaseModel):
    """The answer of POST /v1/chat/completions without `stream`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    service_tier: str
    system_fingerprint: str | None
    choices: list[Choice]
    usage: CompletionUsage | None
    actions: list[CodexAction] | None = None


class CalledFunctionDelta(BaseModel):
    name: str | None = None
    arguments: str


class CalledToolDelta(BaseModel):
    """A piece of a call; its id, type and name come in its first piece only."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionDelta


class MessageDelta(BaseModel):
    """What a chunk adds; the role comes in the first chunk of a choice only."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CalledToolDelta] | None = None
    function_call: CalledFunction | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: MessageDelta
    logprobs: None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call", "content_filter"] | None


class ChatCompletionChunk(BaseModel):
    """One event of a stream. With `include_usage` the last one has the usage and no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    service_tier: str
    system_fingerprint: str | None
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    codex_action: CodexAction | None = None


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length", "content_filter"] | None


class TextCompletion(BaseModel):
    """The answer of the legacy POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: CompletionUsage | None = None
    actions: list[CodexAction] | None = None
    codex_action: CodexAction | None = None


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """Every answer of the API that is not a success."""

    error: ErrorBody


class Health(BaseModel):
    status: Literal["ok"]
    version: str


class Check(BaseModel):
    """One thing that a completion needs; `note` tells of one that nobody needs now."""

    ok: bool
    reason: str | None
    note: str | None = None


class Readiness(BaseModel):
    """Whether a completion would be answered, and the reason for each check that fails."""

    status: Literal["ready", "not_ready"]
    demo: bool
    checks: dict[str, Check]
    notice: str | None = None


class Waiting(BaseModel):
    """A turn that waits. The first to be served by its engine has position 1."""

    request_id: str
    engine: str
    position: int
    waited_seconds: float


class Queue(BaseModel):
    """The turns of this process that wait, in order, and how many run and may run."""

    queued: int
    running: int
    capacity: int
    longest_wait_seconds: float
    waiting: list[Waiting]


class Metrics(BaseModel):
    """Counters of all processes and gauges of this one."""

    model_config = ConfigDict(extra="allow")

    requests_total: int
    requests_ok: int
    requests_error: int
    errors_by_status: dict[str, int]
    requests_by_outcome: dict[str, int]
    in_flight: int
    tokens: dict[str, int]
    engine: str
    uptime_seconds: float
    tasks: int
    """Of asyncio, in this process: one that never ends shows here."""
    app_server_pool_started: bool
    queue: Queue
