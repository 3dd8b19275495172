"""An administrator and an agent, in a real browser: grant, watch, kill, and who did it.

The server, codex and its sandbox are real; only the model is scripted.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import LiveSite, drain, logged_in, wait_until
from tests.processes import WAIT_S, Serving
from tests.provider import FunctionCall, ScriptedProvider, Stall, Text
from tests.services import require_redis

QUESTION: Any = [{"role": "user", "content": "please"}]
SECONDS = 15_000.0
COMMAND = "echo one > one.txt; ls"
WHY = "It runs in circles."


@dataclass
class Asked:
    """A request of a client that waits for its answer in a thread."""

    thread: threading.Thread = field(init=False)
    text: str = ""
    error: openai.APIError | None = None

    def result(self) -> openai.APIError | None:
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        return self.error


def ask(site: LiveSite, secret: str, *, stream: bool = False, **metadata: str) -> Asked:
    """Ask in a thread, with an official client."""
    asked, client = Asked(), site.client(secret)

    def run() -> None:
        try:
            found: Any = client.chat.completions.create(
                model="gpt-5.5", messages=QUESTION, metadata=metadata, stream=stream
            )
            asked.text = (
                "".join(chunk.choices[0].delta.content or "" for chunk in found if chunk.choices)
                if stream
                else found.choices[0].message.content
            )
        except openai.APIError as error:
            asked.error = error

    asked.thread = threading.Thread(target=run, daemon=True)
    asked.thread.start()
    return asked


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def secret(live: LiveSite, folder: Path) -> str:
    """A key with a root, and people of each role."""
    return str(
        live.run_code(f"""
from django.contrib.auth.models import Group
root = AllowedRoot.objects.create(alias="project", path={str(folder)!r})
key, result = ApiKey.objects.issue(**issue({{"name": "agent key", "default_root": root}}))
key.allowed_roots.add(root)
for name, role in (("ann", "Auditor"), ("olaf", "Operator"), ("ada", "Administrator")):
    User.objects.create_user(name, password="secret", is_staff=True).groups.add(
        Group.objects.get(name=role))
""")
    )


@pytest.fixture
def page(browser: Browser, live: LiveSite, secret: str) -> Iterator[Page]:
    with logged_in(browser, live, who="ada") as page:
        yield page


def give_grant(page: Page, live: LiveSite) -> None:
    """Give the key a grant from its page, in one step."""
    page.goto(f"{live.url}/admin/proxy/apikey/")
    page.get_by_role("link", name="agent key").first.click()
    page.get_by_role("link", name="Give agent grant").click()
    page.get_by_label("read and write", exact=True).check()
    page.get_by_label("8 hours").check()
    page.fill("input[name=reason]", "the browser's test")
    page.get_by_role("button", name="Give the grant").click()
    expect(page.get_by_text("is given and counts from now on")).to_be_visible()


def line_of(page: Page, text: str) -> Any:
    return page.locator("table.board tbody tr").filter(has_text=text)


def kill(page: Page, line: Any) -> None:
    line.get_by_role("link", name="End request").click()
    page.fill("input[name=reason]", WHY)
    page.get_by_role("button", name="End it now").click()


def open_request(page: Page, live: LiveSite, request_id: str) -> None:
    """Find a request in the log by its id and open its page."""
    page.goto(f"{live.url}/admin/audit/requestrecord/?q={request_id}")
    page.locator("a[href*='/audit/requestrecord/'][href*='/change/']").first.click()
    page.wait_for_load_state()


@pytest.mark.timeout(180)
def test_grant_watch_kill_and_who_killed_it(
    live: LiveSite, page: Page, secret: str, folder: Path
) -> None:
    give_grant(page, live)

    # An agent's turn that runs a command, and then thinks until it is killed.
    live.provider.reply(FunctionCall("exec_command", {"cmd": COMMAND}), Stall())
    page.goto(f"{live.url}/admin/running/")
    expect(page.get_by_text("Nothing runs now.")).to_be_visible()
    asked = ask(live, secret, agent="true")
    line = line_of(page, "agent key")
    expect(line).to_have_count(1, timeout=SECONDS)
    expect(line).to_contain_text("project")
    expect(line).to_contain_text("app-server")
    expect(line).to_contain_text("answering", timeout=SECONDS)
    expect(line.locator("td").nth(5)).to_have_text("111 / 77", timeout=SECONDS)
    expect(line.locator("td").nth(6)).to_have_text("1", timeout=SECONDS)
    assert (folder / "one.txt").read_text() == "one\n"

    kill(page, line)

    error = asked.result()
    assert isinstance(error, openai.PermissionDeniedError)
    assert (error.status_code, error.code) == (403, "turn_killed")
    assert error.response.headers["x-should-retry"] == "false"
    expect(page.get_by_text("Nothing runs now.")).to_be_visible(timeout=SECONDS)
    row = live.row_of(error.request_id or "")
    assert (row["outcome"], row["error_code"]) == ("cancelled", "turn_killed")
    assert (row["killed_by"], row["kill_reason"]) == ("ada", WHY)
    open_request(page, live, error.request_id or "")
    expect(page.get_by_text(f"by ada: {WHY}")).to_be_visible()


def sleepers(seconds: int) -> list[str]:
    """The processes that the agent's command of this length left running."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True
    )
    return [line for line in listing.stdout.splitlines() if line == f"sleep {seconds}"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("engine", "seconds"), [("app-server", 98761), ("exec", 98762)])
