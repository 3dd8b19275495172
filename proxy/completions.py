"""The use case: from what was asked to running turns, and from their events to an answer.

    authenticate -> workspace -> grant -> model -> on record -> turns -> first event -> answer

The status is decided before the first byte: a refused, queued-out or failed turn raises here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from audit.recorder import Record
from proxy import policy
from proxy.answers import Answer, total_usage, usage_body
from proxy.asked import Asked, check_effort, check_images, tier_to_send
from proxy.checked import run_checked
from proxy.confining import Enclosure, enclose
from proxy.dbthreads import read
from proxy.engines.base import (
    AnswerRestarted,
    Completed,
    Event,
    Failed,
    Inspection,
    Message,
    MessageDone,
    TextDelta,
    ToolCalled,
    Turn,
    TurnStarted,
    UsageReported,
)
from proxy.engines.failures import broken_off
from proxy.engines.running import RunningTurn
from proxy.errors import (
    AnswerIncomplete,
    EngineError,
    EngineTimeout,
    InternalError,
    ServerUnavailable,
    UnsupportedParameter,
)
from proxy.feed import Feed, Reader
from proxy.gateway import RequestContext
from proxy.joining import RETRY_GRACE_S, RetryMark, Running
from proxy.models import AgentGrant
from proxy.runtime import Runtime
from proxy.sandboxing import runs_as_root
from proxy.sse import DONE, KEEPALIVE, ChunkWriter, frame
from proxy.trail import Kept, Trail, shown

log = logging.getLogger(__name__)

HEAD_HOLD_S = 1.5
"""How long a stream's status waits for the model's first event once Codex has taken the turn."""
KEEPALIVE_S = 10.0

MAX_NOTED_PARAMS = 500


@dataclass(frozen=True, slots=True)
class Asker:
    """The authenticated caller, with the options in force for this request."""

    caller: policy.Caller
    options: policy.Options


@dataclass(slots=True)
class Exchange:
    """A request whose turns run: what was asked, and where their events are read."""

    asked: Asked
    context: RequestContext
    reader: Reader
    service_tier: str
    is_checked: bool
    shows_reasoning: bool
    actions: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    """What the client asked to see of the agent, by (choice, place); the last word on each."""

    @property
    def turns(self) -> list[RunningTurn]:
        return self.reader.feed.turns

    @property
    def completion_id(self) -> str:
        """The audit row's id, with OpenAI's beginning for the kind of answer."""
        kind = "chatcmpl" if "/chat/" in self.context.record.fields["endpoint"] else "cmpl"
        return f"{kind}-{self.context.record.request_id.hex}"

    @property
    def served_model(self) -> str:
        return self.turns[0].served_model

    def new_answers(self) -> list[Answer]:
        return [
            Answer(self.asked, is_checked=self.is_checked, shows_reasoning=self.shows_reasoning)
            for _ in self.turns
        ]

    def usage(self) -> dict[str, Any] | None:
        return usage_body(total_usage([turn.usage for turn in self.turns]))


# --- From the request to running turns --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Terms:
    """What the policy gives this request; a retry joins only one that runs under the same."""

    engine: str
    cwd: str
    grant_id: int | None
    enclosure: Enclosure | None
    model: str
    service_tier: str | None
    root: str


async def begin(
    runtime: Runtime, context: RequestContext, asker: Asker, asked: Asked, mark: RetryMark
) -> Exchange:
    """Check the policy, put the request on record, start its turns, and return both.

    The turns belong to the request's stack, which ends them whatever happens. A retry of a request
    that still runs reads that one's turns instead. Raises any `ProxyError` that the policy or the
    record gives; those of the engine come as events.
    """
    caller, options, record = asker.caller, asker.options, context.record
    deadline = asyncio.get_running_loop().time() + options.timeout_seconds
    record.note(asked=asked.summary(), ignored_params=",".join(asked.ignored)[:MAX_NOTED_PARAMS])
    entry = context.stack.enter_context(runtime.board.entry(record))
    terms = await _admit(runtime, context, asker, asked, deadline)
    entry.refuse_when_killed()
    joined = runtime.joins.find(caller, mark, terms)
    if joined is not None:
        record.note(joined_to=joined.request_id)
    context.laps.lap("policy")
    if joined is not None:
        _put_on_record(context)
        feed = joined.feed
    else:
        feed = _start(runtime, context, asker, asked, terms, deadline)
        runtime.joins.add(caller, mark, Running(record.request_id, mark, terms, feed))
    entry.run(feed)
    reader = feed.join()
    exchange = Exchange(
        asked=asked,
        context=context,
        reader=reader,
        service_tier=terms.service_tier or "default",
        is_checked=_must_check(asked),
        shows_reasoning=options.reasoning,
    )
    is_ours = joined is None
    context.before_close.append(lambda: _note_turns(exchange, is_ours=is_ours))
    context.stack.push_async_callback(_leave, reader, context, mark)
    return exchange


async def _admit(
    runtime: Runtime, context: RequestContext, asker: Asker, asked: Asked, deadline: float
) -> Terms:
    """Return what this request may do, noting each answer of the policy as it is found."""
    caller, options, record = asker.caller, asker.options, context.record
    _refuse_ignored_where_strict(caller, asked)
    wants_agent = _wants_agent(asker, asked)
    kind = _engine_for(asker, asked, wants_agent=wants_agent)
    record.note(engine=kind, agent_mode=wants_agent)
    workspace = await read(policy.resolve_workspace, caller, asked.wish.cwd)
    record.note(cwd=workspace.path, root_alias=workspace.root.alias)
    grant = await read(_grant_for, caller, workspace, record) if wants_agent else None
    if grant is None:
        record.note(sandbox="read-only")
    inspection = await _usable_in_time(runtime, kind, options, deadline)
    model = policy.resolve_model(asked.model, caller, options, inspection)
    entry = next((known for known in inspection.models if known.id == model), None)
    check_effort(asked, entry)
    check_images(asked, entry)
    enclosure = None
    if grant is not None:
        version = inspection.codex_version
        enclosure = await _enclose(runtime, context, asker, workspace, grant, version)
    return Terms(
        engine=kind,
        cwd=workspace.path,
        grant_id=grant.pk if grant else None,
        enclosure=enclosure,
        model=model,
        service_tier=tier_to_send(asked, entry),
        root=workspace.root_path,
    )


async def _usable_in_time(
    runtime: Runtime, kind: str, options: policy.Options, deadline: float
) -> Inspection:
    """Return what Codex says of itself; `EngineTimeout` where it has not started by the deadline."""
    try:
        async with asyncio.timeout_at(deadline):
            return await runtime.usable(kind, options)
    except TimeoutError as error:
        raise EngineTimeout("Codex did not start before the request's deadline.") from error


def _grant_for(caller: policy.Caller, workspace: policy.Workspace, record: Record) -> AgentGrant:
    grant = policy.find_grant(caller, workspace)
    record.note(grant_id=grant.pk, grant_reason=grant.reason, level=grant.level)
    return grant


async def _enclose(
    runtime: Runtime,
    context: RequestContext,
    asker: Asker,
    workspace: policy.Workspace,
    grant: AgentGrant,
    version: str,
) -> Enclosure:
    """Return what the agent is confined to, and put it on record.

    Raises `WorkspaceDenied`, or `AgentUnavailable` where nothing proves that it would hold.
    """
    config = runtime.config_for(asker.options)
    enclosure = await read(
        enclose,
        asker.caller,
        workspace,
        grant,
        codex_bin=config.codex_bin,
        codex_home=Path(config.codex_home),
    )
    confinement = enclosure.confinement
    context.record.note(
        sandbox=confinement.name,
        network=confinement.has_network,
        policy_hash=confinement.policy_hash,
        as_root=runs_as_root(),
    )
    proof = await runtime.proofs.require(config, confinement.level, version)
    context.record.note(proof_id=proof.pk)
    return enclosure


def _start(
    runtime: Runtime,
    context: RequestContext,
    asker: Asker,
    asked: Asked,
    terms: Terms,
    deadline: float,
) -> Feed:
    """Put the request on record and start its turns, which hold the key's places and the engine."""
    held = context.stack.enter_context(ExitStack())
    place = held.enter_context(ExitStack())
    place.enter_context(runtime.places_of(asker.caller, asked.choices))
    run = held.enter_context(runtime.engine(terms.engine, asker.options))
    _put_on_record(context)
    turn = Turn(
        request_id=str(context.record.request_id),
        messages=asked.messages,
        cwd=terms.cwd,
        deadline=deadline,
        confinement=terms.enclosure.confinement if terms.enclosure else None,
        model=terms.model,
        effort=asked.effort,
        verbosity=asked.verbosity,
        service_tier=terms.service_tier,
        wants_reasoning=asker.options.reasoning,
        key=str(asker.caller.key_id or asker.caller.name),
        max_queued=asker.caller.max_queued,
    )
    turn = _with_agents_md(_with_form(turn, asked), terms)
    if turn.is_agent:
        kept = Kept(
            output_chars=asker.options.action_output_chars,
            diff_chars=asker.options.action_diff_chars,
            compared_files=asker.options.compared_files,
        )
        run = Trail(context.record, terms.root, kept, runtime.workplaces).watch(run)
    feed = Feed([_run(run, turn, asked) for _ in range(asked.choices)])
    # From here on these are the turns': a retry may read on when this request is over.
    feed.when_over(held.pop_all().close)
    # The place is free before the last byte: the client's next request must not meet the clean-up
    # of this one.
    context.before_close.append(lambda: place.close() if feed.has_ended else None)
    return feed


