"""What strict mode is sent for a caller's schema, and that its answers come back as the caller's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import InvalidRequest, ProxyError
from proxy.structured import (
    AnswerInvalid,
    OutputFormat,
    output_format,
    repair_request,
    strict_schema,
)

SCHEMA = "response_format.json_schema.schema"
STRICT_KEYS = frozenset(
    ("type", "properties", "required", "additionalProperties", "items", "enum", "anyOf", "$ref",
     "$defs", "description", "pattern", "format", "multipleOf", "minimum", "maximum",
     "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems")
)  # fmt: skip


def asked(schema: object, **more: object) -> OutputFormat:
    wanted = {"name": "answer", "schema": schema, **more}
    made = output_format({"type": "json_schema", "json_schema": wanted})
    assert made is not None
    return made


def read(schema: object, answer: object) -> Any:
    return json.loads(asked(schema).read(json.dumps(answer)))


def strict_faults(schema: Any, *, is_root: bool = True) -> Iterator[str]:
    """Everything that OpenAI's strict mode refuses, as its documentation lists it."""
    if is_root:
        if schema.get("type") != "object" or "anyOf" in schema:
            yield "the root is no object"
        for part in schema.get("$defs", {}).values():
            yield from strict_faults(part, is_root=False)
    if unknown := schema.keys() - STRICT_KEYS:
        yield f"keywords {unknown}"
    if "$ref" in schema:
        if schema.keys() != {"$ref"}:
            yield "something beside $ref"
        return
    if "anyOf" not in schema and "type" not in schema:
        yield "no type"
    if schema.get("type") == "object":
        if schema["additionalProperties"] is not False:
            yield "an open object"
        if sorted(schema["required"]) != sorted(schema["properties"]):
            yield "an optional property"
        for child in schema["properties"].values():
            yield from strict_faults(child, is_root=False)
    if schema.get("type") == "array":
        yield from strict_faults(schema["items"], is_root=False)
    for child in schema.get("anyOf", []):
        yield from strict_faults(child, is_root=False)


# Schemas with a value of theirs, and that value as a strict model would write it: one table of
# what each kind of schema becomes, made here without a look at the code under test.

names = st.sampled_from(["a", "b", "c d", "entries", "value", "$ref", "type", "ünï"])
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(-2, 2, width=16), st.text(max_size=4)
)
any_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)
extras: st.SearchStrategy[Schema] = st.sampled_from(
    [{}, {"description": "what it is"}, {"title": "T"}, {"default": None}, {"examples": [1]}]
)
Schema = dict[str, Any]
Case = tuple[Schema, Any, Any]


def as_any(value: Any) -> Any:
    if isinstance(value, list):
        return [as_any(item) for item in value]
    if isinstance(value, dict):
        return entries({key: as_any(item) for key, item in value.items()})
    return value


def entries(pairs: dict[str, Any]) -> dict[str, Any]:
    return {"entries": [{"key": key, "value": value} for key, value in pairs.items()]}


PLAIN: list[tuple[Schema, st.SearchStrategy[Any]]] = [
    ({"type": "string"}, st.text(max_size=5)),
    ({"type": "string", "minLength": 2, "maxLength": 9}, st.text(min_size=2, max_size=9)),
    ({"type": "string", "pattern": "^[a-c]+$"}, st.text("abc", min_size=1)),
    ({"type": "string", "pattern": "^(?!x).*$"}, st.text("abc")),
    ({"type": "string", "format": "date"}, st.just("2026-01-02")),
    ({"type": "integer", "minimum": 0}, st.integers(0, 10**30)),
    ({"type": "number", "exclusiveMaximum": 3}, st.floats(-9, 2)),
    ({"type": "boolean"}, st.booleans()),
    ({"type": "null"}, st.none()),
    ({"type": ["string", "null"]}, st.none() | st.text(max_size=3)),
    ({"type": ["integer", "string"], "minimum": 3, "minLength": 1},
     st.integers(3, 9) | st.just("x")),
    ({"enum": ["x", 1, None, True]}, st.sampled_from(["x", 1, None, True])),
    ({"const": {"k": [1]}}, st.just({"k": [1]})),
    ({"const": 5}, st.just(5)),
    ({"not": {"type": "string"}, "type": ["string", "integer"]}, st.integers(1, 2)),
]  # fmt: skip


