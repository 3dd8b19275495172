"""Every page says that this is the demo, when it is."""

from __future__ import annotations

import pytest
from django.conf import LazySettings
from django.test import Client

pytestmark = pytest.mark.django_db

OPEN = ["/", "/admin/login/"]
STAFF = ["/admin/", "/admin/audit/requestrecord/", "/admin/proxy/apikey/add/", "/docs"]


def test_the_front_page_names_the_base_url_and_the_ways_on(db: None):
    text = Client().get("/", headers={"host": "127.0.0.1:8765"}).content.decode()

    for shown in ("http://127.0.0.1:8765/v1", 'href="/admin/"', 'href="/docs"', 'href="/ready"'):
        assert shown in text
    assert "demo-banner" not in text


@pytest.mark.parametrize("page", OPEN)
def test_an_open_page_says_that_this_is_the_demo(page: str, settings: LazySettings):
    settings.DEMO = True

    assert "This is the demo." in Client().get(page).content.decode()


@pytest.mark.parametrize("page", STAFF)
def test_a_page_for_staff_says_that_this_is_the_demo(
    page: str, client: Client, settings: LazySettings
):
    assert "This is the demo." not in client.get(page).content.decode()

    settings.DEMO = True

    assert "This is the demo." in client.get(page).content.decode()


def test_the_docs_are_for_staff_only(db: None):
    assert Client().get("/docs").status_code == 302
