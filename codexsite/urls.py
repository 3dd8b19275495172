from __future__ import annotations

from django.contrib import admin
from django.urls import path

from codexsite.pages import front
from proxy.admin import running, writers
from proxy.api import api

urlpatterns = [
    path("", front, name="front"),
    path("admin/running/", running.board, name="running"),
    path("admin/running/<uuid:request_id>/", running.request_by_id, name="request_by_id"),
    path("admin/running/<uuid:request_id>/kill/", running.kill, name="kill_request"),
    path("admin/who-could-write/", writers.who_could_write, name="who_could_write"),
    path("admin/", admin.site.urls),
    path("", api.urls),
]
