"""The use case: from a parsed request to a running turn, and from its events to an answer.

    authenticate -> workspace -> grant -> model -> on record -> turn -> first event -> answer

The status is decided before the first byte: a refused, queued-out or failed turn raises here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from proxy import policy
from proxy.dbthreads import read
from proxy.engines.base import (
    AnswerRestarted,
    Completed,
    Event,
    Failed,
    Message,
    MessageDone,
    TextDelta,
    Turn,
    TurnStarted,
    Usage,
    UsageReported,
)
from proxy.engines.running import RunningTurn
from proxy.errors import (
    AnswerIncomplete,
    EngineError,
    InternalError,
    InvalidRequest,
    ServerUnavailable,
    TurnFailed,
    UnsupportedParameter,
)
from proxy.gateway import RequestContext
from proxy.runtime import Runtime
from proxy.schemas import ChatCompletionRequest, ChatMessage
from proxy.sse import DONE, KEEPALIVE, ChunkWriter, frame

log = logging.getLogger(__name__)

HEAD_HOLD_S = 1.5
"""How long a stream's status waits for the model's first event once Codex has taken the turn."""
KEEPALIVE_S = 10.0

CHANGES_THE_ANSWER: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "stop": ([],),
    "logprobs": (False,),
    "audio": (),
    "web_search_options": (),
}
"""Fields whose silent loss would mislead the caller; not honoured yet, so refused.

