"""What a process keeps of the policy is out of date with the next change, whoever makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.utils import timezone

from proxy import policy, policyversion
from proxy.errors import KeyRejected
from proxy.models import AllowedRoot, ApiKey, PolicyVersion, ProxySettings

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    policy._known = None
    yield
    policy._known = None


@pytest.fixture
def issued(tmp_path: Path) -> tuple[ApiKey, str]:
    owner = User.objects.create_user("owner")
    root = AllowedRoot.objects.create(alias="a", path=str(tmp_path))
    key, secret = ApiKey.objects.issue(name="laptop", owner=owner, default_root=root)
    key.allowed_roots.add(root)
    return key, secret


def ask(secret: str) -> policy.Caller:
    return policy.authenticate(secret, may_be_anonymous=False)[0]


def test_a_known_key_costs_one_query(issued: tuple[ApiKey, str], django_assert_num_queries: Any):
    _, secret = issued
    ask(secret)
    with django_assert_num_queries(1):
        caller = ask(secret)
    assert (caller.name, [root.alias for root in caller.roots]) == ("laptop", ["a"])


CHANGES: dict[str, Callable[[ApiKey], object]] = {
    "a key's column": lambda key: ApiKey.objects.filter(pk=key.pk).update(name="new"),
    "a key's roots": lambda key: key.allowed_roots.clear(),
    "a root": lambda key: AllowedRoot.objects.update(path="/elsewhere"),
    "the settings": lambda key: ProxySettings(model="other").save(),
    "the settings' roots": lambda key: _with_row().allowed_roots.add(AllowedRoot.objects.get()),
    "an owner's name": lambda key: User.objects.update(username="other"),
    "a new key": lambda key: ApiKey.objects.issue(name="two", owner=key.owner),
    "a deleted key": lambda key: ApiKey.objects.filter(pk=key.pk).delete(),
}


def _with_row() -> ProxySettings:
    row = ProxySettings.load()
    row.save()
    return row


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_the_policy_gives_another_number(
    issued: tuple[ApiKey, str], change: Callable[[ApiKey], object]
):
    before = policyversion.read_version()
    change(issued[0])
    assert policyversion.read_version() != before


def test_when_a_key_was_used_last_is_no_change_of_the_policy(issued: tuple[ApiKey, str]):
    before = policyversion.read_version()
    ApiKey.objects.update(last_used_at="2026-01-01T00:00:00Z")
    User.objects.update(last_login="2026-01-01T00:00:00Z")
    assert policyversion.read_version() == before


def test_a_revoked_key_opens_nothing_from_the_next_request_on(issued: tuple[ApiKey, str]):
    key, secret = issued
    ask(secret)
    ApiKey.objects.filter(pk=key.pk).update(revoked_at="2026-01-01T00:00:00Z")
    with pytest.raises(KeyRejected):
        ask(secret)


def test_an_expiry_that_comes_while_the_key_is_known_holds(
    issued: tuple[ApiKey, str], monkeypatch: pytest.MonkeyPatch
):
    key, secret = issued
    key.expires_at = timezone.now() + timedelta(hours=1)
    key.save()
    ask(secret)
    later = timezone.now() + timedelta(hours=2)
    monkeypatch.setattr(timezone, "now", lambda: later)
    with pytest.raises(KeyRejected):
        ask(secret)


def test_a_rotated_secret_that_is_known_ends_with_its_grace(
    issued: tuple[ApiKey, str], monkeypatch: pytest.MonkeyPatch
):
    key, secret = issued
    key.rotate(timedelta(hours=1))
    ask(secret)
    later = timezone.now() + timedelta(hours=2)
    monkeypatch.setattr(timezone, "now", lambda: later)
    with pytest.raises(KeyRejected):
        ask(secret)


def test_a_change_that_is_rolled_back_leaves_nothing_known_behind(issued: tuple[ApiKey, str]):
    """A number that counts would come again with the next change, and with it the lost name."""
    key, secret = issued
    with transaction.atomic():
        ApiKey.objects.filter(pk=key.pk).update(name="lost")
        assert ask(secret).name == "lost"
        transaction.set_rollback(True)
    ApiKey.objects.filter(pk=key.pk).update(name="kept")
    assert ask(secret).name == "kept"


def test_without_the_number_nothing_is_kept(
    issued: tuple[ApiKey, str], django_assert_max_num_queries: Any
):
    key, secret = issued
    ask(secret)
    PolicyVersion.objects.all().delete()
    assert ask(secret).name == "laptop"
    ApiKey.objects.filter(pk=key.pk).update(name="new")
    assert ask(secret).name == "new"


def test_a_migration_makes_the_triggers_anew(issued: tuple[ApiKey, str]):
    key, _ = issued
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER policyversion_proxy_apikey_update")
    policyversion.install()
    before = policyversion.read_version()
    ApiKey.objects.filter(pk=key.pk).update(name="new")
    assert policyversion.read_version() != before
