"""What runs now, and the button that ends it."""

from __future__ import annotations

from uuid import UUID

from django.contrib import admin, messages
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_safe

from audit.models import Outcome, RequestRecord
from proxy import runtime
from proxy.board import SHOWN
from proxy.consumers import KILL, SEE, stored_rows, with_links
from proxy.grant_forms import KillForm
from proxy.kills import kill_request


@require_safe
@admin.site.admin_view
@permission_required(SEE, raise_exception=True)
def board(request: HttpRequest) -> HttpResponse:
    """Show what runs; `board.js` then keeps it up to date over a websocket."""
    found = runtime.find_board()
    rows = found.rows() if found else []
    rows += stored_rows({found.boot} if found else set())
    return TemplateResponse(
        request,
        "proxy/board.html",
        {
            **admin.site.each_context(request),
            "title": "Running now",
            "may_kill": request.user.has_perm(KILL),
            "first": {"rows": [with_links(row) for row in rows[:SHOWN]]},
            "is_fullwidth": "1",
        },
    )


@require_http_methods(["GET", "HEAD", "POST"])
@admin.site.admin_view
@permission_required(KILL, raise_exception=True)
def kill(request: HttpRequest, request_id: UUID) -> HttpResponse:
    """Ask why, then order the end of one request."""
    form = KillForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        kill_request(request_id, by=request.user, reason=form.cleaned_data["reason"])
        messages.success(request, f"Request {request_id} is being ended.")
        return HttpResponseRedirect(reverse("running"))
    record = RequestRecord.objects.filter(request_id=request_id).first()
    return TemplateResponse(
        request,
        "proxy/kill.html",
        {
            **admin.site.each_context(request),
            "title": "End this request",
            "original": f"Request {request_id}",
            "request_id": request_id,
            "record": record,
            "has_ended": record is not None and record.outcome != Outcome.RUNNING,
            "form": form,
            "object_url": reverse("running"),
        },
    )


@require_safe
@admin.site.admin_view
@permission_required(SEE, raise_exception=True)
def request_by_id(request: HttpRequest, request_id: UUID) -> HttpResponse:
    """Lead to the page of a request, or to the list where it is not in the database yet."""
    record = RequestRecord.objects.filter(request_id=request_id).first()
    if record is None:
        messages.info(request, "This request is not in the log yet. Look again in a moment.")
        return HttpResponseRedirect(
            f"{reverse('admin:audit_requestrecord_changelist')}?q={request_id}"
        )
    return HttpResponseRedirect(reverse("admin:audit_requestrecord_change", args=[record.pk]))