With each go the values that ask for nothing.
"""
ONLY_VALUE: dict[str, object] = {"n": 1, "modalities": ["text"]}


# --- What was asked ---------------------------------------------------------------------------


def refuse_unsupported(request: ChatCompletionRequest) -> None:
    """Raise `UnsupportedParameter` for a field that would change the answer and is not honoured."""
    extra = {
        name: value for name, value in (request.model_extra or {}).items() if value is not None
    }
    for name, neutral in CHANGES_THE_ANSWER.items():
        if name in extra and extra[name] not in neutral:
            raise UnsupportedParameter(f"Unsupported parameter: '{name}'.", param=name)
    for name, value in ONLY_VALUE.items():
        if extra.get(name, value) != value:
            raise UnsupportedParameter(
                f"Unsupported value: '{name}' must be {value}.",
                param=name,
                code="unsupported_value",
            )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )


def conversation_of(messages: list[ChatMessage]) -> tuple[Message, ...]:
    """Return the messages with their roles. Raises `InvalidRequest` naming the part at fault."""
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _message(message: ChatMessage, where: str) -> Message:
    calls = message.tool_calls or (message.model_extra or {}).get("function_call")
    if message.role == "tool" or message.role == "function" or calls:
        raise UnsupportedParameter(f"Tool calls are not supported: {where}.", param=where)
    text = _text(message, where)
    if message.role == "assistant" and not text:
        text = message.refusal or ""
    elif message.content is None:
        raise InvalidRequest(
            f"Invalid value for '{where}.content': expected a string or an array of parts, got null.",
            param=f"{where}.content",
            code="invalid_type",
        )
    return Message(message.role, text)


def _text(message: ChatMessage, where: str) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    if not message.content:
        raise InvalidRequest(
            f"Invalid '{where}.content': empty array.", param=f"{where}.content", code="empty_array"
        )
    texts = []
    for index, part in enumerate(message.content):
        place = f"{where}.content[{index}]"
        if part.type != "text":
            raise UnsupportedParameter(
                f"Content parts of type '{part.type}' are not supported: {place}.", param=place
            )
        if part.text is None:
            raise InvalidRequest(
                f"Missing required parameter: '{place}.text'.",
                param=f"{place}.text",
                code="missing_required_parameter",
            )
        texts.append(part.text)
    return "\n".join(texts)


@dataclass(frozen=True, slots=True)
class Wish:
    """What `metadata` asks of the policy; None leaves it to the key."""

    cwd: str | None
    agent: bool | None


def wish_of(metadata: dict[str, Any] | None) -> Wish:
    """Return the parts of `metadata` that mean something here. Raises `InvalidRequest`."""
    metadata = metadata or {}
    cwd, agent = metadata.get("cwd"), metadata.get("agent")
    if cwd is not None and not isinstance(cwd, str):
        raise InvalidRequest(
            "Invalid type for 'metadata.cwd': expected a string.",
            param="metadata.cwd",
            code="invalid_type",
        )
    if agent is not None and str(agent).lower() not in ("true", "false"):
        raise InvalidRequest(
            'Invalid value for \'metadata.agent\': expected "true" or "false".',
            param="metadata.agent",
        )
    return Wish(cwd, None if agent is None else str(agent).lower() == "true")


# --- From the request to a running turn -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asker:
    """The authenticated caller, with the options in force for this request."""

    caller: policy.Caller
    options: policy.Options


async def begin(
    runtime: Runtime, context: RequestContext, asker: Asker, request: ChatCompletionRequest
) -> RunningTurn:
    """Check the policy, put the request on record, start its turn, and return it.

    The turn belongs to the request's stack, which ends it whatever happens. Raises any `ProxyError`
    that the policy or the record gives; those of the engine come as events.
    """
    caller, options = asker.caller, asker.options
    deadline = asyncio.get_running_loop().time() + options.timeout_seconds
    record = context.record
    refuse_unsupported(request)
    messages, wish = conversation_of(request.messages), wish_of(request.metadata)
    wants_agent = caller.asks_for_agent or options.agent if wish.agent is None else wish.agent
    kind = caller.engine or options.engine
    record.note(engine=kind, agent_mode=wants_agent)

    workspace = await read(policy.resolve_workspace, caller, wish.cwd)
    record.note(cwd=workspace.path, root_alias=workspace.root.alias)
    sandbox = "read-only"
    if wants_agent:
        grant = await read(policy.find_grant, caller, workspace)
        record.note(grant_id=grant.pk)
        sandbox = "workspace-write"
    record.note(sandbox=sandbox)
    place = context.stack.enter_context(ExitStack())
    place.enter_context(runtime.place_of(caller))
    # Free before the last byte: the client's next request must not meet this one's clean-up.
    context.before_close.append(place.close)
    inspection = await runtime.usable(kind, options)
    model = policy.resolve_model(request.model, caller, options, inspection)
    context.laps.lap("policy")
    _put_on_record(context)

    turn = Turn(
        request_id=str(record.request_id),
        messages=messages,
        cwd=workspace.path,
        deadline=deadline,
        sandbox="workspace-write" if wants_agent else "read-only",
        model=model,
        effort=request.reasoning_effort,
    )
    running = runtime.run(kind, options, turn)
    context.before_close.append(lambda: _note_turn(context, running))
    context.stack.push_async_callback(running.aclose)
    return running


def _put_on_record(context: RequestContext) -> None:
    """No record, no turn: a request that could be lost from the log is not run."""
    try:
        context.record.save()
    except OSError as error:
        raise ServerUnavailable("The server cannot write its audit log now.") from error


def _note_turn(context: RequestContext, running: RunningTurn) -> None:
    """Copy what the turn knows of itself into the record."""
    before = context.laps.ms
    first_delta_ms = None
    if "first_delta" in running.laps.ms:
        until = list(running.laps.ms).index("first_delta") + 1
        first_delta_ms = sum(before.values()) + sum(list(running.laps.ms.values())[:until])
    context.laps.lap("response")
    whole = before.pop("response")
    engine_ms = running.engine_ms or running.laps.since_start_ms()
    before.update(running.laps.ms)
    before["response"] = round(max(whole - engine_ms, 0.0), 3)
    usage = running.usage
    context.record.note(
        worker=running.worker,
        codex_version=running.codex_version,
        model_served=running.served_model,
        first_delta_ms=first_delta_ms,
        engine_ms=engine_ms,
        input_tokens=usage.input_tokens if usage else None,
        cached_input_tokens=usage.cached_input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        reasoning_output_tokens=usage.reasoning_output_tokens if usage else None,
    )


# --- From events to an answer -----------------------------------------------------------------

NO_TEXT = "The model gave no text: it refused, or its answer was withheld."


@dataclass(slots=True)
class Answer:
    """What a turn has said so far, and how it ended."""

    text: str = ""
    finish_reason: str = "stop"
    refusal: str | None = None
    settled: int = 0
    """How much of the text belongs to whole messages, which no restart takes back."""

    @property
    def is_mid_message(self) -> bool:
        return len(self.text) > self.settled

    def take(self, event: Event) -> str:
        """Take one event; return the text that it adds. Raises the error of a failed turn.

        An answer that the provider cut short is an answer; one without any text is a refusal.
        """
        match event:
            case TextDelta(text):
                self.text += text
                return text
            case MessageDone(is_commentary=False):
                self.settled = len(self.text)
            case AnswerRestarted():
                self.text = self.text[: self.settled]
            case Failed(AnswerIncomplete() as incomplete) if self.text:
                self.finish_reason = incomplete.finish_reason
            case Failed(error):
                raise error
            case Completed() if not self.text:
                self.finish_reason, self.refusal = "content_filter", NO_TEXT
        return ""


async def head_of(running: RunningTurn) -> list[Event]:
    """Return the first events of a turn that has really begun.

    Waits until Codex has taken the turn, and then a moment for its first event, so that most
    failures still get a status of their own. Raises the error of a turn that failed by then.
    """
    events: list[Event] = []
    hold: float | None = None
    while True:
        event = await running.next_event(hold)
        if event is None:
            return events
        if isinstance(event, Failed):
            raise event.error
        events.append(event)
        if not isinstance(event, TurnStarted | UsageReported):
            return events
        hold = HEAD_HOLD_S


async def whole_answer(running: RunningTurn) -> Answer:
    """Wait for the turn's end and return its answer. Raises the error of a failed turn."""
    answer = Answer()
    async for event in running:
        answer.take(event)
    return answer


