"""A JSON schema that a caller gave us: checked, bounded, and the judge of the model's answer. Pure.

A stranger's schema is a small program, so it is bounded before it runs: nothing outside it is ever
read, no chain of references ends in itself, and patterns run on an engine that cannot be made to
backtrack without end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

Schema = dict[str, Any] | bool

MAX_DEPTH = 96
"""Levels of a schema or of an answer; deeper ones exhaust the stack of whatever reads them."""
MAX_VALUES = 50_000
MAX_CHARS = 500_000
MAX_PATHS = 10_000
"""Schemas that may apply to one and the same value; references can double them at each step."""
MAX_STEPS = 3_000_000
"""Steps of one check of an answer: a recursive choice doubles them at each level of the answer."""
MAX_STEPS_TO_EXPLAIN = 5_000
"""Finding the first fault squares them."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLES = (
    "items",
    "additionalItems",
    "unevaluatedItems",
    "contains",
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "contentSchema",
)
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE_SINGLES = ("not", "if", "then", "else")
_IN_PLACE_MAPS = ("dependentSchemas", "dependencies")
# Names for places; without them every reference is a pointer into this one document.
_NAMES = ("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary")

_DRAFTS: dict[str, type[Any]] = {
    "draft-04": jsonschema_rs.Draft4Validator,
    "draft-06": jsonschema_rs.Draft6Validator,
    "draft-07": jsonschema_rs.Draft7Validator,
    "2019-09": jsonschema_rs.Draft201909Validator,
    "2020-12": jsonschema_rs.Draft202012Validator,
}
_REF_STANDS_ALONE = ("draft-04", "draft-06", "draft-07")
_BESIDE_REF = ("$ref", "$defs", "definitions", "description", "title", "default")
_ROOT = "caller:schema"


class BadSchema(ValueError):
    """This is no schema that we can use; the text says why, in words for the caller."""


class BadJson(ValueError):
    """The model's text is not JSON, or nested beyond every use; the text says which."""


def load_json(text: str) -> Any:  # noqa: ANN401 - JSON is any
    """Return the value that `text` stands for; raises `BadJson`."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadJson(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadJson(f"it is not JSON{where}") from error
    if any(depth > MAX_DEPTH for depth, _ in _values(value)):
        raise BadJson(f"it is nested deeper than {MAX_DEPTH} levels")
    return value


def dump_json(value: object) -> str:
    """Return compact JSON text that can be encoded as UTF-8, whatever the strings hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


@dataclass(frozen=True, slots=True, eq=False)
class CallerSchema:
    """A checked schema. `root` is our copy, without names for places; `read_schema` makes it."""

    root: dict[str, Any]
    draft: str
    places: dict[str, Schema]
    """JSON pointer -> schema, for every place where the standard puts one."""
    validator: Any

    def resolve(self, ref: str) -> Schema:
        """Return the schema that a reference in `root` means."""
        return self.places[unquote(ref[1:])]

    def problem(self, value: object, *, fits_shape: bool = False) -> str | None:
        """Return what is wrong with `value`, without its content; None where nothing is.

        Where a check would take too long (see `MAX_STEPS`), one that `fits_shape` is believed.
        """
        steps = self._steps(self.root, value)
        if steps > MAX_STEPS:
            return None if fits_shape else "it is nested too deeply to be checked"
        try:
            if self.validator.is_valid(value):
                return None
            if steps > max(MAX_STEPS_TO_EXPLAIN, 20 * sum(1 for _ in _values(value))):
                return "it is not valid under the schema"
            error = next(self.validator.iter_errors(value))
        except ValueError as failure:  # a pattern that needs too many steps, a lone surrogate
            return f"it cannot be checked ({type(failure).__name__})"
        path = "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path
        )
        return f"at ${path[:100]}: {error.message[:200]}"

    def test_of(self, part: Schema) -> Callable[[object], bool]:
        """Return a test for `part`, which may be made up of pieces of `root`; raises `BadSchema`."""
        registry = jsonschema_rs.Registry([(_ROOT, self.root)])
        validator = _build(self.draft, _rebased(part), registry=registry)

        def passes(value: object) -> bool:
            try:
                return self._steps(part, value) <= MAX_STEPS and bool(validator.is_valid(value))
            except ValueError:
                return False

        return passes

    def _steps(self, schema: Schema, value: object) -> int:
        """How many schemas are tried on how many values, at most; counted, not run."""
        if not any(isinstance(part, dict) and "$ref" in part for part in self.places.values()):
            return 0  # a tree: each of its places meets each value at most once
        try:
            return _StepCount(self.places).count(schema, value)
        except RecursionError:
            return MAX_STEPS + 1