async def _leave(reader: Reader, context: RequestContext, mark: RetryMark) -> None:
    """Let go of the turns; at once, unless this client may come again for an answer it never saw.

    Where none of them has left the queue, nothing is spent and no place in it is kept.
    """
    is_begun = any("queue_wait" in turn.laps.ms for turn in reader.feed.turns)
    may_come_again = mark.may_come_again and context.status is None and is_begun
    await reader.aclose(RETRY_GRACE_S if may_come_again else 0.0)


def _refuse_ignored_where_strict(caller: policy.Caller, asked: Asked) -> None:
    if caller.is_strict and asked.ignored:
        name = asked.ignored[0]
        raise UnsupportedParameter(
            f"Unsupported parameter: '{name}' is not carried out here, and this key refuses what "
            "would be ignored.",
            param=name,
        )


def _wants_agent(asker: Asker, asked: Asked) -> bool:
    wants = asker.caller.asks_for_agent or asker.options.agent
    if asked.wish.agent is not None:
        wants = asked.wish.agent
    has_tools = asked.tools.declared or asked.tools.mode == "forced"
    if wants and has_tools:
        raise UnsupportedParameter(
            "Tools of the caller's cannot be used in agent mode: the agent has its own.",
            param="tools",
        )
    return wants


def _engine_for(asker: Asker, asked: Asked, *, wants_agent: bool) -> str:
    """Return the engine for this request; the app-server one steps in for what exec cannot do."""
    kind = asker.caller.engine or asker.options.engine
    field = asked.only_app_server
    if wants_agent and asked.has_images:  # exec takes them as files, beside which an agent works
        field = "messages"
    if kind != "exec" or not field:
        return kind
    if asker.caller.engine == "exec":
        raise UnsupportedParameter(
            f"The exec engine, which this key is bound to, cannot carry out what '{field}' asks; "
            "the app-server engine can.",
            param=field,
        )
    return "app-server"