async def stream_answer(
    running: RunningTurn,
    head: list[Event],
    context: RequestContext,
    *,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """Yield the events of a stream: chunks, keepalives while the model thinks, one end.

    A failure after the first byte is one error object; text that Codex would say twice after a
    reconnect is such a failure. The record is closed before the end is sent.
    """
    writer = ChunkWriter(
        completion_id=completion_id(context),
        created=int(time.time()),
        model=running.served_model,
        include_usage=include_usage,
    )
    clock = asyncio.get_running_loop().time
    answer = Answer()
    pending: list[Event] = list(head)
    try:
        yield writer.role()
        sent_at = clock()
        while True:
            # Counted from the last byte: a model that reasons aloud has events, and sends nothing.
            quiet_s = max(sent_at + KEEPALIVE_S - clock(), 0.0)
            event = pending.pop(0) if pending else await running.next_event(quiet_s)
            if event is None:
                yield KEEPALIVE
                sent_at = clock()
                continue
            if isinstance(event, AnswerRestarted) and answer.is_mid_message:
                raise TurnFailed(
                    "The model provider's answer broke off before its end.",
                    code="upstream_disconnected",
                )
            if text := answer.take(event):
                yield writer.text(text)
                sent_at = clock()
            if isinstance(event, Completed | Failed):
                break
        if answer.refusal:
            yield writer.refusal(answer.refusal)
        yield writer.finish(answer.finish_reason)
        if last_chunk := writer.usage(usage_body(running.usage)):
            yield last_chunk
    except EngineError as error:
        context.error = error
    except Exception:
        # The last place that can still tell the client.
        log.exception("the stream of request %s failed", context.record.request_id)
        context.error = InternalError("The server failed; its log has the details.")
    context.finish()
    yield frame(context.error.envelope()) if context.error else DONE


def completion_id(context: RequestContext) -> str:
    return f"chatcmpl-{context.record.request_id.hex}"


def usage_body(usage: Usage | None) -> dict[str, Any] | None:
    """Return usage in OpenAI's words; None where the provider did not say."""
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_output_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