def read_schema(schema: object) -> CallerSchema:
    """Check `schema` and return it ready for use; raises `BadSchema`."""
    if not isinstance(schema, dict):
        raise BadSchema("it is not an object")
    _check_size(schema)
    draft = _draft_of(schema)
    root = _copied(schema, draft)
    places = dict(_places(root))
    _check_paths(places)
    return CallerSchema(root, draft, places, _build(draft, root))


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _values(value: object) -> Iterator[tuple[int, object]]:
    """Walk a JSON value without recursion: how deep, and what."""
    todo = [(0, value)]
    while todo:
        depth, item = todo.pop()
        yield depth, item
        if depth > MAX_DEPTH:
            continue
        if isinstance(item, dict):
            todo += [(depth + 1, child) for child in item.values()]
        elif isinstance(item, list):
            todo += [(depth + 1, child) for child in item]


def _check_size(schema: dict[str, Any]) -> None:
    chars = 0
    for count, (depth, item) in enumerate(_values(schema)):
        if isinstance(item, str):
            chars += len(item)
        elif isinstance(item, dict):
            chars += sum(map(len, item))
        if depth > MAX_DEPTH:
            raise BadSchema(f"it is nested deeper than {MAX_DEPTH} levels")
        if count > MAX_VALUES or chars > MAX_CHARS:
            raise BadSchema(
                f"it is larger than {MAX_VALUES} values or {MAX_CHARS} characters of text"
            )


def _draft_of(schema: dict[str, Any]) -> str:
    name = schema.get("$schema", "")
    if not isinstance(name, str):
        raise BadSchema("its $schema is not a string")
    return next((draft for draft in _DRAFTS if f"/{draft}/" in name), "2020-12")


def _copied(schema: dict[str, Any], draft: str) -> dict[str, Any]:
    """A copy without names for places, and without what stands uselessly beside a reference."""

    def part(value: Any) -> Any:  # noqa: ANN401 - what the caller wrote
        return _copied(value, draft) if isinstance(value, dict) else value

    alone = draft in _REF_STANDS_ALONE and isinstance(schema.get("$ref"), str)
    copy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMES or (alone and key not in _BESIDE_REF):
            continue
        if key in ("$dynamicRef", "$recursiveRef"):
            raise BadSchema(f"{key} is not supported here; use $ref")
        if key in (*_MAPS, "dependencies") and isinstance(value, dict):
            copy[key] = {name: part(item) for name, item in value.items()}
        elif key in (*_LISTS, "items") and isinstance(value, list):
            copy[key] = [part(item) for item in value]
        else:
            copy[key] = part(value) if key in _SINGLES else value
    return copy


def _places(schema: Schema, pointer: str = "") -> Iterator[tuple[str, Schema]]:
    """Walk every place where the standard puts a schema."""
    yield pointer, schema
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        here = f"{pointer}/{key}"
        if key in (*_MAPS, "dependencies") and isinstance(value, dict):
            children = [(_escaped(name), item) for name, item in value.items()]
        elif key in (*_LISTS, "items") and isinstance(value, list):
            children = [(str(index), item) for index, item in enumerate(value)]
        elif key in _SINGLES and isinstance(value, dict | bool):
            yield from _places(value, here)
            continue
        else:
            continue
        for name, item in children:
            if isinstance(item, dict | bool):
                yield from _places(item, f"{here}/{name}")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _check_paths(places: dict[str, Schema]) -> None:
    """Follow what applies to one and the same value; raises where that has no end, or no bound."""
    paths: dict[int, int] = {}

    def count(schema: Schema, trail: tuple[int, ...]) -> int:
        key = id(schema)
        if key in trail or len(trail) > MAX_DEPTH:
            raise BadSchema("its references lead back to themselves, or through too many others")
        if key not in paths:
            total = 1 + sum(count(part, (*trail, key)) for part in _in_place(schema, places))
            if total > MAX_PATHS:
                raise BadSchema("its references and combinations multiply beyond every bound")
            paths[key] = total
        return paths[key]

    for schema in places.values():
        if isinstance(schema, dict):  # True and False are one object each, wherever they stand
            count(schema, ())