def _put_on_record(context: RequestContext) -> None:
    """No record, no turn: a request that could be lost from the log is not run."""
    try:
        context.record.save()
    except OSError as error:
        raise ServerUnavailable("The server cannot write its audit log now.") from error


def _with_form(turn: Turn, asked: Asked) -> Turn:
    """Return the turn with the tools it may call, or the form that its answer must have."""
    if asked.tools.mode == "auto":
        turn = replace(turn, tools=asked.tools.declared)
    schema, instruction = None, ""
    if asked.tools.mode == "forced":
        schema, instruction = asked.tools.forced_format()
    elif asked.format is not None:
        schema, instruction = asked.format.schema_for_codex, asked.format.instruction
    said = (Message("developer", instruction),) if instruction else ()
    return replace(turn, output_schema=schema, messages=(*said, *turn.messages))


def _with_agents_md(turn: Turn, terms: Terms) -> Turn:
    """Return the turn with the instructions that lie in its folder, where the grant wants them."""
    text = terms.enclosure.agents_md if terms.enclosure else ""
    said = (Message("developer", text),) if text else ()
    return replace(turn, messages=(*said, *turn.messages))


def _must_check(asked: Asked) -> bool:
    """Whether the answer is only shown once it is whole: it is made of it, or may need repair."""
    if asked.tools.mode == "forced":
        return True
    return asked.format is not None and not (asked.is_stream and asked.is_verbatim)