@st.composite
def plain_cases(draw: st.DrawFn) -> Case:
    schema, values = draw(st.sampled_from(PLAIN))
    value = draw(values)
    return {**schema, **draw(extras)}, value, as_any(value)


@st.composite
def any_cases(draw: st.DrawFn) -> Case:
    value = draw(any_values)
    return draw(extras), value, as_any(value)


def list_cases(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    @st.composite
    def build(draw: st.DrawFn) -> Case:
        schema, value, coded = draw(inner)
        times = draw(st.integers(0, 2))
        return (
            {"type": "array", "items": schema, "uniqueItems": False},
            [value] * times,
            [coded] * times,
        )

    return build()


def map_cases(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    @st.composite
    def build(draw: st.DrawFn) -> Case:
        schema, value, coded = draw(inner)
        keys = draw(st.lists(names, unique=True, max_size=2))
        whole = {"type": "object", "additionalProperties": schema, "minProperties": 0}
        if draw(st.booleans()):
            whole["patternProperties"] = {"^zz": {"type": "string"}}
        return whole, dict.fromkeys(keys, value), entries(dict.fromkeys(keys, coded))

    return build()


def allows_null(schema: Any) -> bool:
    """As the caller's schema says at its face; the cases above have no other way."""
    if "anyOf" in schema or "oneOf" in schema:
        return any(allows_null(part) for part in schema.get("anyOf", schema.get("oneOf")))
    if "allOf" in schema:
        return all(allows_null(part) for part in schema["allOf"])
    if "enum" in schema:
        return None in schema["enum"]
    if "const" in schema:
        return isinstance(schema["const"], dict)  # kept as any JSON: null survives to be refused
    return "type" not in schema or "null" in schema["type"]


def object_cases(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    @st.composite
    def build(draw: st.DrawFn) -> Case:
        properties: Schema = {}
        value: dict[str, Any] = {}
        coded: dict[str, Any] = {}
        required: list[str] = []
        for name in draw(st.lists(names, unique=True, min_size=1, max_size=3)):
            properties[name], item, item_coded = draw(inner)
            is_required = draw(st.booleans())
            required += [name] * is_required
            if not is_required and not allows_null(properties[name]) and draw(st.booleans()):
                coded[name] = None
            else:
                value[name], coded[name] = item, item_coded
        schema: Schema = {"type": "object", "properties": properties, "required": required}
        if draw(st.booleans()):
            schema["additionalProperties"] = False
        if draw(st.booleans()):  # the same in two halves
            half = {"type": "object", "properties": schema.pop("properties")}
            schema.pop("additionalProperties", None)
            schema = {"allOf": [half, schema]}
        return schema, value, coded

    return build()


def choice_cases(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    @st.composite
    def build(draw: st.DrawFn) -> Case:
        schema, value, coded = draw(inner)
        # Told apart by a tag, as callers do: an answer must not be ambiguous by itself.
        tagged = {
            "type": "object",
            "properties": {"tag": {"const": "it"}, "it": schema},
            "required": ["tag", "it"],
        }
        other = {"type": "object", "properties": {"tag": {"const": "no"}}, "required": ["tag"]}
        word = draw(st.sampled_from(["anyOf", "oneOf"]))
        return {word: [other, tagged]}, {"tag": "it", "it": value}, {"tag": "it", "it": coded}

    return build()


cases = st.recursive(
    st.one_of(plain_cases(), any_cases()),
    lambda inner: st.one_of(
        list_cases(inner), map_cases(inner), object_cases(inner), choice_cases(inner)
    ),
    max_leaves=4,
)


def is_wrapped(schema: dict[str, Any]) -> bool:
    return schema.get("type", "object" if "allOf" in schema else None) != "object"


@settings(max_examples=300, deadline=None)
@given(cases)
def test_every_value_of_a_schema_comes_back_equal_through_its_strict_form(case: Case) -> None:
    schema, value, coded = case
    made = asked(schema)
    assert made.schema_for_codex is not None
    assert list(strict_faults(made.schema_for_codex)) == []
    answer = {"value": coded} if is_wrapped(schema) else coded
    given_back = json.loads(made.read(json.dumps(answer)))
    assert given_back == value
    assert repr(given_back) == repr(value) or isinstance(value, dict | list)


# Anything at all.

words = st.sampled_from(
    ["$ref", "$defs", "definitions", "type", "properties", "items", "anyOf", "oneOf", "allOf", "not",
     "enum", "const", "required", "additionalProperties", "patternProperties", "prefixItems", "if",
     "then", "format", "pattern", "minimum", "minItems", "maxItems", "default", "description", "$schema",
     "$id", "$anchor", "dependentSchemas", "dependencies", "unevaluatedProperties", "a"]
)  # fmt: skip
wild = st.one_of(
    scalars,
    st.sampled_from(["#", "#/$defs/a", "#/properties/a", "object", "array", "string", "http://x/"]),
    st.just("http://json-schema.org/draft-07/schema#"),
)
soup: st.SearchStrategy[Any] = st.recursive(
    wild,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
# More often a schema: each keyword with the kind of value that it wants.
schemas: st.SearchStrategy[Any] = st.deferred(
    lambda: st.one_of(
        st.booleans(),
        st.fixed_dictionaries(
            {},
            optional={
                "type": st.sampled_from(
                    ["object", "array", "string", "integer", ["null", "object"]]
                ),
                "properties": st.dictionaries(names, schemas, max_size=2),
                "$defs": st.dictionaries(st.sampled_from(["a", "b"]), schemas, max_size=2),
                "$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a"]),
                "required": st.lists(names, max_size=2, unique=True),
                "anyOf": st.lists(schemas, min_size=1, max_size=2),
                "allOf": st.lists(schemas, min_size=1, max_size=2),
                "items": schemas,
                "prefixItems": st.lists(schemas, min_size=1, max_size=2),
                "additionalProperties": schemas,
                "enum": st.lists(any_values, max_size=3),
                "minimum": st.integers(0, 2),
            },
        ),
    )
)


def refusal(call: Callable[[], object], kind: type[ProxyError]) -> Any:
    """The error that `call` raised, None where it raised none; any other kind goes on."""
    try:
        call()
    except kind as error:
        return error
    return None


@settings(max_examples=300, deadline=None)
@given(st.one_of(soup, schemas), st.one_of(any_values.map(json.dumps), st.text(max_size=20)))
def test_no_schema_and_no_answer_raises_anything_but_our_own_errors(
    schema: Any, answer: str
) -> None:
    refused = refusal(lambda: asked(schema), InvalidRequest)
    if refused is not None:
        assert (refused.status, refused.param) == (400, SCHEMA)
        return
    made = asked(schema)
    if made.schema_for_codex is not None:
        assert list(strict_faults(made.schema_for_codex)) == []
    invalid = refusal(lambda: json.loads(made.read(answer)), AnswerInvalid)
    assert invalid is None or (invalid.status, invalid.code) == (502, "invalid_structured_output")


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        scalars | st.sampled_from(["json_schema", "json_object", "text"]),
        lambda inner: st.dictionaries(
            st.sampled_from(["type", "json_schema", "name", "schema", "strict"]), inner, max_size=4
        ),
        max_leaves=8,
    )
)
def test_no_response_format_raises_anything_but_a_400(response_format: Any) -> None:
    refused = refusal(lambda: output_format(response_format), InvalidRequest)
    assert refused is None or refused.param.startswith("response_format")


# What response_format may be.


@pytest.mark.parametrize("response_format", [None, {"type": "text"}])
def test_plain_text_needs_no_format(response_format: object) -> None:
    assert output_format(response_format) is None


@pytest.mark.parametrize(
    ("given_format", "code", "param"),
    [
        ("json_object", "invalid_type", "response_format"),
        ({}, "missing_required_parameter", "response_format.type"),
        ({"type": 1}, "invalid_type", "response_format.type"),
        ({"type": "xml"}, "invalid_value", "response_format.type"),
        ({"type": "json_schema"}, "missing_required_parameter", "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": []},
            "invalid_type",
            "response_format.json_schema",
        ),
    ],
)
def test_a_wrong_format_is_named(given_format: object, code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        output_format(given_format)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("wrong", "code", "field"),
    [
        ({"name": None}, "missing_required_parameter", "name"),
        ({"name": 3}, "invalid_type", "name"),
        ({"name": ""}, "invalid_value", "name"),
        ({"name": "a b"}, "invalid_value", "name"),
        ({"name": "x" * 65}, "invalid_value", "name"),
        ({"strict": "yes"}, "invalid_type", "strict"),
        ({"description": 3}, "invalid_type", "description"),
        ({"schema": []}, "invalid_type", "schema"),
        ({"schema": {"type": "strng"}}, "invalid_value", "schema"),
        ({"schema": {"properties": []}}, "invalid_value", "schema"),
        ({"schema": {"$ref": "https://example.com/s.json"}}, "invalid_value", "schema"),
        ({"schema": {"$ref": "file:///etc/passwd"}}, "invalid_value", "schema"),
        ({"schema": {"$ref": "#/$defs/gone"}}, "invalid_value", "schema"),
        ({"schema": {"$ref": "#"}}, "invalid_value", "schema"),
        ({"schema": {"$dynamicRef": "#a"}}, "invalid_value", "schema"),
        ({"schema": {"pattern": "("}}, "invalid_value", "schema"),
        ({"schema": {"allOf": [{"type": "string"}, {"type": "null"}]}}, "invalid_value", "schema"),
    ],
)
def test_a_wrong_field_of_the_schema_is_named(
    wrong: dict[str, object], code: str, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(**{"schema": {"type": "object"}, **wrong})
    assert caught.value.code == code
    assert caught.value.param == f"response_format.json_schema.{field}"


def nested(levels: int, schema: object) -> object:
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def doubling(steps: int) -> dict[str, Any]:
    links = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(steps)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{steps}": {"type": "object"}}}


@pytest.mark.parametrize(
    "schema",
    [nested(3000, {}), doubling(40), {"enum": ["x" * 600_000]}, {"enum": list(range(60_000))}],
    ids=["deep", "doubling", "long", "many"],
)
def test_an_absurd_schema_is_refused(schema: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(schema)
    assert caught.value.param == SCHEMA


# What is sent.


def test_optional_properties_become_nullable_and_the_rest_is_told_in_words() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 2, "description": "Who"},
            "age": {"type": "integer", "minimum": 0, "default": 1},
        },
        "required": ["name"],
    }
    assert strict_schema(schema) == {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "Who\nRules: minLength: 2."},
            "age": {
                "anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}],
                "description": "Rules: default: 1.",
            },
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }


