"""Was this key allowed to write here on 3 May? True of the past, whatever was changed since."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from proxy.history import Answer, could_write
from proxy.models import AgentGrant, AllowedRoot, ApiKey, ApprovalRule, ProxySettings

pytestmark = pytest.mark.django_db

PAGE = "/admin/who-could-write/"
NOW = timezone.now()


def ago(hours: float) -> Any:
    return NOW - timedelta(hours=hours)


def at(hours: float, before: int) -> None:
    """Put all that was logged since the log had `before` entries at so many hours ago."""
    newest = LogEntry.objects.order_by("id").values_list("pk", flat=True)[before:]
    LogEntry.objects.filter(pk__in=list(newest)).update(timestamp=ago(hours))


class Story:
    """Things that happened, each so many hours ago."""

    def __init__(self, boss: User, folder: Path) -> None:
        self.folder = folder
        (folder / "deep" / "er").mkdir(parents=True)
        self.root = AllowedRoot.objects.create(alias="shop", path=str(folder))
        self.key, _ = ApiKey.objects.issue(name="ci", owner=boss)
        self.key.allowed_roots.add(self.root)
        self.grant = AgentGrant.objects.create(
            key=self.key, reason="upgrades", granted_by=boss, starts_at=ago(50), ends_at=ago(10)
        )
        self.grant.roots.add(self.root)
        at(100, 0)
        ApiKey.objects.update(created_at=ago(100))
        AgentGrant.objects.update(created_at=ago(60))
        self.key.refresh_from_db()
        self.grant.refresh_from_db()

    def change(self, hours: float, what: Any, **fields: Any) -> None:
        """Change an object's columns, as the admin does, so many hours ago."""
        before = LogEntry.objects.count()
        for name, value in fields.items():
            setattr(what, name, value)
        what.save()
        at(hours, before)

    def ask(self, hours: float, place: str = "shop") -> Answer:
        return could_write(ApiKey.objects.get(pk=self.key.pk), place, ago(hours))

    def why_not(self, hours: float, place: str = "shop") -> str:
        answer = self.ask(hours, place)
        assert not answer.is_allowed
        return " ".join([answer.reason, *(why for _, why in answer.others)])


@pytest.fixture
def story(boss: User, tmp_path: Path) -> Story:
    return Story(boss, tmp_path)


def test_inside_its_time_the_answer_names_the_grant(story: Story):
    answer = story.ask(30)

    assert answer.is_allowed
    assert answer.by is not None
    assert (answer.by.grant, answer.folder) == (story.grant, str(story.folder))


def test_before_the_start_and_after_the_end(story: Story):
    assert "it began later" in story.why_not(55)
    assert "it was given later" in story.why_not(70)
    assert "it was over" in story.why_not(5)
    assert "issued later" in story.why_not(200)


def test_an_end_that_was_moved_later_was_not_later_yet(story: Story):
    story.change(4, story.grant, ends_at=ago(-5))

    assert "moved later to" in story.why_not(7)
    assert story.ask(3).is_allowed
    assert story.ask(30).by.ends_at == ago(10)  # type: ignore[union-attr]
    assert story.ask(-2).is_allowed
    assert "it was over" in story.why_not(-6)


def test_an_end_that_was_brought_forward_had_been_later(story: Story):
    story.change(20, story.grant, ends_at=ago(19))

    assert story.ask(30).is_allowed
    assert "it was over" in story.why_not(15)


def test_after_a_revocation_no_and_before_it_yes(story: Story, boss: User):
    story.change(20, story.grant, revoked_at=ago(20), revoked_by=boss)

    assert story.ask(21).is_allowed
    assert "revoked on" in story.why_not(15)
    assert "by boss" in story.why_not(15)


def test_without_approval_only_while_none_was_needed(story: Story, boss: User):
    ApprovalRule.objects.create(since=ago(40), is_needed=True)
    ApprovalRule.objects.create(since=ago(15), is_needed=False)
    other = User.objects.create_user("ben")

    assert story.ask(45).is_allowed
    assert "it was not approved by anybody" in story.why_not(30)
    assert story.ask(12).is_allowed

    story.change(25, story.grant, approved_at=ago(25), approved_by=other)
    assert "it was not approved before" in story.why_not(30)
    assert story.ask(20).by.approved_by == "ben"  # type: ignore[union-attr]

    story.change(22, story.grant, approved_at=None, approved_by=None)
    assert story.ask(23).is_allowed
    assert "it was not approved" in story.why_not(20)


def test_a_key_that_was_revoked_or_had_expired_could_not(story: Story, boss: User):
    story.change(20, story.key, expires_at=ago(25))
    assert "had expired" not in story.ask(22).reason  # that was said later
    assert "had expired" in story.why_not(15)

    story.change(18, story.key, revoked_at=ago(18), revoked_by=boss, expires_at=None)
    assert story.ask(24).is_allowed
    assert "The key was revoked" in story.why_not(17)