def _run(run: Callable[[Turn], RunningTurn], turn: Turn, asked: Asked) -> RunningTurn:
    return run_checked(run, turn, _accept(asked)) if _must_check(asked) else run(turn)


def _accept(asked: Asked) -> Callable[[str], list[Event]]:
    """Return what makes events of a whole answer, or raises `AnswerInvalid`."""
    if asked.tools.mode == "forced":
        return lambda text: [ToolCalled(call) for call in asked.tools.read_forced(text)]

    def read_format(text: str) -> list[Event]:
        assert asked.format is not None  # noqa: S101 - checked by `_must_check`
        text = asked.format.read(text)
        return [TextDelta(text), MessageDone(text)]

    return read_format


def _note_turns(exchange: Exchange, *, is_ours: bool) -> None:
    """Copy what the turns know of themselves into the record."""
    context, first = exchange.context, exchange.turns[0]
    before = context.laps.ms
    first_delta_ms = None
    if "first_delta" in first.laps.ms and is_ours:
        until = list(first.laps.ms).index("first_delta") + 1
        first_delta_ms = sum(before.values()) + sum(list(first.laps.ms.values())[:until])
    context.laps.lap("response")
    whole = before.pop("response")
    engine_ms = first.engine_ms or first.laps.since_start_ms()
    if is_ours:
        before.update(first.laps.ms or {"queue_wait": engine_ms})  # it may never have left it
        before["response"] = round(max(whole - engine_ms, 0.0), 3)
    else:
        before["joined"] = whole
    context.record.note(
        worker=first.worker,
        codex_version=first.codex_version,
        model_served=first.served_model,
        service_tier=exchange.service_tier,
        first_delta_ms=first_delta_ms,
        engine_ms=engine_ms if is_ours else None,
    )
    _note_cost(exchange)


def _note_cost(exchange: Exchange) -> None:
    """Put the tokens into one row only: of requests that share turns, that of the first to end.

    It is not always the one that started them: its client may have left before the cost was known.
    """
    usage, feed = total_usage([turn.usage for turn in exchange.turns]), exchange.reader.feed
    if usage is None or feed.is_cost_noted or (feed.has_readers and not feed.has_ended):
        return
    feed.is_cost_noted = True
    exchange.context.record.note(
        input_tokens=usage.input_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        output_tokens=usage.output_tokens,
        reasoning_output_tokens=usage.reasoning_output_tokens,
    )


# --- From events to an answer -----------------------------------------------------------------

Numbered = tuple[int, Event]


