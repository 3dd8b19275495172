"""Everything that can go wrong, as one tree.

    ProxyError                        status  code
      InvalidRequest                  400     invalid_value, missing_required_parameter, ...
        UnsupportedParameter          400     unsupported_parameter
      KeyRejected                     401     invalid_api_key
      AccessDenied                    403     access_denied
        WorkspaceDenied               403     workspace_denied
        AgentDenied                   403     agent_not_granted
        ModelDenied                   403     model_not_allowed
      UnknownUrl                      404     unknown_url
      ModelNotFound                   404     model_not_found
      MethodNotAllowed                405     method_not_supported
      RequestTooLarge                 413     request_too_large
      UnsupportedMediaType            415     unsupported_media_type
      KeyBusy                         429     key_concurrency_exceeded
      ServerUnavailable               503     server_unavailable
      ServerClosing                   503     server_shutting_down   refuses a new request
      AgentUnavailable                503     agent_not_proven, agent_as_root
      InternalError                   500     internal_error
      EngineError                     502     engine_error
        EngineUnavailable             503     engine_unavailable     cannot start
          ShuttingDown                503     server_shutting_down   ends a running turn
          NotLoggedIn                 503     codex_not_logged_in
          UpstreamRefusedLogin        503     upstream_auth_failed
          UpstreamOverloaded          503     server_overloaded
        EngineBusy                    429     server_busy            queue full, or waited too long
          KeyQueueFull                429     key_concurrency_exceeded
        UsageLimited                  429     insufficient_quota
        RateLimited                   429     rate_limit_exceeded
        EngineTimeout                 504     upstream_timeout       the deadline passed
        WorkerDied                    502     engine_crashed
        TurnFailed                    502     upstream_error         Codex reported failure
          ContextTooLong              400     context_length_exceeded
          PromptRefused               400     invalid_prompt
        EngineProtocolError           502     engine_protocol_error  we could not understand it
        TurnStopped                   499     turn_stopped           we ended it: the client left
        TurnKilled                    403     turn_killed            a person of this server's ended it
        WorkspaceMoved                403     workspace_denied       another folder since the check

The status is only data here; `proxy.rendering` alone turns an error into a response. Messages are safe
to show to a caller: no path, no URL, no key. What only an operator may read goes into the log.
"""

from __future__ import annotations


class ProxyError(Exception):
    """An outcome that the caller is told about, with OpenAI's error fields as data."""

    status = 500
    code: str | None = "internal_error"
    type = "server_error"
    outcome = "failed"
    """The audit's word for it."""
    retry_after_s: int | None = None
    """Whole seconds for the `retry-after` header; SDKs obey 1 to 60."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """Return the body that OpenAI's clients parse; all four keys are required there."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class ServerClosing(ProxyError):
    """This server ends and takes no new request; another one may."""

    status, code, retry_after_s = 503, "server_shutting_down", 5
    outcome = "rejected"


class InternalError(ProxyError):
    """A bug or a failure of our own; the log has the traceback under the request id."""


class ServerUnavailable(ProxyError):
    """This server cannot serve now: its database does not answer, or it is shutting down."""

    status, code, retry_after_s = 503, "server_unavailable", 5


class InvalidRequest(ProxyError):
    """The caller's mistake; `param` names the field in OpenAI's style."""

    status, code, type, outcome = 400, "invalid_value", "invalid_request_error", "rejected"


class UnsupportedParameter(InvalidRequest):
    """A field that would change the answer and that this server cannot honour."""

    code = "unsupported_parameter"


class KeyRejected(InvalidRequest):
    """No key, an unknown one, an expired or a revoked one: the caller is not told which.

    `known_key` and `reason` are for the audit row only.
    """

    status, code = 401, "invalid_api_key"

    def __init__(
        self, message: str, *, code: str | None = None, known_key: object = None, reason: str = ""
    ) -> None:
        super().__init__(message, code=code)
        self.known_key = known_key
        self.reason = reason


class AccessDenied(InvalidRequest):
    """A known key that may not do this."""

    status, code, type = 403, "access_denied", "permission_error"


class WorkspaceDenied(AccessDenied):
    """`metadata.cwd` is not inside a root of this key, or is not there: one message for both."""

    code = "workspace_denied"


class AgentDenied(AccessDenied):
    """Agent mode was asked for and no live grant covers key and root."""

    code = "agent_not_granted"


class ModelDenied(AccessDenied):
    """The model exists and this key may not use it."""

    code = "model_not_allowed"


