"""People with each role, and a policy to look at."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client

from proxy.models import AgentGrant, AllowedRoot, ApiKey

pytestmark = pytest.mark.django_db


def logged_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def boss(db: None) -> User:
    return User.objects.create_superuser("boss")


@pytest.fixture
def client(boss: User) -> Client:
    """The superuser's browser."""
    return logged_in(boss)


def _member(name: str, role: str) -> User:
    user = User.objects.create_user(name, is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    return user


@pytest.fixture
def auditor(db: None) -> Client:
    return logged_in(_member("ann", "Auditor"))


@pytest.fixture
def operator(db: None) -> Client:
    return logged_in(_member("olaf", "Operator"))


@pytest.fixture
def administrator(db: None) -> Client:
    return logged_in(_member("ada", "Administrator"))


@pytest.fixture
def root(db: None, tmp_path_factory: pytest.TempPathFactory) -> AllowedRoot:
    return AllowedRoot.objects.create(alias="shop", path=str(tmp_path_factory.mktemp("shop")))


@pytest.fixture
def key(boss: User, root: AllowedRoot) -> ApiKey:
    key, _ = ApiKey.objects.issue(name="ci", owner=boss)
    key.allowed_roots.add(root)
    return key


@pytest.fixture
def grant(key: ApiKey, root: AllowedRoot, boss: User) -> AgentGrant:
    grant = AgentGrant.objects.create(key=key, reason="upgrades", granted_by=boss)
    grant.roots.add(root)
    return grant
