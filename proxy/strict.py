"""A caller's schema -> the shape that OpenAI's strict mode can enforce, and its answers back. Pure.

Codex sends every output schema as strict, and strict mode knows a small part of JSON Schema only:
closed objects whose properties are all required, and no way to leave one out. So the schema becomes
a *shape* that is never narrower than what the caller allows, give or take extra properties that
nobody declared; what it cannot say goes into descriptions, for the model to know and for
`CallerSchema.problem` to check. In an answer

    an optional property that is left out   is null
    a property that nobody named            is a pair {key, value} in a list called `entries`

and `Shape.restore` turns both back into what the caller asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.callerschema import BadSchema, CallerSchema, Schema, dump_json

MAX_OBJECT_DEPTH = 10
MAX_PROPERTIES = 5_000
MAX_ENUM_VALUES = 1_000
MAX_NAME_CHARS = 120_000
MAX_LONG_ENUM = (250, 15_000)
"""Strict mode's own limits, as OpenAI publishes them; the last: above so many values, so long."""

_MAX_NODES = 4_000
_MAX_NESTING = 40
_MAX_BRANCHES = 64
_ANY = "any_json"

_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
)
# Plain patterns only: each engine has its own idea of the rest, and a refused one costs the answer.
_FANCY_PATTERN = re.compile(r"\(\?(?!:)|\\[^dDsSwWnrt.\-+*?^$|/()\[\]{}\\]|[^\x20-\x7e]|[*+?}]\+")

