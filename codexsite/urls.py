from __future__ import annotations

from django.contrib import admin
from django.urls import path

from codexsite.pages import front
from proxy.api import api

urlpatterns = [
    path("", front, name="front"),
    path("admin/", admin.site.urls),
    path("", api.urls),
]