def _in_place(schema: Schema, places: dict[str, Schema]) -> Iterator[Schema]:
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        ref = schema["$ref"]
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise BadSchema(f"$ref {str(ref)[:100]!r} leads outside; only '#/...' is followed")
        if unquote(ref[1:]) not in places:
            raise BadSchema(f"$ref {ref[:100]!r} does not lead to a schema in it")
        yield places[unquote(ref[1:])]
    parts: list[object] = [schema.get(key) for key in _IN_PLACE_SINGLES]
    for key in _IN_PLACE_LISTS:
        parts += value if isinstance(value := schema.get(key), list) else []
    for key in _IN_PLACE_MAPS:
        parts += value.values() if isinstance(value := schema.get(key), dict) else []
    yield from (part for part in parts if isinstance(part, dict))


class _StepCount:
    """Counts the steps of a check in far fewer: each pair of schema and value is looked at once."""

    def __init__(self, places: dict[str, Schema]) -> None:
        self._places = places
        self._seen: dict[tuple[int, int], int] = {}

    def count(self, schema: Schema, value: object) -> int:
        if not isinstance(schema, dict):
            return 1
        key = (id(schema), id(value))
        if key not in self._seen:
            parts = ((part, value) for part in _in_place(schema, self._places))
            inner = ((part, item) for part, item in _inside(schema, value))
            total = 1 + sum(self.count(part, item) for part, item in chain(parts, inner))
            self._seen[key] = min(total, MAX_STEPS + 1)
        return self._seen[key]


def _inside(schema: dict[str, Any], value: object) -> Iterator[tuple[Schema, object]]:
    """What a schema asks of the values inside an object or an array, give or take some more."""
    if isinstance(value, dict):
        keys = ("additionalProperties", "unevaluatedProperties")
        every = [schema[key] for key in keys if key in schema]
        every += schema.get("patternProperties", {}).values()
        for name, item in value.items():
            yield from ((part, item) for part in every)
            if name in schema.get("properties", {}):
                yield schema["properties"][name], item
    elif isinstance(value, list):
        of_items = ("items", "additionalItems", "unevaluatedItems", "contains")
        every = [schema[key] for key in of_items if isinstance(schema.get(key), dict)]
        places = schema.get("prefixItems", schema.get("items"))
        for index, item in enumerate(value):
            yield from ((part, item) for part in every)
            if isinstance(places, list) and index < len(places):
                yield places[index], item


def _rebased(schema: Any) -> Any:  # noqa: ANN401 - walks any JSON; a data value named $ref is harmless
    if isinstance(schema, dict):
        return {
            key: f"{_ROOT}{value}" if key == "$ref" and isinstance(value, str) else _rebased(value)
            for key, value in schema.items()
        }
    return [_rebased(item) for item in schema] if isinstance(schema, list) else schema


def _build(draft: str, schema: Schema, registry: jsonschema_rs.Registry | None = None) -> Any:  # noqa: ANN401 - a compiled validator
    try:
        return _DRAFTS[draft](
            schema,
            validate_formats=False,  # only an annotation; strict mode enforces those it knows
            pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000),
            offline=True,
            registry=registry,
            mask="the value",
        )
    except jsonschema_rs.ValidationError as error:
        place = "/".join(map(str, error.instance_path))
        where = f" at {place[:100]!r}" if place else ""
        raise BadSchema(f"{error.message[:200]}{where}") from error
    except ValueError as error:
        raise BadSchema("it cannot be compiled") from error
