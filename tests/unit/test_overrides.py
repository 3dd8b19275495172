from __future__ import annotations

import pytest

from proxy.overrides import FORBIDDEN, OverrideRefused, check_override

FORMS = {
    "plain": '{key}="x"',
    "spaced": ' {key} = "x"',
    "quoted": '"{key}"="x"',
    "single quoted": "'{key}'=1",
    "dotted": '{key}.inner="x"',
    "inside another": 'other.{key}="x"',
    "deep inside": 'a.b."{key}".c="x"',
    "in an inline table": "other={{{key}=1}}",
    "in a nested table": "other={{a={{b={{{key}=1}}}}}}",
    "quoted in a table": 'other={{"{key}"=1}}',
    "escaped in a table": 'other={{"\\u{first:04x}{rest}"=1}}',
    "dotted in a table": "other={{a.{key}.b=1}}",
    "dotted inside one quoted name": 'other={{"a.{key}"=1}}',
    "in a list": "other=[{{a=1}}, {{{key}=1}}]",
    "in a table of newer TOML": "other={{{key}=1,}}",
    "in a broken table": "other={{{key}=nonsense}}",
}


@pytest.mark.parametrize(
    "text",
    [
        'model="gpt-5.5"',
        "model=gpt-5.5",
        "model_providers.own.base_url=http://127.0.0.1:1/v1",
        'model_providers.own={name="own", base_url="http://h/v1", env_key="KEY"}',
        "features.web_search=false",
        "notes=permissions are not touched by a text",
        'notes="sandbox_mode"',
        "list=[1, 2]",
        "x=a=b",
    ],
)
def test_an_override_that_weakens_nothing_is_fine(text: str):
    check_override(text)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", FORBIDDEN)
def test_a_forbidden_key_is_refused_in_every_form(key: str, form: str):
    text = FORMS[form].format(key=key, first=ord(key[0]), rest=key[1:])
    with pytest.raises(OverrideRefused, match="refused"):
        check_override(text)


@pytest.mark.parametrize("key", FORBIDDEN)
def test_a_refusal_says_why(key: str):
    with pytest.raises(OverrideRefused) as caught:
        check_override(f"{key}=1")
    assert FORBIDDEN[key] in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize("text", ["", "model", "=x", " =x", ".a=1", "a.=1", "a..b=1", '""=1'])
def test_what_is_no_assignment_is_refused(text: str):
    with pytest.raises(OverrideRefused, match="key=value"):
        check_override(text)