async def head_of(exchange: Exchange) -> list[Numbered]:
    """Return the first events of turns that have really begun.

    Waits until Codex has taken a turn, and then a moment for its first event, so that most failures
    still get a status of their own. Raises the error of a turn that failed by then.
    """
    events: list[Numbered] = []
    hold: float | None = None
    while True:
        numbered = await exchange.reader.next_event(hold)
        if numbered is None:
            return events
        event = numbered[1]
        # One that was cut short before its text is an answer, however empty.
        if isinstance(event, Failed) and not isinstance(event.error, AnswerIncomplete):
            raise event.error
        events.append(numbered)
        if not isinstance(event, TurnStarted | UsageReported):
            return events
        hold = HEAD_HOLD_S


async def whole_answers(exchange: Exchange) -> list[Answer]:
    """Wait for all turns and return their answers. Raises the error of one that failed."""
    answers = exchange.new_answers()
    while not all(answer.is_over for answer in answers):
        numbered = await exchange.reader.next_event()
        assert numbered is not None  # noqa: S101 - no timeout was given
        action_shown(exchange, numbered)
        _take(exchange, answers, numbered)
    return answers


def _take(exchange: Exchange, answers: list[Answer], numbered: Numbered) -> list[dict[str, Any]]:
    index, event = numbered
    answer = answers[index]
    deltas = answer.take(event)
    if answer.is_over and not isinstance(event, Completed | Failed):
        exchange.reader.feed.stop(index)  # cut by a stop text or the limit: the rest costs money
    return deltas


def action_shown(exchange: Exchange, numbered: Numbered) -> dict[str, Any] | None:
    """Return the action or remark in this event where the client asked to see them, and keep it."""
    index, event = numbered
    found = shown(event) if exchange.asked.wish.show_actions else None
    if found is None:
        return None
    found = {"choice": index, **found}
    exchange.actions[index, found.get("number", -1 - len(exchange.actions))] = found
    return found


async def stream_answers(
    exchange: Exchange,
    head: list[Numbered],
    new_writer: Callable[..., ChunkWriter] = ChunkWriter,
) -> AsyncIterator[bytes]:
    """Yield the events of a stream: chunks, keepalives while the model thinks, one end.

    A failure after the first byte is one error object; text that Codex would say twice after a
    reconnect is such a failure. The record is closed before the end is sent.
    """
    context = exchange.context
    writer = new_writer(
        completion_id=exchange.completion_id,
        created=int(time.time()),
        model=exchange.served_model,
        include_usage=exchange.asked.wants_usage,
        service_tier=exchange.service_tier,
    )
    try:
        async for piece in _pieces(exchange, head, writer):
            if piece:
                yield piece
    except EngineError as error:
        context.error = error
    except Exception:
        # The last place that can still tell the client.
        log.exception("the stream of request %s failed", context.record.request_id)
        context.error = InternalError("The server failed; its log has the details.")
    context.finish()
    yield frame(context.error.envelope()) if context.error else DONE


async def _pieces(
    exchange: Exchange, head: list[Numbered], writer: ChunkWriter
) -> AsyncIterator[bytes]:
    clock = asyncio.get_running_loop().time
    answers = exchange.new_answers()
    pending = list(head)
    for index in range(len(answers)):
        yield writer.role(index)
    sent_at = clock()
    while not all(answer.is_over for answer in answers):
        # Counted from the last byte: a model that runs commands has events, and sends nothing.
        quiet_s = max(sent_at + KEEPALIVE_S - clock(), 0.0)
        numbered = pending.pop(0) if pending else await exchange.reader.next_event(quiet_s)
        if numbered is None:
            yield KEEPALIVE
            sent_at = clock()
            continue
        index, event = numbered
        if isinstance(event, AnswerRestarted) and answers[index].is_mid_message:
            raise broken_off()
        was_over = answers[index].is_over
        if not was_over and (action := action_shown(exchange, numbered)) is not None:
            yield writer.action(action, index)
            sent_at = clock()
        for delta in _take(exchange, answers, numbered):
            if piece := writer.delta(delta, index):  # the legacy endpoint shows no reasoning
                yield piece
                sent_at = clock()
        if answers[index].is_over and not was_over:
            yield writer.finish(answers[index].finish_reason, index)
            sent_at = clock()
    yield writer.usage(exchange.usage())
