"""The bearer header -> the caller behind it, and who is on record as having asked."""

from __future__ import annotations

from django.http import HttpRequest
from django.http.request import split_domain_port
from ninja.security import HttpBearer

from proxy import completions, policy, runtime
from proxy.dbthreads import read
from proxy.errors import KeyRejected
from proxy.gateway import RequestContext, context_of
from proxy.models import ApiKey


class BearerKey(HttpBearer):
    """The `Authorization: Bearer` header -> the caller behind it, checked before the body is read."""

    async def __call__(self, request: HttpRequest) -> completions.Asker:
        context = context_of(request.scope)  # type: ignore[attr-defined]
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        given = secret.strip() if scheme.lower() == "bearer" else ""
        try:
            caller, options = await read(
                policy.authenticate,
                given or None,
                may_be_anonymous=_may_be_anonymous(request, context),
            )
        except KeyRejected as error:
            if isinstance(error.known_key, ApiKey):
                _note_key(context, error.known_key)
            raise
        finally:
            context.laps.lap("auth")
        context.record.note(
            key_id=caller.key_id,
            key_name=caller.name,
            key_prefix=caller.prefix,
            key_owner=caller.owner,
        )
        return completions.Asker(caller, options)

    async def authenticate(self, request: HttpRequest, token: str) -> completions.Asker:
        return await self(request)


def _note_key(context: RequestContext, key: ApiKey) -> None:
    context.record.note(
        key_id=key.pk,
        key_name=key.name,
        key_prefix=key.prefix,
        key_owner=key.owner.get_username(),
    )


def _may_be_anonymous(request: HttpRequest, context: RequestContext) -> bool:
    """Only on a server that listens on loopback alone, for a client of this very machine.

    The host name is checked too: a web page may point a name of its own at 127.0.0.1.
    """
    host, _ = split_domain_port(request.META.get("HTTP_HOST", ""))
    is_named_local = host in ("localhost", "127.0.0.1", "[::1]")
    return context.is_local and is_named_local and runtime.listens_on_loopback_only()