def test_the_callers_schema_is_not_touched() -> None:
    schema = {"type": "object", "properties": {"a": {"oneOf": [{"const": 1}]}}}
    before = json.dumps(schema)
    strict_schema(schema)
    assert json.dumps(schema) == before


def test_the_formats_description_reaches_the_model() -> None:
    made = asked({"type": "object", "properties": {}}, description="A summary")
    assert made.schema_for_codex is not None
    assert made.schema_for_codex["description"] == "A summary"


def test_a_schema_too_deep_for_strict_mode_is_asked_for_in_words_and_still_checked() -> None:
    made = asked(nested(11, {"type": "string"}))
    assert made.schema_for_codex is None
    assert '"properties"' in made.instruction
    deep = '{"a":' * 11 + '"x"' + "}" * 11
    assert made.read(f"```json\n{deep}\n```") == deep
    with pytest.raises(AnswerInvalid):
        made.read(deep.replace('"x"', "1"))


def test_a_recursive_schema_stays_recursive() -> None:
    node = {
        "type": "object",
        "properties": {
            "v": {"type": "number"},
            "next": {"$ref": "#"},
            "kids": {"type": "array", "items": {"$ref": "#/$defs/leaf"}},
        },
        "required": ["v"],
        "$defs": {"leaf": {"type": "object", "properties": {"w": {"type": "string"}}}},
    }
    answer = {
        "v": 1,
        "next": {"v": 2, "next": None, "kids": [{"w": None}, {"w": "x"}]},
        "kids": None,
    }
    assert read(node, answer) == {"v": 1, "next": {"v": 2, "kids": [{}, {"w": "x"}]}}
    assert list(strict_faults(strict_schema(node))) == []


