"""The chores before a server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from pytest_django.fixtures import Settings

from codexsite import bootstrap
from codexsite.bootstrap import AddressRefused, FirstRun
from codexsite.datadir import DataDir
from proxy.models import AllowedRoot, ApiKey, ProxySettings


@pytest.fixture
def data_dir(tmp_path: Path, settings: Settings) -> DataDir:
    settings.DATA_DIR = DataDir(tmp_path)
    settings.DATA_DIR.prepare()
    return DataDir(tmp_path)


@pytest.mark.django_db
def test_first_run_makes_an_admin_a_key_and_a_root(data_dir: DataDir) -> None:
    first = bootstrap.prepare()
    admin = User.objects.get(username=first.admin_name, is_superuser=True)
    assert admin.check_password(first.password)
    key = ApiKey.objects.find(first.api_key)
    assert key is not None
    assert key.owner == admin
    assert AllowedRoot.objects.get().path == str(data_dir.workspace)


@pytest.mark.django_db
def test_later_runs_make_and_tell_nothing(data_dir: DataDir) -> None:
    admin = bootstrap.prepare().admin_name
    AllowedRoot.objects.all().delete()
    assert bootstrap.prepare() == FirstRun(admin)
    assert not AllowedRoot.objects.exists()
    assert ApiKey.objects.count() == User.objects.count() == 1


@pytest.mark.django_db
def test_admin_who_was_there_before_owns_the_first_key(data_dir: DataDir) -> None:
    User.objects.create_user("admin")
    root = User.objects.create_superuser("root")
    first = bootstrap.prepare()
    assert first.password == ""
    assert ApiKey.objects.get().owner == root


@pytest.mark.django_db
def test_name_of_an_ordinary_user_is_not_taken_over(data_dir: DataDir) -> None:
    User.objects.create_user("admin", password="theirs")
    first = bootstrap.prepare()
    assert first.admin_name.startswith("admin-")
    assert User.objects.get(username="admin").check_password("theirs")


@pytest.mark.django_db
def test_login_is_asked_for_only_where_it_is_missing(data_dir: DataDir, settings: Settings) -> None:
    settings.DEMO, settings.OPTION_OVERRIDES = False, {}
    assert "python manage.py codex login" in bootstrap.login_hint()
    (data_dir.codex_home / "auth.json").touch()
    assert bootstrap.login_hint() == ""
    elsewhere = data_dir.scratch
    ProxySettings(app_server_codex_home=str(elsewhere)).save()
    assert bootstrap.login_hint()
    settings.OPTION_OVERRIDES = {"codex_configs": ['model_provider="own"']}
    assert bootstrap.login_hint() == ""
    settings.DEMO, settings.OPTION_OVERRIDES = True, {}
    assert bootstrap.login_hint() == ""


@pytest.mark.django_db
def test_summary_shows_secrets_only_where_they_were_just_made(
    data_dir: DataDir, settings: Settings
) -> None:
    settings.DEMO = True
    text = bootstrap.summary("::", 80, FirstRun("admin", "pw-1", "sk-1"))
    assert "Admin: http://[::1]:80/admin/  user admin  password (shown once): pw-1\n" in text
    assert "API key (shown once): sk-1\n" in text
    assert "demo" in text
    assert "shown once" not in bootstrap.summary("127.0.0.1", 80, FirstRun("admin"))


def test_port_is_the_one_asked_for_or_a_free_one() -> None:
    chosen = bootstrap.free_port("127.0.0.1", 0)
    assert chosen > 0
    assert bootstrap.free_port("127.0.0.1", chosen) == chosen


def test_taken_port_is_refused_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressRefused, match=f"127.0.0.1:{port}: Address already in use"):
            bootstrap.free_port("127.0.0.1", port)


@pytest.mark.parametrize(("host", "count"), [("127.0.0.1", 0), ("192.0.2.7", 1), ("0.0.0.0", 2)])
def test_address_that_others_reach_is_warned_about(
    host: str, count: int, settings: Settings
) -> None:
    settings.ALLOWED_HOSTS = ["localhost"]
    assert len(bootstrap.warnings(host)) == count
