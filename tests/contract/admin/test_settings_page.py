"""The one row of options: errors at their field, the environment's values read-only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.test import Client

from proxy.models import AllowedRoot, ChangeEntry, ProxySettings

pytestmark = pytest.mark.django_db

PAGE = "/admin/proxy/proxysettings/1/change/"
UNCHANGED = {
    "engine": "app-server", "workers": 1, "turns_per_worker": 100, "max_concurrency": 4,
    "max_queue_size": 64, "queue_timeout_seconds": 30.0, "timeout_seconds": 300.0, "model": "",
    "ephemeral": "on", "codex_configs": "", "codex_bin": "", "app_server_codex_home": "",
    "proxy": "", "default_cwd": "", "log_level": "info", "reasoning": "on", "max_choices": 4,
    "worker_max_mb": 1024, "worker_max_hours": 24.0, "is_lean": "on",
    "action_output_chars": 2000, "action_diff_chars": 20_000, "compared_files": 20_000,
}  # fmt: skip


def save(client: Client, **changes: Any) -> Any:
    return client.post(PAGE, {**UNCHANGED, **changes})


def error_of(response: Any, field: str) -> str:
    form = response.context["adminform"].form
    assert set(form.errors) == {field}
    return str(form.errors[field][0])


def test_the_list_leads_to_the_one_row(client: Client):
    response = client.get("/admin/proxy/proxysettings/", follow=True)

    assert response.redirect_chain == [(PAGE, 302)]
    assert not ChangeEntry.objects.filter(content_type__model="proxysettings").exists()


def test_overrides_are_edited_one_a_line(client: Client, root: AllowedRoot):
    lines = 'model_verbosity="low"\n\nmodel_reasoning_effort="high"\n'

    response = save(client, codex_configs=lines, workers=3, allowed_roots=[root.pk])

    assert response.status_code == 302
    row = ProxySettings.load()
    assert row.codex_configs == ['model_verbosity="low"', 'model_reasoning_effort="high"']
    assert (row.workers, list(row.allowed_roots.all())) == (3, [root])
    area = client.get(PAGE).context["adminform"].form["codex_configs"]
    assert area.value() == lines.replace("\n\n", "\n").strip()


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ('sandbox_mode="danger-full-access"', "the sandbox is decided per request by the policy"),
        ('projects."/w".trust_level="trusted"', "runs code outside the sandbox"),
        ("nonsense", "not of the form key=value"),
    ],
)
def test_an_override_that_weakens_the_sandbox_is_refused_with_the_reason(
    client: Client, override: str, reason: str
):
    response = save(client, codex_configs=override)

    assert reason in error_of(response, "codex_configs")
    assert ProxySettings.load().codex_configs == []


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("engine", "warp", "Select a valid choice"),
        ("codex_bin", "no-such-codex", "no such program"),
        ("default_cwd", "relative/path", "must be absolute"),
        ("default_cwd", "/no/such/folder", "no such directory"),
        ("proxy", "http://me:pass@proxy:3128", "CODEX_PROXY_PROXY"),
        ("app_server_codex_home", "relative", "must be absolute"),
        ("workers", "0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_refused_at_its_field(client: Client, field: str, value: str, reason: str):
    assert reason in error_of(save(client, **{field: value}), field)


def test_a_value_of_the_environment_is_shown_read_only_with_its_variable(
    client: Client, settings: LazySettings
):
    settings.OPTION_OVERRIDES = {
        "engine": "exec",
        "codex_configs": ['model_verbosity="low"', 'model_providers.x.api_key="sk-hidden"'],
        "proxy": "http://me:sesame@proxy:3128",
    }

    response = client.get(PAGE)

    text = response.content.decode()
    assert not {"engine", "codex_configs", "proxy"} & set(response.context["adminform"].form.fields)
    for shown in (
        "CODEX_PROXY_ENGINE", "exec", "CODEX_PROXY_CODEX_CONFIGS", "model_verbosity",
        "http://***@proxy:3128", "api_key=***",
    ):  # fmt: skip
        assert shown in text
    assert "sk-hidden" not in text
    assert "sesame" not in text


def test_saving_leaves_the_stored_value_under_the_environments_one(
    client: Client, settings: LazySettings
):
    ProxySettings(engine="app-server", codex_configs=["a=1"]).save()
    settings.OPTION_OVERRIDES = {"engine": "exec", "codex_configs": ["b=2"]}

    response = save(client, engine="exec", codex_configs="c=3", workers=2)

    assert response.status_code == 302
    row = ProxySettings.load()
    assert (row.engine, row.codex_configs, row.workers) == ("app-server", ["a=1"], 2)


def test_an_auditor_does_not_read_credentials_in_overrides(auditor: Client):
    ProxySettings(codex_configs=['model_providers.x.experimental_bearer_token="sk-own"']).save()

    text = auditor.get(PAGE).content.decode()

    assert "experimental_bearer_token=***" in text
    assert "sk-own" not in text


def test_a_root_that_opens_the_data_directory_is_refused(
    client: Client, settings: LazySettings, tmp_path: Path
):
    data = settings.DATA_DIR.root

    for path in (data, data.parent, settings.DATA_DIR.codex_home):
        assert "data directory" in error_of(save(client, default_cwd=str(path)), "default_cwd")