def test_siblings_of_a_reference_count_since_draft_2019_and_not_before() -> None:
    schema = {
        "$defs": {"n": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/n", "required": ["a"]}},
        "required": ["x"],
    }
    draft7 = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
    assert read(draft7, {"x": {"a": None}}) == {"x": {}}
    with pytest.raises(AnswerInvalid):
        read(schema, {"x": {"a": None}})


def test_a_schema_with_an_id_may_still_refer_to_itself() -> None:
    schema = {
        "$id": "https://example.com/thing.json",
        "type": "array",
        "items": {"$ref": "#/definitions/t"},
        "definitions": {"t": {"type": "integer"}},
    }
    assert read(schema, {"value": [1, 2]}) == [1, 2]


def test_branches_of_one_shape_are_told_apart_by_the_callers_rules() -> None:
    plain = {"type": "object", "properties": {"id": {"type": "string", "maxLength": 2}}}
    full = {
        "type": "object",
        "properties": {"id": {"type": "string"}, "x": {"type": ["string", "null"]}},
        "required": ["id", "x"],
    }
    sparse = {**full, "properties": {**full["properties"], "x": {"type": "string"}}, "required": []}  # type: ignore[dict-item]
    assert read({"anyOf": [plain, sparse, full]}, {"value": {"id": "abc", "x": None}}) == {
        "id": "abc"
    }


# What is read.


def test_an_answer_that_needs_no_change_stays_the_models_text() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}
    assert asked(schema).read(' { "a" : 1.50 }\n') == ' { "a" : 1.50 }\n'


