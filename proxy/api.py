"""The HTTP surface: the endpoints, and how their bodies are read and written. No rules."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import orjson
from django.conf import settings
from django.contrib.admin.views.decorators import staff_member_required
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from ninja import NinjaAPI
from ninja.openapi.schema import OpenAPISchema
from ninja.parser import Parser

from audit import metrics
from proxy import (
    __version__,
    asked,
    completions,
    fetching,
    openapi,
    policy,
    rendering,
    runtime,
    schemas,
)
from proxy.answers import Answer
from proxy.auth import BearerKey
from proxy.dbthreads import read
from proxy.engines.base import Inspection
from proxy.errors import InvalidRequest, ModelDenied, UnknownUrl, UnsupportedMediaType
from proxy.gateway import RequestContext, context_of
from proxy.joining import mark_of
from proxy.rendering import json_response
from proxy.sse import ChunkWriter, TextChunkWriter

ERRORS = dict.fromkeys(
    (400, 401, 403, 404, 413, 415, 429, 500, 502, 503, 504), schemas.ErrorEnvelope
)
STARTED_AT = time.time()
UNFIT_FOR_A_HEADER = re.compile(r"[^\x20-\x7e]")
Response = TypeVar("Response", HttpResponse, StreamingHttpResponse)

MAX_REMOTE_IMAGES = 10
"""Each takes up to ten seconds to download, one after the other."""

_decoding = asyncio.Semaphore(2)
"""Requests whose images are decoded at once: each may take hundreds of megabytes."""


class JsonParser(Parser):
    """Reads a body that is declared as JSON; a web page cannot send that without asking first."""

    def parse_body(self, request: HttpRequest) -> Any:  # noqa: ANN401 - JSON
        if request.content_type != "application/json":
            raise UnsupportedMediaType("The request body must be sent as application/json.")
        try:
            body = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(
                f"We could not parse the JSON body of your request: {error}", code="invalid_json"
            ) from error
        if not isinstance(body, dict):
            raise InvalidRequest("The request body must be a JSON object.", code="invalid_type")
        _note_asked(context_of(request.scope), body)  # type: ignore[attr-defined]
        return body


def _note_asked(context: RequestContext, body: dict[str, Any]) -> None:
    """Keep what was asked, before anything can refuse it."""
    model, stream = body.get("model"), body.get("stream")
    if isinstance(model, str):
        context.record.note(model_asked=model)
    context.record.note(stream=stream if isinstance(stream, bool) else False)


class Api(NinjaAPI):
    """Ninja's, with the parts of the OpenAPI document that it cannot derive."""

    def get_openapi_schema(self, **options: Any) -> OpenAPISchema:  # noqa: ANN401 - ninja's own
        document = super().get_openapi_schema(**options)
        openapi.complete(
            document,
            {
                "createChatCompletion": schemas.ChatCompletionChunk,
                "createCompletion": schemas.TextCompletion,
            },
        )
        return document


api = Api(
    title="codexsite",
    version=__version__,
    description="Chat completions of the OpenAI API, answered by the OpenAI Codex CLI.",
    docs_url="/docs",
    openapi_url="/openapi.json",
    docs_decorator=staff_member_required,
    parser=JsonParser(),
    urls_namespace="api",
)
bearer = BearerKey()


# --- Chat -------------------------------------------------------------------------------------


@api.post(
    "/v1/chat/completions",
    auth=bearer,
    response={200: schemas.ChatCompletion, **ERRORS},
    operation_id="createChatCompletion",
    summary="Create a chat completion, whole or (with `stream`) as server-sent events",
    tags=["chat"],
)
async def create_chat_completion(
    request: HttpRequest, payload: schemas.ChatCompletionRequest
) -> HttpResponse | StreamingHttpResponse:
    return await _complete(request, payload, ChunkWriter, _chat_choice)


@api.post(
    "/v1/completions",
    auth=bearer,
    response={200: schemas.TextCompletion, **ERRORS},
    operation_id="createCompletion",
    summary="Legacy: complete one prompt, carried out as a chat with one message",
    tags=["chat"],
)
async def create_completion(
    request: HttpRequest, payload: schemas.CompletionRequest
) -> HttpResponse | StreamingHttpResponse:
    return await _complete(request, asked.as_chat(payload), TextChunkWriter, _text_choice)


def _chat_choice(answer: Answer) -> dict[str, Any]:
    return {"message": answer.message()}