_NUMBER_RULES = ("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_TYPE_KEYS = {
    "object": ("properties", "required", "additionalProperties", "patternProperties",
               "unevaluatedProperties", "propertyNames", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "additionalItems", "unevaluatedItems", "contains",
              "minItems", "maxItems", "uniqueItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": _NUMBER_RULES,
}  # fmt: skip
_ALL_TYPES = frozenset(("string", "number", "boolean", "null", "array", "object"))
_SHAPING = frozenset(
    ("$ref", "allOf", "anyOf", "oneOf", "type", "enum", "const", "properties", "required",
     "additionalProperties", "patternProperties", "unevaluatedProperties", "items", "prefixItems",
     "additionalItems")
)  # fmt: skip
_SILENT = frozenset(
    ("title", "description", "$comment", "$defs", "definitions", "deprecated", "readOnly",
     "writeOnly", "nullable")
)  # fmt: skip
_TIGHTER = {"minimum": max, "minItems": max, "minLength": max, "minProperties": max,
            "maximum": min, "maxItems": min, "maxLength": min, "maxProperties": min}  # fmt: skip
_ALSO = "$also"
"""Our own mark for rules of a merged schema that its keywords cannot hold twice."""


class Inexpressible(Exception):
    """Too deep or too large for strict mode: to be asked for in words, and checked afterwards."""


@dataclass(frozen=True, slots=True, eq=False)
class Plain:
    """Strings, numbers, booleans and nulls; `values` are the only ones allowed, where given."""

    types: tuple[str, ...]
    values: tuple[Any, ...] | None = None
    rules: dict[str, Any] = field(default_factory=dict)
    about: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """An array."""

    items: Node
    rules: dict[str, Any] = field(default_factory=dict)
    about: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Property:
    node: Node
    is_required: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """An object: its named properties, and what any other key may hold (None: no other key)."""

    properties: dict[str, Property]
    entries: Node | None = None
    about: str = ""

    @property
    def entries_name(self) -> str:
        name = "entries"
        while name in self.properties:
            name += "_"
        return name


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One of several. `tests` tell apart, by the caller's own words, branches of one shape."""

    branches: tuple[Node, ...]
    tests: tuple[Test | None, ...] = ()
    about: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """What stands in `$defs` under this name; recursion is possible only here."""

    name: str
    about: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Nothing:
    """No value at all."""


Node = Plain | Listing | Record | Choice | Named | Nothing
Test = Callable[[object], bool]
NOTHING = Nothing()
_MISFIT = object()


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What is sent to Codex, and the way back. A root that is no object is wrapped as `value`."""

    schema: dict[str, Any]
    root: Node
    names: dict[str, Node]
    is_wrapped: bool

    def restore(self, value: object) -> tuple[object, bool]:
        """Return the caller's value for an answer, and whether the answer had this shape.

        It is the answer itself where nothing changed, and where the shape is another one: a
        provider that does not enforce the shape may well have answered in the caller's own.
        """
        inner = value
        if self.is_wrapped:
            if not isinstance(value, dict) or set(value) != {"value"}:
                return value, False
            inner = value["value"]
        restored = _Restorer(self.names).restore(self.root, inner)
        return (inner, False) if restored is _MISFIT else (restored, True)


class Shaper:
    """Compiles schemas into nodes that share one set of names; then `shape` closes it."""

    def __init__(self) -> None:
        self._names: dict[str, Node] = {}
        self._by_place: dict[int, str] = {}
        self._callers: list[CallerSchema] = []  # places are known by identity: keep them alive
        self._left = _MAX_NODES

    def node(self, caller: CallerSchema) -> Node:
        """Return the node of a whole schema; raises `BadSchema`, `Inexpressible`."""
        self._callers.append(caller)
        node = _Compiler(self, caller).compile(caller.root, 0)
        if isinstance(node, Nothing):
            raise BadSchema("no value can match it")
        return node

    def shape(self, root: Node, about: str = "") -> Shape:
        """Return what to send for `root`; raises `Inexpressible` beyond strict mode's limits."""
        seen: set[str] = set()
        while isinstance(root, Named) and root.name not in seen:
            seen.add(root.name)
            root = self._names[root.name]
        is_wrapped = not isinstance(root, Record)
        wrapper = Record({"value": Property(root)}) if is_wrapped else root
        schema = _emit(wrapper)
        if about and "description" not in schema:
            schema["description"] = about
        used: dict[str, Any] = {}
        todo = _refs(schema)
        while todo:
            name = todo.pop()
            if name not in used:
                used[name] = _emit(self._names[name])
                todo += _refs(used[name])
        if used:
            schema["$defs"] = used
        _check_limits(schema)
        return Shape(schema, root, self._names, is_wrapped)

    def spend(self, depth: int) -> None:
        self._left -= 1
        if self._left < 0 or depth > _MAX_NESTING:
            raise Inexpressible

    def any_json(self, about: str = "") -> Node:
        """Any JSON at all: expressible as a recursive choice."""
        if _ANY not in self._names:
            anything = Named(_ANY)
            scalars = Plain(("string", "number", "boolean", "null"))
            self._names[_ANY] = Choice((scalars, Listing(anything), Record({}, anything)))
        return Named(_ANY, about)

    def name_for(self, place: Schema, wanted: str) -> tuple[str, bool]:
        """Return the name of a place in a schema, and whether it is new."""
        if id(place) in self._by_place:
            return self._by_place[id(place)], False
        base = re.sub(r"[^A-Za-z0-9_-]", "_", wanted)[:60] or "root"
        name, number = base, 2
        while name in self._names or name == _ANY:
            name, number = f"{base}_{number}", number + 1
        self._by_place[id(place)] = name
        self._names[name] = NOTHING  # taken; filled in by whoever asked
        return name, True

    def define(self, name: str, node: Node) -> None:
        self._names[name] = node


def flattened(schema: dict[str, Any], caller: CallerSchema, shaper: Shaper) -> dict[str, Any]:
    """Return `schema` with its `$ref` and `allOf` merged into it; raises `Inexpressible`."""
    return _Compiler(shaper, caller).flat(schema)


class _Compiler:
    def __init__(self, shaper: Shaper, caller: CallerSchema) -> None:
        self._shaper = shaper
        self._caller = caller

    def compile(self, schema: Schema, depth: int) -> Node:
        self._shaper.spend(depth)
        if schema is False:
            return NOTHING
        if schema is True:
            return self._shaper.any_json()
        if "$ref" in schema:
            return self._reference(schema, depth)
        if "allOf" in schema:
            return self._all_of(schema, depth)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._one_of(schema, key, depth)
        if "const" in schema or "enum" in schema:
            return self._enum(schema)
        types = _types_of(schema)
        if types == _ALL_TYPES:
            return self._shaper.any_json(_about(schema))
        return _choice(
            [self._of_type(schema, types, kind, depth) for kind in _groups(schema, types)]
        )

    def _reference(self, schema: dict[str, Any], depth: int) -> Node:
        target = self._caller.resolve(schema["$ref"])
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        if target is True or target is False or _SHAPING & rest.keys():
            return self.compile(self._merged(rest, target), depth + 1)
        name, is_new = self._shaper.name_for(target, schema["$ref"].rpartition("/")[2])
        if is_new:
            node = self.compile(target, depth + 1)
            self._shaper.define(name, node)
        about = _about(rest)
        return Named(name, about)

    def _all_of(self, schema: dict[str, Any], depth: int) -> Node:
        whole: Schema = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            whole = self._merged(whole, part)
        return self.compile(whole, depth + 1)

    def _merged(self, one: Schema, other: Schema) -> Schema:
        """Both at once; broader where keywords cannot say it, never narrower."""
        if other is True or other == {} or one is False:
            return one
        if one is True or one == {} or other is False:
            return other
        if not _SHAPING & one.keys() and "$ref" in other and "$ref" not in one:
            return {**other, **one} if not one.keys() & other.keys() else _merge(one, other)
        return _merge(self.flat(one), self.flat(other))

    def flat(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Without `$ref` and `allOf` at its top; ends, since `read_schema` has followed them."""
        while "$ref" in schema or "allOf" in schema:
            self._shaper.spend(0)
            parts: list[Schema] = list(schema.get("allOf", []))
            if "$ref" in schema:
                parts.append(self._caller.resolve(schema["$ref"]))
            whole: Schema = {k: v for k, v in schema.items() if k not in ("$ref", "allOf")}
            for part in parts:
                flat = self.flat(part) if isinstance(part, dict) else part
                whole = _merge_any(whole, flat)
            if not isinstance(whole, dict):
                return {} if whole else {"enum": []}
            schema = whole
        return schema

    def _one_of(self, schema: dict[str, Any], key: str, depth: int) -> Node:
        base = {name: value for name, value in schema.items() if name != key}
        shapes_more = bool(_SHAPING & base.keys())
        nodes: list[Node] = []
        tests: list[Test | None] = []
        for option in schema[key]:
            node = self.compile(self._merged(option, base) if shapes_more else option, depth + 1)
            if not isinstance(node, Nothing):
                nodes.append(node)
                tests.append(self._test(option))
        return _choice(nodes, tests, "" if shapes_more else _about(base))

    def _test(self, option: Schema) -> Test | None:
        try:
            return self._caller.test_of(option)
        except BadSchema:  # a merged one that says its pieces in our own words
            return None

    def _enum(self, schema: dict[str, Any]) -> Node:
        allowed = _types_of(schema) if "type" in schema else _ALL_TYPES
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if "const" in schema and "enum" in schema:
            values = [value for value in values if _is_among(value, schema["enum"])]
        values = [value for value in values if _has_type(value, allowed)]
        if not values:
            return NOTHING
        about = _about(schema)
        if any(isinstance(value, dict | list) for value in values):
            only = f"Only: {dump_json(values)[:2000]}."
            return self._shaper.any_json(f"{about}\n{only}" if about else only)
        distinct = tuple(
            value for index, value in enumerate(values) if not _is_among(value, values[:index])
        )
        types = tuple(dict.fromkeys(_type_name(value) for value in distinct))
        return Plain(types, distinct, {}, about)

    def _of_type(
        self, schema: dict[str, Any], types: frozenset[str], group: tuple[str, ...], depth: int
    ) -> Node:
        if group == ("object",):
            return self._record(schema, depth)
        if group == ("array",):
            return self._listing(schema, depth)
        rules = _plain_rules(schema, group)
        others = {key for kind, keys in _TYPE_KEYS.items() if kind not in types for key in keys}
        return Plain(group, None, rules, _about(schema, kept={*rules, *others}))

    def _listing(self, schema: dict[str, Any], depth: int) -> Node:
        items = schema.get("items", True)
        first = schema.get("prefixItems", [])
        if isinstance(items, list):  # a tuple in drafts before 2020-12
            first, items = items, schema.get("additionalItems", True)
        bounds = ("minItems", "maxItems")
        rules: dict[str, Any] = {key: schema[key] for key in bounds if key in schema}
        nodes = [self.compile(item, depth + 1) for item in first]
        if not first or rules.get("maxItems", len(first) + 1) > len(first):
            nodes.append(self.compile(items, depth + 1))
        node = _choice(nodes)
        kept = {*rules, "items", "additionalItems"}
        if first:
            kept -= {"items", "additionalItems"}
        if isinstance(node, Nothing):
            node, rules = Plain(("null",)), {"maxItems": 0}
        return Listing(node, rules, _about(schema, kept=kept))

    def _record(self, schema: dict[str, Any], depth: int) -> Node:
        required = set(schema.get("required", [])) if _is_names(schema.get("required")) else set()
        declared = schema.get("properties", {})
        patterns = schema.get("patternProperties", {})
        other = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
        properties: dict[str, Property] = {}
        for name, part in declared.items():
            node = self.compile(part, depth + 1)
            if not isinstance(node, Nothing):
                properties[name] = Property(node, name in required)
            elif name in required:
                return NOTHING
        unnamed = sorted(required - set(declared))
        if other is None and not patterns:
            # Without a word about others, they are meant only where nothing else is declared.
            properties |= {name: Property(self._shaper.any_json()) for name in unnamed}
            is_free = "properties" not in schema and not unnamed
            entries = self._shaper.any_json() if is_free else None
        else:
            parts = [*patterns.values(), *([other] if other is not None else [])]
            choice = _choice([self.compile(part, depth + 1) for part in parts])
            entries = None if isinstance(choice, Nothing) else choice
            if unnamed and entries is None:
                return NOTHING
        kept = {"properties", "additionalProperties", "unevaluatedProperties"}
        if not (unnamed and entries is not None):
            kept.add("required")
        return Record(properties, entries, _about(schema, kept=kept))


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _type_name(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _has_type(value: object, types: Iterable[str]) -> bool:
    name = _type_name(value)
    if name in types:
        return True
    is_whole = name == "integer" or (isinstance(value, float) and value.is_integer())
    return (name == "integer" and "number" in types) or (is_whole and "integer" in types)


def _same(one: object, other: object) -> bool:
    """JSON's equality, where 1 is 1.0 and true is not 1."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return one == other


def _is_among(value: object, values: Iterable[object]) -> bool:
    return any(_same(value, other) for other in values)


def _types_of(schema: dict[str, Any]) -> frozenset[str]:
    """The types it allows: said, or meant by its keywords."""
    named = schema.get("type")
    if named is not None:
        types = set(named if isinstance(named, list) else [named])
        return frozenset(types - {"integer"} if "number" in types else types)
    meant = {kind for kind, keys in _TYPE_KEYS.items() if any(key in schema for key in keys)}
    return frozenset(meant) or _ALL_TYPES


def _groups(schema: dict[str, Any], types: frozenset[str]) -> list[tuple[str, ...]]:
    """Scalars stand together where no rule is about one of them only."""
    order = ("string", "number", "integer", "boolean", "null")
    scalars = tuple(kind for kind in order if kind in types)
    groups: list[tuple[str, ...]] = []
    if len(scalars) > 1 and _plain_rules(schema, scalars) and set(scalars) != {scalars[0], "null"}:
        groups += [(kind,) for kind in scalars]
    elif scalars:
        groups.append(scalars)
    return groups + [(kind,) for kind in ("array", "object") if kind in types]


def _plain_rules(schema: dict[str, Any], types: tuple[str, ...]) -> dict[str, Any]:
    rules: dict[str, Any] = {}
    if "string" in types:
        if schema.get("format") in _FORMATS:
            rules["format"] = schema["format"]
        elif "pattern" in schema and not _FANCY_PATTERN.search(schema["pattern"]):
            rules["pattern"] = schema["pattern"]
    if "number" in types or "integer" in types:
        rules |= {key: schema[key] for key in _NUMBER_RULES if key in schema}
        for exclusive, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if isinstance(rules.get(exclusive), bool):  # as draft 4 says it
                is_exclusive = rules.pop(exclusive)
                if is_exclusive and plain in rules:
                    rules[exclusive] = rules.pop(plain)
    return rules


def notes(schema: dict[str, Any], kept: Iterable[str] = ()) -> list[str]:
    """Return the keywords that are not `kept`, each as short text for the model."""
    hidden = {*_SILENT, *kept}
    found = [(key, value) for key, value in schema.items() if key not in hidden and key != _ALSO]
    found += schema.get(_ALSO, [])
    return [f"{key}: {dump_json(value)[:200]}" for key, value in found]


def _about(schema: dict[str, Any], kept: Iterable[str] = ()) -> str:
    description = schema.get("description")
    text = description if isinstance(description, str) else ""
    shaping = {"type", "enum", "const"}
    extra = notes(schema, {*kept, *shaping})
    if not extra:
        return text
    rules = f"Rules: {'; '.join(extra)[:1000]}."
    return f"{text}\n{rules}" if text else rules


def _choice(nodes: Sequence[Node], tests: list[Test | None] | None = None, about: str = "") -> Node:
    """One of `nodes`; a choice without its own words is dissolved into the one around it."""
    pairs: list[tuple[Node, Test | None]] = []
    for index, node in enumerate(nodes):
        if isinstance(node, Nothing):
            continue
        if isinstance(node, Choice) and not node.about and not tests:
            pairs += zip(node.branches, node.tests or [None] * len(node.branches), strict=True)
        else:
            pairs.append((node, tests[index] if tests else None))
    if not pairs:
        return NOTHING
    if len(pairs) == 1 and not about:
        return pairs[0][0]
    return Choice(tuple(node for node, _ in pairs), tuple(test for _, test in pairs), about)


def _merge_any(one: Schema, other: Schema) -> Schema:
    if one is False or other is False:
        return False
    if one is True or other is True:
        return other if one is True else one
    return _merge(one, other)


def _both(one: Schema, other: Schema) -> Schema:
    """What must match both, said lazily: a schema may contain itself."""
    if one is True or one == {} or one is other or other is False:
        return other
    if other is True or other == {} or one is False:
        return one
    return {"allOf": [one, other]}


def _merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = {**other, **one}
    also = [*one.get(_ALSO, []), *other.get(_ALSO, [])]
    objects = ("properties", "required", "additionalProperties", "patternProperties")
    if any(key in one for key in objects) and any(key in other for key in objects):
        merged |= _merged_objects(one, other)
    for key in sorted(one.keys() & other.keys() - {*objects, _ALSO, "description", "title"}):
        if _same(one[key], other[key]):
            continue
        if key == "type":
            merged[key] = _common_types(one[key], other[key])
        elif key == "enum":
            merged[key] = [value for value in one[key] if _is_among(value, other[key])]
        elif key == "const":
            merged["enum"] = []
        elif key in ("anyOf", "oneOf") and len(one[key]) * len(other[key]) <= _MAX_BRANCHES:
            merged[key] = [_both(left, right) for left in one[key] for right in other[key]]
        elif key == "items" and not isinstance(one[key], list) and not isinstance(other[key], list):
            merged[key] = _both(one[key], other[key])
        elif key in _TIGHTER:
            merged[key] = _TIGHTER[key](one[key], other[key])
        elif key not in _SILENT:
            also.append((key, other[key]))
    if also:
        merged[_ALSO] = also
    return merged


def _merged_objects(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Each side's word about other properties reaches what only the other side declares."""
    merged: dict[str, Any] = {}
    names = list(dict.fromkeys([*one.get("properties", {}), *other.get("properties", {})]))
    properties = {name: _both(_for_name(one, name), _for_name(other, name)) for name in names}
    if properties:
        merged["properties"] = properties
    if required := [*one.get("required", []), *other.get("required", [])]:
        merged["required"] = list(dict.fromkeys(required))
    if "additionalProperties" in one or "additionalProperties" in other:
        merged["additionalProperties"] = _both(
            one.get("additionalProperties", True), other.get("additionalProperties", True)
        )
    if patterns := {**other.get("patternProperties", {}), **one.get("patternProperties", {})}:
        merged["patternProperties"] = patterns
    return merged


def _for_name(schema: dict[str, Any], name: str) -> Schema:
    if name in schema.get("properties", {}):
        part: Schema = schema["properties"][name]
        return part
    if "patternProperties" in schema:  # one of its patterns may be the word on it
        return True
    rest: Schema = schema.get("additionalProperties", True)
    return rest


def _common_types(one: Any, other: Any) -> list[str]:  # noqa: ANN401 - a name or a list of names
    left = one if isinstance(one, list) else [one]
    right = other if isinstance(other, list) else [other]
    common = [kind for kind in left if kind in right or (kind == "integer" and "number" in right)]
    return [*common, *(["integer"] if "integer" in right and "number" in left else [])]


def _emit(node: Node) -> dict[str, Any]:
    if isinstance(node, Nothing):
        raise Inexpressible
    schema = _emit_bare(node)
    if node.about:
        schema["description"] = node.about
    return schema


def _emit_bare(node: Plain | Listing | Record | Choice | Named) -> dict[str, Any]:
    match node:
        case Plain():
            kinds = list(node.types)
            enum = {} if node.values is None else {"enum": list(node.values)}
            return {"type": kinds[0] if len(kinds) == 1 else kinds, **enum, **node.rules}
        case Listing():
            return {"type": "array", "items": _emit(node.items), **node.rules}
        case Record():
            return _emit_record(node)
        case Choice():
            return {"anyOf": [_emit(branch) for branch in node.branches]}
        case Named():
            ref = {"$ref": f"#/$defs/{node.name}"}
            # Strict mode lets nothing stand beside a reference.
            return {"anyOf": [ref]} if node.about else ref


def _emit_record(record: Record) -> dict[str, Any]:
    properties = {
        name: _emit(part.node) if part.is_required else _emit_nullable(part.node)
        for name, part in record.properties.items()
    }
    if record.entries is not None:
        pair = Record({"key": Property(Plain(("string",))), "value": Property(record.entries)})
        others = Listing(pair, about="The further keys of this object, each with its value.")
        properties[record.entries_name] = _emit(others)
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _emit_nullable(node: Node) -> dict[str, Any]:
    schema = _emit(node)
    null = {"type": "null"}
    if isinstance(node, Plain) and not node.rules:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        schema["type"] = kinds if "null" in kinds else [*kinds, "null"]
        if "enum" in schema and None not in schema["enum"]:
            schema["enum"] = [*schema["enum"], None]
        return schema
    description = schema.pop("description", None)
    # A reference to anything may be null already; saying it twice is harmless.
    branches = schema.get("anyOf", [schema])
    whole: dict[str, Any] = {"anyOf": [*branches, *([null] if null not in branches else [])]}
    return {**whole, "description": description} if description else whole


def _refs(schema: Any) -> list[str]:  # noqa: ANN401 - walks any JSON
    """The names that our own strict schema refers to."""
    if isinstance(schema, list):
        return [name for item in schema for name in _refs(item)]
    if not isinstance(schema, dict):
        return []
    found = [name for key, item in schema.items() if key != "enum" for name in _refs(item)]
    ref = schema.get("$ref")
    return [ref.rpartition("/")[2], *found] if isinstance(ref, str) else found


def _check_limits(schema: dict[str, Any]) -> None:
    counts = {"properties": 0, "values": 0, "chars": sum(map(len, schema.get("$defs", {})))}

    def walk(part: dict[str, Any], depth: int) -> None:
        if "properties" in part:
            depth += 1
            counts["properties"] += len(part["properties"])
            counts["chars"] += sum(map(len, part["properties"]))
            for child in part["properties"].values():
                walk(child, depth)
        if "enum" in part:
            length = sum(len(value) for value in part["enum"] if isinstance(value, str))
            counts["values"] += len(part["enum"])
            counts["chars"] += length
            if len(part["enum"]) > MAX_LONG_ENUM[0] and length > MAX_LONG_ENUM[1]:
                raise Inexpressible
        if depth > MAX_OBJECT_DEPTH:
            raise Inexpressible
        for child in [*part.get("anyOf", []), *([part["items"]] if "items" in part else [])]:
            walk(child, depth)

    for part in (schema, *schema.get("$defs", {}).values()):
        walk(part, 0)
    limits = {"properties": MAX_PROPERTIES, "values": MAX_ENUM_VALUES, "chars": MAX_NAME_CHARS}
    if any(counts[key] > limit for key, limit in limits.items()):
        raise Inexpressible


class _Restorer:
    """Answers in a shape -> the caller's values; each pair of node and value is tried once."""

    def __init__(self, names: dict[str, Node]) -> None:
        self._names = names
        self._seen: dict[tuple[int, int], object] = {}

    def restore(self, node: Node, value: Any) -> Any:  # noqa: ANN401 - any JSON
        """Return the value, itself where nothing changed, or `_MISFIT`."""
        key = (id(node), id(value))
        if key not in self._seen:
            self._seen[key] = _MISFIT  # what leads back to itself without a step fits nothing
            self._seen[key] = self._restore(node, value)
        return self._seen[key]

    def _restore(self, node: Node, value: Any) -> Any:  # noqa: ANN401 - any JSON
        match node:
            case Plain():
                fits = _has_type(value, node.types) and (
                    node.values is None or _is_among(value, node.values)
                )
                return value if fits else _MISFIT
            case Listing():
                return self._listing(node, value)
            case Record():
                return self._record(node, value)
            case Choice():
                return self._choice(node, value)
            case Named():
                return self.restore(self._names[node.name], value)
            case Nothing():
                return _MISFIT

    def _listing(self, node: Listing, value: Any) -> Any:  # noqa: ANN401 - any JSON
        if not isinstance(value, list):
            return _MISFIT
        items = [self.restore(node.items, item) for item in value]
        if any(item is _MISFIT for item in items):
            return _MISFIT
        is_same = all(new is old for new, old in zip(items, value, strict=True))
        return value if is_same else items

    def _record(self, node: Record, value: Any) -> Any:  # noqa: ANN401 - any JSON
        if not isinstance(value, dict):
            return _MISFIT
        name_of_entries = node.entries_name if node.entries is not None else None
        restored: dict[str, Any] = {}
        for name, item in value.items():
            if name == name_of_entries:
                continue
            part = node.properties.get(name)
            if part is None:
                return _MISFIT
            if item is None and not part.is_required and not self._allows_null(part.node, set()):
                continue
            restored[name] = self.restore(part.node, item)
            if restored[name] is _MISFIT:
                return _MISFIT
        missing = node.properties.keys() - value.keys()
        if any(node.properties[name].is_required for name in missing):
            return _MISFIT
        if node.entries is not None:
            pairs = self._entries(node.entries, value.get(name_of_entries, []))
            if pairs is None:
                return _MISFIT
            return {**pairs, **restored} if pairs.keys() & restored else {**restored, **pairs}
        is_same = len(restored) == len(value) and all(
            restored[name] is item for name, item in value.items()
        )
        return value if is_same else restored

    def _entries(self, node: Node, pairs: Any) -> dict[str, Any] | None:  # noqa: ANN401 - any JSON
        if not isinstance(pairs, list):
            return None
        restored: dict[str, Any] = {}
        for pair in pairs:
            if not isinstance(pair, dict) or pair.keys() != {"key", "value"}:
                return None
            value = self.restore(node, pair["value"])
            if not isinstance(pair["key"], str) or value is _MISFIT:
                return None
            restored[pair["key"]] = value
        return restored

    def _choice(self, node: Choice, value: Any) -> Any:  # noqa: ANN401 - any JSON
        found = [
            (result, test)
            for branch, test in zip(
                node.branches, node.tests or [None] * len(node.branches), strict=True
            )
            if (result := self.restore(branch, value)) is not _MISFIT
        ]
        if not found:
            return _MISFIT
        if any(result is not found[0][0] for result, _ in found):
            return next(
                (result for result, test in found if test is not None and test(result)), found[0][0]
            )
        return found[0][0]

    def _allows_null(self, node: Node, seen: set[str]) -> bool:
        match node:
            case Plain():
                return "null" in node.types and (node.values is None or None in node.values)
            case Choice():
                return any(self._allows_null(branch, seen) for branch in node.branches)
            case Named() if node.name not in seen:
                return self._allows_null(self._names[node.name], seen | {node.name})
            case _:
                return False
