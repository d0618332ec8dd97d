"""Which changes of the API break callers: two OpenAPI documents compared.

A request may gain what is optional and take more; an answer may gain fields. Everything else breaks somebody.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


def breaking_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each, naming its place; empty when whoever speaks `old` can go on."""
    found: list[str] = []
    for path, methods in old["paths"].items():
        for method, operation in methods.items():
            where = f"{method.upper()} {path}"
            now = new["paths"].get(path, {}).get(method)
            if now is None:
                found.append(f"{where} is gone")
                continue
            found += _parameters(where, operation, now)
            if "requestBody" in operation:
                one, other = _schema(operation["requestBody"]), _schema(now.get("requestBody", {}))
                found += _request(f"{where} request", one, other, old, new)
            one, other = _schema(operation["responses"]["200"]), _schema(now["responses"].get("200", {}))
            found += _answer(f"{where} answer", one, other, old, new)
    return found


def _parameters(where: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    known = {parameter["name"] for parameter in old.get("parameters", []) if parameter.get("required")}
    for parameter in new.get("parameters", []):
        if parameter.get("required") and parameter["name"] not in known:
            yield f"{where} needs the parameter {parameter['name']}"


def _request(
    where: str, old: Any, new: Any, olds: Any, news: Any, seen: frozenset[str] = frozenset()
) -> Iterator[str]:
    if "$ref" in old and old["$ref"] in seen:
        return
    seen |= {old.get("$ref", "")}
    old, new = _resolved(old, olds), _resolved(new, news)
    yield from _type_changed(where, old, new)
    for bound in _LOWER_BOUNDS:
        if bound in new and new[bound] > old.get(bound, float("-inf")):
            yield f"{where}: {bound} was {old.get(bound)}, is {new[bound]}"
    for bound in _UPPER_BOUNDS:
        if bound in new and new[bound] < old.get(bound, float("inf")):
            yield f"{where}: {bound} was {old.get(bound)}, is {new[bound]}"
    if "enum" in new and set(new["enum"]) < set(old.get("enum", [*new["enum"], object])):
        yield f"{where}: fewer values are taken"
    for name in sorted(set(new.get("required", [])) - set(old.get("required", []))):
        yield f"{where}.{name} is required now"
    for name, field in old.get("properties", {}).items():
        if name in new.get("properties", {}):
            yield from _request(f"{where}.{name}", field, new["properties"][name], olds, news, seen)
        else:
            yield f"{where}.{name} is refused now"
    if "items" in old and "items" in new:
        yield from _request(f"{where}[]", old["items"], new["items"], olds, news, seen)
    if len(new.get("anyOf", [])) < len(old.get("anyOf", [])):
        yield f"{where}: fewer kinds of value are taken"


def _answer(
    where: str, old: Any, new: Any, olds: Any, news: Any, seen: frozenset[str] = frozenset()
) -> Iterator[str]:
    if "$ref" in old and old["$ref"] in seen:
        return
    seen |= {old.get("$ref", "")}
    old, new = _resolved(old, olds), _resolved(new, news)
    yield from _type_changed(where, old, new)
    for name in sorted(set(old.get("required", [])) - set(new.get("required", []))):
        yield f"{where}.{name} may be missing now"
    for name, field in old.get("properties", {}).items():
        if name in new.get("properties", {}):
            yield from _answer(f"{where}.{name}", field, new["properties"][name], olds, news, seen)
        else:
            yield f"{where}.{name} is gone"
    if "items" in old and "items" in new:
        yield from _answer(f"{where}[]", old["items"], new["items"], olds, news, seen)


def _type_changed(where: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    if old.get("type") != new.get("type") and "type" in old:
        yield f"{where}: the type was {old['type']}, is {new.get('type')}"


def _schema(holder: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = holder.get("content", {}).get("application/json", {}).get("schema", {})
    return schema


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema
