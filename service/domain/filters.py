"""Search filters: a JSON condition on `id`, `label` and `metadata.<path>`, compiled to one SQL expression.

{"label": "cat"}                          equality, of any JSON scalar
{"metadata.year": {"gte": 2020, "lt": 2024}}   gt, gte, lt, lte, ne, in
{"and": [...]}, {"or": [...]}, {"not": {...}}; several keys in one object mean "and"
"""

from typing import Any

from sqlalchemy import ColumnElement, and_, cast, false, func, literal, not_, or_, true
from sqlalchemy.dialects.postgresql import JSONB

from service.errors import Unprocessable
from service.tables import Item

MAX_DEPTH = 16
MAX_VALUES = 10_000
_COMPARISONS = {"gt", "gte", "lt", "lte", "ne", "in"}


class InvalidFilter(Unprocessable):
    """The filter is not in the grammar above."""


def compile_filter(condition: object, depth: int = 0) -> ColumnElement[bool]:
    """Return the condition as SQL over `items`; a field that is missing fails every comparison but `ne`.

    Raises `InvalidFilter` (422) with a sentence.
    """
    if depth > MAX_DEPTH:
        raise InvalidFilter(f"The filter is nested deeper than {MAX_DEPTH}.")
    if not isinstance(condition, dict):
        raise InvalidFilter("A filter is a JSON object.")
    return and_(true(), *(_compile_entry(key, value, depth) for key, value in condition.items()))


def _compile_entry(key: str, value: Any, depth: int) -> ColumnElement[bool]:
    if key in ("and", "or"):
        if not isinstance(value, list):
            raise InvalidFilter(f"{key!r} takes a list of filters.")
        parts = [compile_filter(part, depth + 1) for part in value]
        return and_(true(), *parts) if key == "and" else or_(false(), *parts)
    if key == "not":
        return not_(compile_filter(value, depth + 1))
    if key in ("id", "label"):
        field: ColumnElement[Any] = func.to_jsonb(Item.external_id if key == "id" else Item.label)
    elif key.startswith("metadata.") and len(key) > len("metadata."):
        field = Item.metadata_[tuple(key.removeprefix("metadata.").split("."))]
    else:
        raise InvalidFilter(f"{key!r} is not id, label, metadata.<path>, and, or, or not.")
    return _compile_field(field, key, value)


def _compile_field(field: ColumnElement[Any], key: str, value: Any) -> ColumnElement[bool]:
    if isinstance(value, dict):
        if not value or set(value) - _COMPARISONS:
            raise InvalidFilter(f"{key!r} takes a value or one of {', '.join(sorted(_COMPARISONS))}.")
        return and_(*(_compare(field, key, name, operand) for name, operand in value.items()))
    return func.coalesce(field == _json(key, value), false())


def _compare(field: ColumnElement[Any], key: str, name: str, operand: Any) -> ColumnElement[bool]:
    if name == "in":
        if not isinstance(operand, list) or len(operand) > MAX_VALUES:
            raise InvalidFilter(f"'in' of {key!r} takes a list of at most {MAX_VALUES} values.")
        return func.coalesce(field.in_([_json(key, value) for value in operand]), false())
    value = _json(key, operand)
    if name == "ne":
        return func.coalesce(field != value, true())
    comparison = {"gt": field > value, "gte": field >= value, "lt": field < value, "lte": field <= value}[name]
    # JSON values of different types have an order in PostgreSQL; a range here compares like with like only.
    same_type = func.jsonb_typeof(field) == func.jsonb_typeof(value)
    return func.coalesce(and_(same_type, comparison), false())


def _json(key: str, value: Any) -> ColumnElement[Any]:
    if isinstance(value, dict | list):
        raise InvalidFilter(f"{key!r} is compared with strings, numbers, true, false or null.")
    if isinstance(value, str) and ("\x00" in value or any(0xD800 <= ord(c) <= 0xDFFF for c in value)):
        raise InvalidFilter(f"{key!r} is compared with a string that holds a NUL or is not valid Unicode.")
    return cast(literal(value, JSONB), JSONB)
