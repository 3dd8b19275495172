"""Answers in OpenAI's shapes: the one place that turns an error into a response."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from asgiref.sync import markcoroutinefunction
from django.http import HttpRequest, HttpResponse
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError

from proxy import policy
from proxy.errors import (
    EngineTimeout,
    InternalError,
    InvalidRequest,
    KeyRejected,
    MethodNotAllowed,
    ProxyError,
    TurnKilled,
    UnknownUrl,
)
from proxy.gateway import context_of

log = logging.getLogger(__name__)


def json_response(body: dict[str, Any], status: int = 200) -> HttpResponse:
    content = orjson.dumps(body)
    response = HttpResponse(content, content_type="application/json", status=status)
    response["Content-Length"] = str(len(content))
    return response


def error_response(request: HttpRequest, error: ProxyError) -> HttpResponse:
    """Render an error in OpenAI's shape and keep it for the audit row. The only place that does."""
    context_of(request.scope).error = error  # type: ignore[attr-defined]
    response = json_response(error.envelope(), error.status)
    # Else Django logs it without the id by which the audit log knows it.
    response._has_been_logged = True  # type: ignore[attr-defined]
    if error.status >= 500:
        request_id = context_of(request.scope).record.request_id  # type: ignore[attr-defined]
        log.warning("request %s: %s %s", request_id, error.status, error.code)
    if error.retry_after_s is not None:
        response["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, EngineTimeout | TurnKilled):
        response["X-Should-Retry"] = "false"  # or SDKs start the same long turn again, twice
    return response


def install(api: NinjaAPI) -> None:
    """Let every error that an operation of the API raises be rendered here."""
    handlers: dict[type[Exception], Callable[..., HttpResponse]] = {
        ProxyError: error_response,
        AuthenticationError: _not_authenticated,
        ValidationError: _not_valid,
        HttpError: _http_error,
        Exception: _unexpected,
    }
    for kind, handler in handlers.items():
        api.exception_handler(kind)(handler)


def _not_authenticated(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    return error_response(request, KeyRejected(policy.NO_KEY, code="missing_api_key"))


def _not_valid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    # Where a value may be a text or a list, the finding that went deepest knows which it is.
    return error_response(request, invalid_field(max(error.errors, key=lambda e: len(e["loc"]))))


def _http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    # ninja hides what its parser raised behind an error of its own
    cause = error.__cause__
    return error_response(
        request, cause if isinstance(cause, ProxyError) else InvalidRequest(error.message)
    )


def _unexpected(request: HttpRequest, error: Exception) -> HttpResponse:
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return error_response(request, InternalError("The server failed; its log has the details."))


PYDANTIC_CODES = {
    "missing": "missing_required_parameter",
    "too_short": "empty_array",
    "too_long": "array_above_max_length",
    "string_too_short": "string_below_min_length",
    "string_too_long": "string_above_max_length",
    "literal_error": "invalid_value",
    "int_from_float": "invalid_type",
}
BOUNDS = {
    "greater_than_equal": ("ge", "below_min_value"),
    "less_than_equal": ("le", "above_max_value"),
}


def invalid_field(found: dict[str, Any]) -> InvalidRequest:
    """Return pydantic's finding in OpenAI's words: the field as a path, the code by its kind."""
    # ("body", "payload", "messages", 0, "content", "str") -> messages[0].content
    param = ""
    for part in found["loc"][2:]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part.islower() and "[" not in part and part not in ("str", "int", "bool"):
            param += f".{part}" if param else part
    kind = found["type"]
    if not param and kind == "missing":
        return InvalidRequest("The request has no body; send a JSON object.", code="invalid_json")
    code = PYDANTIC_CODES.get(kind, "invalid_type" if "type" in kind else "invalid_value")
    if kind in BOUNDS:
        name, suffix = BOUNDS[kind]
        number = "integer" if isinstance(found["ctx"][name], int) else "decimal"
        code = f"{number}_{suffix}"
    if kind == "missing":
        message = f"Missing required parameter: '{param}'."
    else:
        message = f"Invalid value for '{param}': {found['msg']}."
    return InvalidRequest(message, param=param or None, code=code)


GetResponse = Callable[[HttpRequest], Awaitable[HttpResponse]]


def envelope_middleware(get_response: GetResponse) -> GetResponse:
    """The API's one middleware: an error that Django or ninja made itself gets OpenAI's shape."""

    async def middleware(request: HttpRequest) -> HttpResponse:
        response = await get_response(request)
        is_ours = response.get("Content-Type", "").startswith("application/json")
        if response.status_code < 400 or is_ours:
            return response
        if response.status_code == 405:
            error: ProxyError = MethodNotAllowed(
                f"Not allowed to {request.method} on {request.path} "
                f"(HINT: perhaps you meant to use {response.get('Allow', 'another method')}?)"
            )
        elif response.status_code == 404:
            error = UnknownUrl(f"Invalid URL ({request.method} {request.path})")
        elif response.status_code < 500:
            error = InvalidRequest("The request could not be understood.")
        else:
            error = InternalError("The server failed; its log has the details.")
        shaped = error_response(request, error)
        if "Allow" in response:
            shaped["Allow"] = response["Allow"]
        return shaped

    markcoroutinefunction(middleware)
    return middleware


envelope_middleware.async_capable = True  # type: ignore[attr-defined]
envelope_middleware.sync_capable = False  # type: ignore[attr-defined]