def _text_choice(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text}


async def _complete(
    request: HttpRequest,
    payload: schemas.ChatCompletionRequest,
    writer: type[ChunkWriter],
    choice_of: Callable[[Answer], dict[str, Any]],
) -> HttpResponse | StreamingHttpResponse:
    """Answer in the words of one endpoint: its chunks, its choices."""
    exchange = await _begin(request, payload)
    if exchange.asked.is_stream:
        head = await completions.head_of(exchange)
        return _with_notes(
            _event_stream(completions.stream_answers(exchange, head, writer)), exchange
        )
    answers = await completions.whole_answers(exchange)
    body = {
        "id": exchange.completion_id,
        "object": writer.whole_object,
        "created": int(time.time()),
        "model": exchange.served_model,
        "service_tier": exchange.service_tier,
        "system_fingerprint": None,
        "choices": [
            {
                "index": index,
                **choice_of(answer),
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ],
        "usage": exchange.usage(),
    }
    if exchange.asked.wish.show_actions:
        body["actions"] = list(exchange.actions.values())
    return _with_notes(json_response(body), exchange)


async def _begin(
    request: HttpRequest, payload: schemas.ChatCompletionRequest
) -> completions.Exchange:
    context = context_of(request.scope)  # type: ignore[attr-defined]
    asker: completions.Asker = request.auth  # type: ignore[attr-defined]
    understood = await _understand(payload, asker.options)
    mark = mark_of(request.headers, request.path, request.body)
    return await completions.begin(runtime.current(), context, asker, understood, mark)


async def _understand(
    payload: schemas.ChatCompletionRequest, options: policy.Options
) -> asked.Asked:
    """Return what is asked; where there are images, they are fetched and decoded off the loop."""
    places = [
        (part.image_url, f"messages[{index}].content[{number}]")
        for index, message in enumerate(payload.messages)
        if isinstance(message.content, list)
        for number, part in enumerate(message.content)
        if part.type == "image_url" and part.image_url is not None
    ]
    if not places:
        return asked.understand(payload, max_choices=options.max_choices)
    remote = [
        (image, where)
        for image, where in places
        if image.url.lower().startswith(("http:", "https:"))
    ]
    if len(remote) > MAX_REMOTE_IMAGES:
        raise InvalidRequest(
            f"At most {MAX_REMOTE_IMAGES} images of a request may be URLs to download.",
            param="messages",
            code="invalid_image_url",
        )
    may_fetch = fetching.default_policy() if options.fetch_images else None
    for image, where in remote:
        image.url = await fetching.fetch_image(
            image.url, where, policy=may_fetch, detail=image.detail
        )
        image.detail = None  # carried out by now
    async with _decoding:
        return await asyncio.to_thread(asked.understand, payload, max_choices=options.max_choices)


def _with_notes(response: Response, exchange: completions.Exchange) -> Response:
    """Say in the headers what was not carried out, and which engine answers."""
    if exchange.asked.ignored:
        names = ",".join(exchange.asked.ignored)
        response["x-ignored-params"] = UNFIT_FOR_A_HEADER.sub("?", names)[:1000]
    return response


def _event_stream(chunks: Any) -> StreamingHttpResponse:  # noqa: ANN401 - an async iterator
    response = StreamingHttpResponse(chunks, content_type="text/event-stream; charset=utf-8")
    response["Cache-Control"] = "no-cache"
    response["X-Accel-Buffering"] = "no"
    return response


# --- Models -----------------------------------------------------------------------------------


async def _catalogue(asker: completions.Asker) -> Inspection:
    return await runtime.current().usable(
        asker.caller.engine or asker.options.engine, asker.options
    )


def _model(name: str, options: policy.Options) -> dict[str, Any]:
    """One model in OpenAI's form; the catalogue came with the codex binary, and so did its date."""
    binary = Path(runtime.codex_binary(options.codex_bin))
    created = int(binary.stat().st_mtime) if binary.exists() else 0
    return {"id": name, "object": "model", "created": created, "owned_by": "codex"}


@api.get(
    "/v1/models",
    auth=bearer,
    response={200: schemas.ModelList, **ERRORS},
    operation_id="listModels",
    summary="List the models that this key may use",
    tags=["models"],
)
async def list_models(request: HttpRequest) -> HttpResponse:
    asker: completions.Asker = request.auth  # type: ignore[attr-defined]
    names = policy.models_for(asker.caller, asker.options, await _catalogue(asker))
    return json_response(
        {"object": "list", "data": [_model(name, asker.options) for name in names]}
    )


@api.get(
    "/v1/models/{path:model_id}",
    auth=bearer,
    response={200: schemas.Model, **ERRORS},
    operation_id="retrieveModel",
    summary="Describe one model",
    tags=["models"],
)
async def retrieve_model(request: HttpRequest, model_id: str) -> HttpResponse:
    asker: completions.Asker = request.auth  # type: ignore[attr-defined]
    inspection = await _catalogue(asker)
    try:
        policy.resolve_model(model_id, asker.caller, asker.options, inspection)
    except ModelDenied as error:
        # In the words of an unknown model: which ones the server has is not this key's business.
        raise policy.unknown_model(model_id) from error
    return json_response(_model(model_id, asker.options))


# --- How the server does ----------------------------------------------------------------------


@api.get(
    "/health",
    response={200: schemas.Health},
    operation_id="getHealth",
    summary="Whether this process answers",
    tags=["server"],
)
async def health(request: HttpRequest) -> HttpResponse:
    return json_response({"status": "ok", "version": __version__})


@api.get(
    "/ready",
    response={200: schemas.Readiness, 503: schemas.Readiness},
    operation_id="getReadiness",
    summary="Whether a completion would be answered, and why not",
    tags=["server"],
)
async def ready(request: HttpRequest) -> HttpResponse:
    found = await runtime.check_health(runtime.current())
    checks = {
        item: {"ok": reason is None, "reason": reason} for item, reason in found.reasons.items()
    }
    for item, text in found.remarks.items():
        checks[item]["note"] = text
    body = {
        "status": "ready" if found.is_ready else "not_ready",
        "demo": settings.DEMO,
        "checks": checks,
    }
    if settings.DEMO:
        body["notice"] = "This is the demo: answers come from a stand-in, not from a model."
    return json_response(body, 200 if found.is_ready else 503)


@api.get(
    "/metrics",
    response={200: schemas.Metrics, 500: schemas.ErrorEnvelope, 503: schemas.ErrorEnvelope},
    openapi_extra=openapi.METRICS,
    operation_id="getMetrics",
    summary="Counters of all processes, as JSON, or as Prometheus text where that is asked for",
    tags=["server"],
)
async def show_metrics(request: HttpRequest) -> HttpResponse:
    queue = runtime.current().queue
    wants_text = request.GET.get("format") == "prometheus" or any(
        kind in request.headers.get("Accept", "") for kind in ("text/plain", "openmetrics")
    )
    uptime_s = round(time.time() - STARTED_AT, 3)
    if wants_text:
        gauges = {
            "queue_length": float(len(queue.waiters)),
            "queue_oldest_seconds": queue.longest_wait_s,
            "turns_running": float(queue.running),
            "turns_capacity": float(queue.capacity),
            "tasks": float(len(asyncio.all_tasks())),
            "uptime_seconds": uptime_s,
        }
        text = await read(metrics.prometheus_text, gauges)
        return HttpResponse(text, content_type="text/plain; version=0.0.4; charset=utf-8")
    options = await read(policy.load_options)
    return json_response(
        {
            **await read(metrics.counters),
            "engine": options.engine,
            "uptime_seconds": uptime_s,
            "tasks": len(asyncio.all_tasks()),
            "app_server_pool_started": runtime.current().has_engine("app-server"),
            "queue": _queue_body(queue),
        }
    )


def _queue_body(queue: runtime.Queue) -> dict[str, Any]:
    """Return the queue as JSON: those who wait by the ids of their requests, and by nothing else."""
    return {
        "queued": len(queue.waiters),
        "running": queue.running,
        "capacity": queue.capacity,
        "longest_wait_seconds": queue.longest_wait_s,
        "waiting": [
            {
                "request_id": waiter.request_id,
                "engine": engine,
                "position": waiter.position,
                "waited_seconds": waiter.waited_s,
            }
            for engine, waiter in queue.waiters
        ],
    }


@api.api_operation(
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"],
    "/v1/{path:rest}",
    include_in_schema=False,
)
async def unknown_url(request: HttpRequest, rest: str) -> HttpResponse:
    raise UnknownUrl(f"Invalid URL ({request.method} {request.path})")


rendering.install(api)
