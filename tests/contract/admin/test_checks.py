"""System checks: a wrong setting is named before the first request fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.conf import LazySettings
from django.core.checks import CheckMessage, run_checks

from proxy.models import AllowedRoot, ProxySettings

pytestmark = pytest.mark.django_db


def found(*, stored: bool = False) -> dict[str, str]:
    """Return our own messages by id, of the checks without or with the database."""
    databases = ["default"] if stored else None
    messages: list[CheckMessage] = run_checks(databases=databases)
    ours = [message for message in messages if str(message.id).startswith("proxy.")]
    return {str(message.id): str(message.msg) for message in ours}


def test_an_untouched_installation_is_silent(settings: LazySettings):
    settings.OPTION_OVERRIDES = {}

    assert found() == {}
    assert found(stored=True) == {}


def test_a_missing_codex_binary_is_an_error(settings: LazySettings):
    settings.OPTION_OVERRIDES = {"codex_bin": "/no/such/codex"}

    assert "CODEX_PROXY_CODEX_BIN" in found()["proxy.E001"]


def test_a_file_that_cannot_be_run_is_no_codex_binary(settings: LazySettings, tmp_path: Path):
    (tmp_path / "codex").write_text("")
    settings.OPTION_OVERRIDES = {"codex_bin": str(tmp_path / "codex")}

    assert "proxy.E001" in found()


def test_a_missing_root_is_a_warning(settings: LazySettings):
    settings.OPTION_OVERRIDES = {"allowed_roots": ["/no/such/root"]}

    assert "/no/such/root" in found()["proxy.W002"]


def test_an_override_that_weakens_the_sandbox_is_an_error(settings: LazySettings):
    settings.OPTION_OVERRIDES = {"codex_configs": ['sandbox_mode="danger-full-access"']}

    assert "decided per request by the policy" in found()["proxy.E003"]


@pytest.mark.parametrize(
    ("host", "is_heard"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("", True)],
)
def test_anonymous_access_beyond_loopback_is_a_warning(
    settings: LazySettings, host: str, is_heard: bool
):
    settings.ALLOW_ANONYMOUS, settings.HOST = True, host

    assert ("proxy.W004" in found()) is is_heard


def test_what_the_admin_stored_is_checked_with_the_database(settings: LazySettings):
    settings.OPTION_OVERRIDES = {}
    AllowedRoot.objects.create(alias="gone", path="/no/such/root")
    ProxySettings(codex_bin="no-such-codex", codex_configs=["sandbox_mode=x"]).save()

    assert found() == {}
    assert set(found(stored=True)) == {"proxy.E001", "proxy.W002", "proxy.E003"}
