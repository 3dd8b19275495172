"""An admin's first day in a real browser: log in, root, key, grant; call the API; find the request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from playwright.sync_api import Browser, Page, expect

from proxy.demo import COMMAND
from tests.e2e.conftest import LiveSite, logged_in


@pytest.fixture
def page(browser: Browser, demo: LiveSite) -> Iterator[Page]:
    """A page of a logged-in admin."""
    with logged_in(browser, demo) as page:
        yield page


def save(page: Page) -> None:
    page.locator("button[name=_save], input[name=_save]").first.click()
    page.wait_for_load_state()


@pytest.mark.timeout(180)
def test_admin_sets_up_a_key_and_finds_its_agent_request_in_the_log(
    demo: LiveSite, page: Page, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")

    page.goto(f"{demo.url}/admin/proxy/allowedroot/add/")
    page.fill("input[name=alias]", "project")
    page.fill("input[name=path]", str(folder))
    save(page)

    page.goto(f"{demo.url}/admin/proxy/apikey/add/")
    page.fill("input[name=name]", "browser key")
    page.select_option("select[name=owner]", label="admin")
    page.get_by_label("project", exact=True).check()
    page.select_option("select[name=default_root]", label="project")
    save(page)
    (secret,) = set(re.findall(r"sk-codexsite-[\w-]{43}", page.content()))
    page.goto(f"{demo.url}/admin/proxy/apikey/")
    page.get_by_text("browser key").first.click()
    page.wait_for_load_state()
    assert secret not in page.content()

    ask = demo.client(secret).chat.completions
    question = {"role": "user", "content": "please"}
    with pytest.raises(openai.PermissionDeniedError):
        ask.create(model="default", messages=[question], metadata={"agent": "true"})  # type: ignore[list-item]

    page.goto(f"{demo.url}/admin/proxy/agentgrant/add/")
    key = page.locator("select[name=key] option", has_text="browser key").get_attribute("value")
    page.select_option("select[name=key]", value=key)
    page.get_by_label("project", exact=True).check()
    page.fill("input[name=reason], textarea[name=reason]", "the demo's harmless command")
    save(page)

    answer = ask.create(model="default", messages=[question], metadata={"agent": "true"})  # type: ignore[list-item]
    text = answer.choices[0].message.content or ""
    assert "demo" in text
    assert "notes.txt" in text
    row = demo.row_of(answer._request_id or "")
    assert (row["agent_mode"], row["key_name"]) == (1, "browser key")

    page.goto(f"{demo.url}/admin/audit/requestrecord/")
    page.fill("input[name=q]", answer._request_id or "")
    page.keyboard.press("Enter")
    page.wait_for_load_state()
    expect(page.locator("a[href*='/audit/requestrecord/'][href*='/change/']")).to_have_count(1)
    page.locator("a[href*='/audit/requestrecord/'][href*='/change/']").click()
    page.wait_for_load_state()
    content = page.content()
    for expected in ("browser key", "codexsite_write", "turn_start", str(folder)):
        assert expected in content
    page.locator(f"a[href='/admin/proxy/agentgrant/{row['grant_id']}/change/']").click()
    expect(page.get_by_text("the demo's harmless command").first).to_be_visible()

    page.goto(f"{demo.url}/admin/audit/agentaction/")
    page.fill("input[name=q]", COMMAND)
    page.keyboard.press("Enter")
    page.wait_for_load_state()
    page.locator("a[href*='/audit/agentaction/'][href*='/change/']").first.click()
    page.wait_for_load_state()
    expect(page.get_by_text("notes.txt").first).to_be_visible()  # in the command's output
    page.locator("a[href*='/audit/requestrecord/'][href*='/change/']").click()
    expect(page.locator(".trail li.command")).to_have_count(1)


@pytest.mark.parametrize(
    "path", ["/", "/admin/", "/admin/audit/requestrecord/", "/admin/proxy/apikey/", "/docs"]
)
def test_every_page_says_that_this_is_the_demo(demo: LiveSite, page: Page, path: str) -> None:
    page.goto(f"{demo.url}{path}")
    expect(page.get_by_text("This is the demo.").first).to_be_visible()


def test_login_page_says_that_this_is_the_demo(demo: LiveSite, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{demo.url}/admin/")
    expect(page.get_by_text("This is the demo.").first).to_be_visible()
    page.close()


def test_docs_show_the_api_without_the_network(demo: LiveSite, page: Page) -> None:
    page.goto(f"{demo.url}/docs")
    expect(page.get_by_text("/v1/chat/completions").first).to_be_visible()