def test_a_root_counts_with_the_path_that_it_had(
    story: Story, tmp_path_factory: pytest.TempPathFactory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    story.change(20, story.root, path=str(elsewhere))

    assert story.ask(30, str(story.folder)).is_allowed
    assert "in none of the roots" in story.why_not(15, str(story.folder))
    assert story.ask(15, str(elsewhere)).is_allowed
    assert "in none of the roots" in story.why_not(30, str(elsewhere))


def test_a_root_counts_with_the_name_that_it_had(story: Story):
    story.change(20, story.root, alias="store")

    assert story.ask(30, "shop").is_allowed
    assert "No root named" in story.why_not(15, "shop")
    assert story.ask(15, "store").is_allowed


def test_a_nested_folder_counts_and_its_neighbour_does_not(story: Story):
    assert story.ask(30, str(story.folder / "deep" / "er")).is_allowed
    assert story.ask(30, f"{story.folder}/deep/../deep/").is_allowed
    assert "in none of the roots" in story.why_not(30, f"{story.folder}-2")
    assert "in none of the roots" in story.why_not(30, f"{story.folder}/../other")


def test_a_key_s_other_roots_are_those_it_had_then(
    story: Story, tmp_path_factory: pytest.TempPathFactory
):
    before = LogEntry.objects.count()
    docs = AllowedRoot.objects.create(
        alias="docs", path=os.path.realpath(tmp_path_factory.mktemp("docs"))
    )
    story.key.allowed_roots.set([docs])
    at(20, before)

    assert story.ask(30, "shop").is_allowed
    assert "No root named" in story.why_not(15, "shop")
    assert "it was for shop" in story.why_not(15, "docs")
    assert "No root named" in story.why_not(30, "docs")  # there was none yet


def test_a_key_without_roots_had_those_of_the_settings(story: Story):
    before = LogEntry.objects.count()
    story.key.allowed_roots.clear()
    at(40, before)
    row = ProxySettings.load()
    row.save()
    before = LogEntry.objects.count()
    row.allowed_roots.add(story.root)
    at(20, before)

    assert story.ask(45).is_allowed
    assert "No root named" in story.why_not(30)
    assert story.ask(15).is_allowed


def test_a_deleted_root_is_remembered(story: Story):
    before = LogEntry.objects.count()
    story.grant.roots.clear()
    story.key.allowed_roots.clear()
    story.root.delete()
    at(20, before)

    assert story.ask(30).is_allowed
    assert "No root named" in story.why_not(15)


def test_reading_is_not_writing(story: Story):
    AgentGrant.objects.update(level="read")

    assert "reading only" in story.why_not(30)


def test_the_server_s_own_data_was_never_open(story: Story, settings: Any):
    AllowedRoot.objects.update(path=str(settings.DATA_DIR.root))
    story.grant.refresh_from_db()

    assert "own data directory" in story.why_not(30, str(settings.DATA_DIR.root))


# --- The page ---------------------------------------------------------------------------------


def test_the_page_answers_and_draws(auditor: Client, story: Story):
    question: Any = {
        "ask_key": story.key.pk,
        "place": "shop",
        "moment": f"{ago(30):%Y-%m-%dT%H:%M}",
    }

    page = auditor.get(PAGE, question)

    assert 'class="verdict yes"' in page.text
    assert "given by boss, approved by nobody" in page.text
    (lane,) = page.context["timeline"].lanes
    (bar,) = lane.told
    assert (bar.grant, bar.since, bar.until) == (story.grant, ago(50), ago(10))
    assert 0 < bar.left < 100
    assert f"{story.key.name} in shop" in page.text
    assert "<table" in page.text


def test_the_timeline_is_filtered(auditor: Client, story: Story, boss: User):
    other, _ = ApiKey.objects.issue(name="other", owner=boss)
    AgentGrant.objects.create(key=other, reason="x").roots.add(story.root)

    def keys(**query: Any) -> list[str]:
        lanes = auditor.get(PAGE, query).context["timeline"].lanes
        return [lane.key.name for lane in lanes]

    assert keys() == ["ci", "other"]
    assert keys(key=story.key.pk) == ["ci"]
    assert keys(root=story.root.pk) == ["ci", "other"]
    assert keys(since="2001-01-01", until="2001-02-01") == []
    assert auditor.get(PAGE, {"since": "2026-02-01", "until": "2026-01-01"}).status_code == 200


def test_a_bar_shows_what_did_not_count(auditor: Client, story: Story, boss: User):
    ApprovalRule.objects.create(since=ago(40), is_needed=True)
    story.change(20, story.grant, revoked_at=ago(20), revoked_by=boss)

    (lane,) = auditor.get(PAGE).context["timeline"].lanes

    assert [(bar.state, bar.until) for bar in lane.told] == [
        ("live", ago(40)),
        ("awaiting approval", ago(20)),
    ]
    assert lane.told[-1].was_cut


@pytest.mark.parametrize(
    "query",
    [
        {"ask_key": "x", "place": "", "moment": "yesterday"},
        {"ask_key": "1", "place": "/\x00", "moment": "2026-01-01T10:00"},
        {"key": "4711", "root": "x"},
        {"since": "1", "until": "9999-12-31"},
    ],
)
def test_nonsense_is_answered_with_the_page(auditor: Client, query: dict[str, str]):
    assert auditor.get(PAGE, query).status_code == 200


def test_who_may_not_see_grants_does_not_see_the_page(db: None):
    person = Client()
    assert person.get(PAGE).status_code == 302
    person.force_login(User.objects.create_user("guest", is_staff=True))
    assert person.get(PAGE).status_code == 403
