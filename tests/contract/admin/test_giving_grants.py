"""A grant in one step, by one person or by two; longer, shorter, and never more than was approved."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from proxy.models import AgentGrant, AllowedRoot, ApiKey, ChangeEntry
from tests.contract.admin.conftest import logged_in

pytestmark = pytest.mark.django_db


@pytest.fixture
def two_needed(settings: Any) -> None:
    settings.GRANTS_NEED_APPROVAL = True


@pytest.fixture
def second(db: None) -> Client:
    user = User.objects.create_user("ben", is_staff=True)
    user.groups.add(Group.objects.get(name="Administrator"))
    return logged_in(user)


def page_of(grant: AgentGrant, name: str = "change") -> str:
    return f"/admin/proxy/agentgrant/{grant.pk}/{name}/"


def give(client: Client, key: ApiKey, root: AllowedRoot, **fields: str) -> Any:
    data = {"roots": [root.pk], "level": "write", "period": "1", "reason": "upgrades", **fields}
    return client.post(f"/admin/proxy/apikey/{key.pk}/give_grant/", data)


def approve(client: Client, grant: AgentGrant) -> int:
    """Press the button as a browser does: with what was seen on the page."""
    shown = client.get(page_of(grant, "approve"))
    seen = shown.context["seen"] if shown.status_code == 200 else "x"
    return client.post(page_of(grant, "approve"), {"seen": seen}).status_code


@pytest.mark.parametrize(("period", "hours"), [("1", 1), ("8", 8)])
def test_a_grant_is_given_from_the_key_s_page(
    administrator: Client, key: ApiKey, root: AllowedRoot, period: str, hours: int
):
    fields = {"period": period, "level": "network", "reads_agents_md": "on"}

    assert "/give_grant/" in administrator.get(f"/admin/proxy/apikey/{key.pk}/change/").text
    assert give(administrator, key, root, **fields).status_code == 302

    grant = AgentGrant.objects.get()
    assert grant.ends_at is not None
    assert abs(grant.ends_at - timezone.now() - timedelta(hours=hours)) < timedelta(minutes=1)
    assert (grant.level, grant.reads_agents_md, grant.state) == ("network", True, "live")
    assert grant.granted_by is not None
    assert grant.granted_by.get_username() == "ada"
    assert list(grant.roots.all()) == [root]


def test_a_grant_is_given_until_a_time(administrator: Client, key: ApiKey, root: AllowedRoot):
    give(administrator, key, root, period="until", until="2031-05-03T10:00")

    grant = AgentGrant.objects.get()
    assert grant.ends_at is not None
    assert f"{grant.ends_at:%d %b %Y %H:%M}" == "03 May 2031 10:00"


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"reason": " "}, "reason"),
        ({"period": "until"}, "until"),
        ({"period": "until", "until": "2001-01-01T10:00"}, "until"),
        ({"period": "9"}, "period"),
        ({"level": "all"}, "level"),
    ],
)
def test_what_is_missing_is_said_at_the_field(
    administrator: Client, key: ApiKey, root: AllowedRoot, fields: dict[str, str], where: str
):
    response = give(administrator, key, root, **fields)

    assert where in response.context["form"].errors
    assert not AgentGrant.objects.exists()


def test_only_roots_that_the_key_may_work_in_are_offered(
    administrator: Client, key: ApiKey, root: AllowedRoot, tmp_path: Any
):
    other = AllowedRoot.objects.create(alias="docs", path=str(tmp_path))
    page = f"/admin/proxy/apikey/{key.pk}/give_grant/"

    assert root.path in administrator.get(page).text
    assert other.path not in administrator.get(page).text
    assert "roots" in give(administrator, key, other).context["form"].errors

    key.allowed_roots.clear()
    assert "a grant would have no effect" in administrator.get(page).text


def test_no_grant_is_given_to_a_dead_key(administrator: Client, key: ApiKey, root: AllowedRoot):
    key.revoke()

    assert give(administrator, key, root).status_code == 403


def test_the_end_is_moved_by_a_button_and_that_is_on_record(
    administrator: Client, grant: AgentGrant
):
    first = timezone.now() + timedelta(hours=1)
    grant.move_end(first)

    assert administrator.post(page_of(grant, "extend"), {"period": "8"}).status_code == 302

    grant.refresh_from_db()
    assert grant.ends_at == first + timedelta(hours=8)
    entry = ChangeEntry.objects.filter(object_id=grant.pk).latest("id")
    assert "ends_at" in entry.changes
    assert str(entry.actor) == "ada"


def test_only_what_is_open_and_ends_can_be_extended(administrator: Client, grant: AgentGrant):
    assert administrator.get(page_of(grant, "extend")).status_code == 403  # it has no end

    grant.move_end(timezone.now())
    assert administrator.post(page_of(grant, "extend"), {"period": "8"}).status_code == 403


# --- Two persons ------------------------------------------------------------------------------


def test_without_the_rule_a_grant_counts_at_once(
    administrator: Client, key: ApiKey, root: AllowedRoot
):
    give(administrator, key, root)

    assert AgentGrant.objects.covering(key, root.path) is not None


def test_with_the_rule_it_counts_once_another_one_has_approved_it(
    administrator: Client, second: Client, key: ApiKey, root: AllowedRoot, two_needed: None
):
    give(administrator, key, root)
    grant = AgentGrant.objects.get()
    assert "does not count before a second person" in administrator.get(page_of(grant)).text
    assert grant.state == "awaiting approval"
    assert AgentGrant.objects.covering(key, root.path) is None

    assert approve(second, grant) == 302

    grant.refresh_from_db()
    assert (grant.state, str(grant.approved_by)) == ("live", "ben")
    assert AgentGrant.objects.covering(key, root.path) == grant


def test_nobody_approves_a_grant_of_their_own_by_any_path(
    client: Client, boss: User, key: ApiKey, root: AllowedRoot, two_needed: None
):
    give(client, key, root)
    grant = AgentGrant.objects.get()

    assert "/approve/" not in client.get(page_of(grant)).text
    assert approve(client, grant) == 403
    fields = {"ends_at_0": "2031-01-01", "ends_at_1": "10:00"}
    client.post(page_of(grant), {**fields, "approved_by": boss.pk, "approved_at_0": "2026-01-01"})
    client.post(page_of(grant), {**fields, "granted_by": ""})

    grant.refresh_from_db()
    assert (grant.approved_by, grant.granted_by, grant.state) == (None, boss, "awaiting approval")
    with pytest.raises(ValidationError):
        grant.approve(by=boss)
    with pytest.raises(IntegrityError), transaction.atomic():
        AgentGrant.objects.filter(pk=grant.pk).update(approved_by=boss)


def test_approving_takes_the_permission(
    operator: Client, auditor: Client, grant: AgentGrant, two_needed: None
):
    for person in (operator, auditor):
        assert "/approve/" not in person.get(page_of(grant)).text
        assert approve(person, grant) == 403


def test_what_was_approved_is_what_was_seen(
    second: Client, grant: AgentGrant, root: AllowedRoot, tmp_path: Any, two_needed: None
):
    seen = second.get(page_of(grant, "approve")).context["seen"]
    root.path = str(tmp_path)
    root.save()

    response = second.post(page_of(grant, "approve"), {"seen": seen})

    assert "has changed since you saw it" in response.text
    grant.refresh_from_db()
    assert grant.approved_at is None


def test_switching_the_rule_on_stops_what_nobody_approved(
    client: Client, grant: AgentGrant, root: AllowedRoot, settings: Any
):
    assert grant.state == "live"

    settings.GRANTS_NEED_APPROVAL = True

    assert grant.state == "awaiting approval"
    assert AgentGrant.objects.covering(grant.key, root.path) is None
    assert "from before the rule" in client.get("/admin/proxy/agentgrant/").text
    assert "so it does not count" in client.get(page_of(grant)).text
    listed = client.get("/admin/proxy/agentgrant/?state=awaiting+approval")
    assert list(listed.context["cl"].queryset) == [grant]


def test_a_longer_grant_asks_again_and_leaves_what_was_approved(
    second: Client, client: Client, grant: AgentGrant, two_needed: None
):
    end = timezone.now() + timedelta(hours=1)
    grant.move_end(end)
    assert approve(second, grant) == 302
    grant.refresh_from_db()

    later = {"ends_at_0": "2031-01-01", "ends_at_1": "10:00"}
    assert "Extend" in str(client.post(page_of(grant), later).context["adminform"].form.errors)
    assert client.post(page_of(grant, "extend"), {"period": "8"}).status_code == 302

    grant.refresh_from_db()
    following = AgentGrant.objects.exclude(pk=grant.pk).get()
    assert (grant.state, grant.ends_at) == ("live", end)
    assert (following.state, following.starts_at) == ("awaiting approval", end)
    assert following.ends_at == end + timedelta(hours=8)
    assert (following.key, following.level) == (grant.key, grant.level)
    assert set(following.roots.all()) == set(grant.roots.all())
    assert approve(client, following) == 403


def test_without_the_rule_a_later_end_voids_an_approval(second: Client, grant: AgentGrant):
    grant.move_end(timezone.now() + timedelta(hours=1))
    assert approve(second, grant) == 302

    grant.refresh_from_db()
    grant.move_end(timezone.now() + timedelta(minutes=30))
    assert grant.approved_at is not None
    grant.move_end(None)
    assert grant.approved_at is None


def test_another_folder_behind_a_root_was_never_approved(
    second: Client, grant: AgentGrant, root: AllowedRoot, tmp_path: Any, two_needed: None
):
    approve(second, grant)
    root.description = "the shop"
    root.save()
    grant.refresh_from_db()
    assert grant.state == "live"

    root.path = str(tmp_path)
    root.save()

    grant.refresh_from_db()
    assert grant.state == "awaiting approval"


def test_an_operator_does_not_move_the_folder_of_a_grant(
    operator: Client, grant: AgentGrant, root: AllowedRoot, tmp_path: Any
):
    page, before = f"/admin/proxy/allowedroot/{root.pk}/change/", root.path

    assert operator.post(page, {"alias": "shop", "path": str(tmp_path)}).status_code == 302
    root.refresh_from_db()
    assert root.path == before

    grant.revoke()
    operator.post(page, {"alias": "shop", "path": str(tmp_path)})
    root.refresh_from_db()
    assert root.path == str(tmp_path)


def test_of_several_grants_the_highest_level_counts(grant: AgentGrant, root: AllowedRoot):
    AgentGrant.objects.filter(pk=grant.pk).update(level="read")
    higher = AgentGrant.objects.create(key=grant.key, reason="x", level="write")
    higher.roots.add(root)

    assert AgentGrant.objects.covering(grant.key, root.path) == higher