class UnknownUrl(InvalidRequest):
    """No such endpoint."""

    status, code = 404, "unknown_url"


class ModelNotFound(InvalidRequest):
    """No such model in Codex's catalogue."""

    status, code = 404, "model_not_found"


class MethodNotAllowed(InvalidRequest):
    """The endpoint exists, with another method."""

    status, code = 405, "method_not_supported"


class RequestTooLarge(InvalidRequest):
    """The body is above the limit."""

    status, code = 413, "request_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as JSON."""

    status, code = 415, "unsupported_media_type"


class KeyBusy(ProxyError):
    """The key already runs as many turns as its concurrency cap allows."""

    status, code, type, retry_after_s = 429, "key_concurrency_exceeded", "rate_limit_error", 2
    outcome = "rejected"


class EngineError(ProxyError):
    """Codex could not give an answer."""

    status, code = 502, "engine_error"


class EngineUnavailable(EngineError):
    """The engine cannot start, or is shutting down."""

    status, code, retry_after_s = 503, "engine_unavailable", 10


class ShuttingDown(EngineUnavailable):
    """The server ends while the turn runs."""

    code, outcome = "server_shutting_down", "interrupted"


class NotLoggedIn(EngineUnavailable):
    """Codex needs a login and has none: the operator's to mend, never the caller's."""

    code, retry_after_s = "codex_not_logged_in", 60


class UpstreamRefusedLogin(EngineUnavailable):
    """The model provider refused this server's own credentials."""

    code, retry_after_s = "upstream_auth_failed", 60


class UpstreamOverloaded(EngineUnavailable):
    """The model provider has no capacity now."""

    code, retry_after_s = "server_overloaded", 10


class EngineBusy(EngineError):
    """The queue is full, or the turn waited too long in it."""

    status, code, type, retry_after_s = 429, "server_busy", "rate_limit_error", 5
    outcome = "rejected"


class KeyQueueFull(EngineBusy):
    """As many turns of the key wait as may: like `KeyBusy` to its caller, found by the queue."""

    code = "key_concurrency_exceeded"


class UsageLimited(EngineError):
    """The shared account is out of quota."""

    status, code, type, retry_after_s = 429, "insufficient_quota", "insufficient_quota", 60


class RateLimited(EngineError):
    """The model provider limits the rate of the shared account."""

    status, code, type, retry_after_s = 429, "rate_limit_exceeded", "rate_limit_error", 20


class EngineTimeout(EngineError):
    """The turn's absolute deadline passed."""

    status, code, outcome = 504, "upstream_timeout", "timed_out"


class WorkerDied(EngineError):
    """The codex process ended in the middle of the turn."""

    code = "engine_crashed"


class TurnFailed(EngineError):
    """Codex reported that the turn failed."""

    code = "upstream_error"


class ContextTooLong(TurnFailed):
    """The conversation does not fit the model's window."""

    status, code, type = 400, "context_length_exceeded", "invalid_request_error"


class PromptRefused(TurnFailed):
    """The model provider refused the request itself."""

    status, code, type = 400, "invalid_prompt", "invalid_request_error"


class AnswerIncomplete(TurnFailed):
    """The model stopped before its end; with text this is an answer cut short, not an error.

    `finish_reason` is OpenAI's word for it: `length` or `content_filter`.
    """

    code = "answer_incomplete"

    def __init__(self, message: str, *, finish_reason: str) -> None:
        super().__init__(message)
        self.finish_reason = finish_reason


class EngineProtocolError(EngineError):
    """Codex said something that we do not understand."""

    code = "engine_protocol_error"


class TurnStopped(EngineError):
    """We ended the turn ourselves: the client left."""

    status, code, outcome = 499, "turn_stopped", "cancelled"


class TurnKilled(EngineError):
    """A person of this server's ended the request; the row says who and why, the caller not."""

    status, code, type, outcome = 403, "turn_killed", "permission_error", "cancelled"

    def __init__(self, message: str, *, killed_by: str = "", kill_reason: str = "") -> None:
        super().__init__(message)
        self.killed_by = killed_by
        self.kill_reason = kill_reason


class WorkspaceMoved(EngineError):
    """The folder that the policy allowed is not there any more when the turn is to start."""

    status, code, type, outcome = 403, "workspace_denied", "permission_error", "rejected"


class AgentUnavailable(ProxyError):
    """Agent mode is off on this server: its sandbox is not proven, or it would run as root."""

    status, code, outcome, retry_after_s = 503, "agent_not_proven", "rejected", 60
