"""Who could write where and when: a timeline of grants, and a question about one moment."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.views.decorators.http import require_safe

from proxy.grant_forms import PeriodForm, QuestionForm
from proxy.history import could_write
from proxy.timeline import Period, draw


@require_safe
@admin.site.admin_view
@permission_required("proxy.view_agentgrant", raise_exception=True)
def who_could_write(request: HttpRequest) -> HttpResponse:
    """Draw the grants of a period, and answer a question where one is asked."""
    chosen = PeriodForm(request.GET)
    asks = "ask_key" in request.GET
    question = QuestionForm(request.GET if asks else None)
    answer = timeline = None
    if asks and question.is_valid():
        told = question.cleaned_data
        answer = could_write(told["ask_key"], told["place"], told["moment"])
    if chosen.is_valid():
        key, root = chosen.cleaned_data["key"], chosen.cleaned_data["root"]
        timeline = draw(
            Period(*chosen.moments),
            key_id=key.pk if key else None,
            root_id=root.pk if root else None,
        )
    return TemplateResponse(
        request,
        "proxy/who_could_write.html",
        {
            **admin.site.each_context(request),
            "title": "Who could write where and when",
            "chosen": chosen,
            "question": question,
            "answer": answer,
            "timeline": timeline,
            "needs_approval": settings.GRANTS_NEED_APPROVAL,
            "is_fullwidth": "1",
        },
    )