def test_revoking_the_key_ends_the_agent_that_runs_under_it_and_its_command(
    live: LiveSite, browser: Browser, secret: str, engine: str, seconds: int
) -> None:
    own = live.run_code(f"""
root = AllowedRoot.objects.get(alias="project")
key, result = ApiKey.objects.issue(**issue({{"name": "short {engine}", "engine": {engine!r}}}))
key.allowed_roots.add(root)
AgentGrant.objects.create(key=key, reason="test").roots.add(root)
""")
    command = {"cmd": f"sleep {seconds}", "yield_time_ms": 60_000}
    live.provider.reply(FunctionCall("exec_command", command))
    asked = ask(live, own, stream=True, agent="true", cwd="project")
    wait_until(lambda: len(sleepers(seconds)) > 0)
    with logged_in(browser, live, who="olaf") as page:
        page.goto(f"{live.url}/admin/running/")
        line = line_of(page, f"short {engine}")
        expect(line.locator("td").nth(6)).to_have_text("1", timeout=SECONDS)
        page.goto(f"{live.url}/admin/proxy/apikey/")
        page.get_by_role("link", name=f"short {engine}").first.click()
        expect(page.get_by_role("link", name="Give agent grant")).to_have_count(0)
        page.get_by_role("link", name="Revoke").click()
        page.get_by_label("End the 1 request that runs under it now").check()
        page.get_by_role("button", name="Revoke").click()
        error = asked.result()
        assert error is not None
        assert error.code == "turn_killed"
    wait_until(lambda: not sleepers(seconds))
    row = live.rows()[-1]
    assert (row["outcome"], row["killed_by"]) == ("cancelled", "olaf")
    assert row["kill_reason"] == "The key was revoked."


def test_an_auditor_watches_and_cannot_kill(live: LiveSite, browser: Browser, secret: str) -> None:
    stall = Stall()
    live.provider.reply(stall)
    asked = ask(live, secret)
    with logged_in(browser, live, who="ann") as page:
        page.goto(f"{live.url}/admin/running/")
        line = line_of(page, "agent key")
        expect(line).to_have_count(1, timeout=SECONDS)
        expect(page.get_by_text("Live: 1 request runs")).to_be_visible()
        assert line.get_by_role("link", name="End request").count() == 0
        request_id = line.get_attribute("data-request")
        refused = page.goto(f"{live.url}/admin/running/{request_id}/kill/")
        assert refused is not None
        assert refused.status == 403
        page.goto(f"{live.url}/admin/running/{request_id}/")
        expect(page.get_by_text("agent key").first).to_be_visible()
        assert page.get_by_role("link", name="Kill").count() == 0
    with logged_in(browser, live, who="olaf") as page:
        page.goto(f"{live.url}/admin/running/{request_id}/")
        expect(page.get_by_role("link", name="Kill")).to_be_visible()
    stall.release.set()
    assert asked.result() is None


@contextmanager
def second_server(live: LiveSite, **env: str) -> Iterator[str]:
    """Another process of the same site; yields its address."""
    configs = ";;".join(live.provider.overrides)
    with Serving(
        live.data_dir, "serve", "--port", "0", CODEX_PROXY_CODEX_CONFIGS=configs, **env
    ) as server:
        drain(server)
        yield server.url


@pytest.mark.timeout(180)
@pytest.mark.parametrize("has_redis", [True, False])
def test_the_board_of_one_process_shows_and_kills_a_request_of_another(
    tmp_path: Path, browser: Browser, has_redis: bool
) -> None:
    redis = {"CODEX_PROXY_REDIS_URL": require_redis()} if has_redis else {}
    data_dir = tmp_path / "data"
    with ScriptedProvider(Text(("hello",))) as provider:
        env = {"CODEX_PROXY_CODEX_CONFIGS": ";;".join(provider.overrides), **redis}
        with Serving(data_dir, "serve", "--port", "0", **env) as server:
            drain(server)
            site = LiveSite(server, data_dir, provider)
            with second_server(site, **redis) as other, logged_in(browser, site, other) as page:
                provider.reply(Stall())
                page.goto(f"{other}/admin/running/")
                asked = ask(site, site.secret)
                line = line_of(page, "in another process")
                expect(line).to_have_count(1, timeout=SECONDS)
                # Without Redis the database knows that it runs, and no more.
                expect(line).to_contain_text(
                    "answering" if has_redis else "running", timeout=SECONDS
                )

                kill(page, line)

                error = asked.result()
                assert error is not None
                assert error.code == "turn_killed"
                expect(page.get_by_text("Nothing runs now.")).to_be_visible(timeout=SECONDS)
            row = site.rows()[-1]
            assert (row["killed_by"], row["kill_reason"]) == ("admin", WHY)
            site.close()