def test_a_null_that_the_caller_allows_stays() -> None:
    schema = {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}
    assert asked(schema).read('{"a": null}') == '{"a": null}'


def test_an_answer_in_the_callers_own_shape_is_taken_too() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    assert asked(schema).read('{"x": 1}') == '{"x": 1}'


def test_a_wrapped_answer_that_is_wrong_never_passes_as_an_open_object() -> None:
    open_object = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with pytest.raises(AnswerInvalid):
        read({"anyOf": [open_object, {"type": "null"}]}, {"value": {"a": "x"}})


@pytest.mark.parametrize(
    "text", ["", "no", '{"a": 1', "[]", '{"a": "secret"}', "NaN", "[" * 9999, "9" * 9999]
)
def test_a_wrong_answer_is_named_and_not_repeated(text: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    with pytest.raises(AnswerInvalid) as caught:
        asked(schema).read(text)
    assert caught.value.status == 502
    assert "secret" not in caught.value.message
    assert len(caught.value.message) < 500


def doubly_recursive() -> dict[str, Any]:
    branch = {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]}
    leaf = {"type": "string"}
    return {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"anyOf": [branch, {**branch, "minProperties": 1}, leaf]}},
    }


@pytest.mark.parametrize("levels", [8, 16, 60])
def test_a_choice_that_doubles_at_each_level_is_checked_in_time(levels: int) -> None:
    # Checked naively, 16 levels take half a minute, and 60 for ever.
    good = '{"x":' * levels + '"leaf"' + "}" * levels
    assert asked(doubly_recursive()).read(f'{{"value":{good}}}') == good
    with pytest.raises(AnswerInvalid):
        asked(doubly_recursive()).read(f'{{"value":{good.replace("leaf", "")}}}'.replace('""', "5"))


def test_a_pattern_that_would_backtrack_without_end_ends() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?=a)(a+)+$"}}}
    with pytest.raises(AnswerInvalid):
        asked(schema).read(json.dumps({"a": "a" * 50 + "!"}))


@pytest.mark.parametrize("text", ['{"a": 1}', '```json\n{"a": 1}\n```', '\n```\n{"a": 1}```\n'])
def test_a_json_object_is_read_also_inside_a_code_fence(text: str) -> None:
    made = output_format({"type": "json_object"})
    assert made is not None
    assert made.schema_for_codex is None
    assert "JSON object" in made.instruction
    assert made.read(text).strip() == '{"a": 1}'


@pytest.mark.parametrize("text", ["[1]", "1", "```json\n[1]\n```", "Sure!", "```", ""])
def test_json_object_mode_refuses_everything_else(text: str) -> None:
    made = output_format({"type": "json_object"})
    assert made is not None
    with pytest.raises(AnswerInvalid):
        made.read(text)


def test_a_format_without_a_schema_is_any_json_object() -> None:
    made = asked(None, description="A fruit")
    assert made.schema_for_codex is None
    assert "A fruit" in made.instruction
    assert made.read('{"a": 1}') == '{"a": 1}'


def test_the_repair_request_holds_the_answer_and_what_was_wrong_with_it() -> None:
    text = repair_request('{"a": 1', "It is not JSON.")
    assert '{"a": 1' in text
    assert "It is not JSON." in text
