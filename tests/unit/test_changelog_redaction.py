"""Credentials are starred before others read them."""

from __future__ import annotations

import pytest

from proxy.redaction import redact, redact_override, redact_url


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ('model_verbosity="low"', 'model_verbosity="low"'),
        ("model_max_output_tokens=5", "model_max_output_tokens=5"),
        ('model_providers.x.experimental_bearer_token="sk"', "model_providers.x.experimental_bearer_token=***"),
        ('model_providers.x={ http_headers = { Authorization = "Basic abc" } }', "model_providers.x=***"),
        ('model_providers.x.base_url="http://u:p@h/v1"', 'model_providers.x.base_url="http://***@h/v1"'),
        ("no value", "no value"),
    ],
)  # fmt: skip
def test_an_override_with_a_credential_loses_its_value(override: str, shown: str):
    assert redact_override(override) == shown


def test_a_url_keeps_its_host():
    assert redact_url("http://me:pass@proxy:3128") == "http://***@proxy:3128"
    assert redact_url("http://proxy:3128") == "http://proxy:3128"


def test_a_list_as_json_is_redacted_item_by_item():
    assert redact('["a=1", "x.token=\\"sk\\""]') == '["a=1", "x.token=***"]'
    assert redact("None") == "None"
