"""The front page: what this server is, and where a client and an operator go from here."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe


@require_safe
def front(request: HttpRequest) -> HttpResponse:
    """Show the base URL for clients and the links for people; no login needed, nothing secret."""
    return render(request, "front.html", {"base_url": request.build_absolute_uri("/v1")})
