"""Search filters: a JSON condition on `id`, `label`, `image_uri`, `origin`, `hops`, `uncertainty` and
`metadata.<path>`, compiled to SQL.

{"label": "cat"}                          equality, of any JSON scalar
{"metadata.year": {"gte": 2020, "lt": 2024}}   gt, gte, lt, lte, ne, in
{"and": [...]}, {"or": [...]}, {"not": {...}}; several keys in one object mean "and"

A dot in a path goes one object deeper, so a metadata key that holds a dot cannot be named. `origin`, `hops` and
`uncertainty` are those of the item's embedding in the generation that answers; the last is 0 where no transformation
made it, and missing where h does not say.
"""

import math
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    ColumnElement,
    SmallInteger,
    Text,
    and_,
    case,
    cast,
    column,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    table,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from service.db import is_storable
from service.domain.gallery.new_items import canonical_id
from service.errors import Unprocessable
from service.tables import Item, embeddings_table
from service.vectors.rows import Origin

MAX_DEPTH = 16
MAX_CONDITIONS = 1_000
MAX_VALUES = 10_000
MAX_PATH = 1_000
_COLUMNS = {"id": Item.external_id, "label": Item.label, "image_uri": Item.image_uri}
_COMPARISONS = {"gt", "gte", "lt", "lte", "ne", "in"}


class InvalidFilter(Unprocessable):
    """The filter is not in the grammar above."""


def compile_filter(condition: object, generation_id: int) -> ColumnElement[bool]:
    """Return the condition as SQL over `items`; a field that is missing fails every comparison but `ne`.

    Raises `InvalidFilter` (422) with a sentence.
    """
    return _Compiler(generation_id).compile(condition, 0)


def compile_field(key: str) -> ColumnElement[Any]:
    """Return a field of `items`, as filters name it, as JSON; SQL NULL where it is missing. Raises `InvalidFilter`."""
    return _field(key)


class _Compiler:
    """Compiles one filter, and counts what each costs planning and a pass over rows: its comparisons, what stands empty
    in their place, and the values of all its lists."""

    def __init__(self, generation_id: int) -> None:
        columns = (column("origin", SmallInteger), column("hops", SmallInteger), column("uncertainty", REAL))
        self._rows = table(embeddings_table(generation_id), column("item_id", BigInteger), *columns)
        origin = case({origin.value: literal(origin.label, Text) for origin in Origin}, value=self._rows.c.origin)
        self._of_rows = {
            "origin": func.to_jsonb(origin),
            "hops": func.to_jsonb(self._rows.c.hops),
            "uncertainty": func.to_jsonb(func.nullif(self._rows.c.uncertainty, math.nan)),
        }
        self._conditions = 0
        self._values = 0

    def compile(self, condition: object, depth: int) -> ColumnElement[bool]:
        if depth > MAX_DEPTH:
            raise InvalidFilter(f"The filter is nested deeper than {MAX_DEPTH}.")
        if not isinstance(condition, dict):
            raise InvalidFilter("A filter is a JSON object.")
        if not condition:
            self._count()
        return and_(true(), *(self._entry(key, value, depth) for key, value in condition.items()))

    def _entry(self, key: str, value: Any, depth: int) -> ColumnElement[bool]:
        if key in ("and", "or"):
            if not isinstance(value, list):
                raise InvalidFilter(f"{key!r} takes a list of filters.")
            if not value:
                self._count()
            parts = [self.compile(part, depth + 1) for part in value]
            return and_(true(), *parts) if key == "and" else or_(false(), *parts)
        if key == "not":
            return not_(self.compile(value, depth + 1))
        if key in self._of_rows:
            passes = self._comparisons(self._of_rows[key], key, value)
            return Item.id.in_(select(self._rows.c.item_id).where(passes))
        return self._comparisons(_field(key), key, value)

    def _comparisons(self, field: ColumnElement[Any], key: str, value: Any) -> ColumnElement[bool]:
        if not isinstance(value, dict):
            return self._compare(field, key, "eq", value)
        if not value or set(value) - _COMPARISONS:
            raise InvalidFilter(f"{key!r} takes a value or one of {', '.join(sorted(_COMPARISONS))}.")
        return and_(*(self._compare(field, key, name, operand) for name, operand in value.items()))

    def _compare(self, field: ColumnElement[Any], key: str, name: str, operand: Any) -> ColumnElement[bool]:
        self._count()
        if name == "in" and isinstance(operand, list):
            self._values += len(operand)
            if self._values > MAX_VALUES:
                raise InvalidFilter(f"The lists of 'in' have more than {MAX_VALUES} values together, with {key!r}.")
        return _compare(field, key, name, _canonical(operand) if key == "id" else operand)

    def _count(self) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidFilter(f"The filter has more than {MAX_CONDITIONS} conditions; 'in' takes a list of values.")


def _canonical(operand: Any) -> Any:
    """Return ids in the form that they are stored in; what is no id is left to be refused."""
    if isinstance(operand, list):
        return [canonical_id(value) if isinstance(value, str) else value for value in operand]
    return canonical_id(operand) if isinstance(operand, str) else operand


def _field(key: str) -> ColumnElement[Any]:
    """Return the field as JSON; SQL NULL when it is missing."""
    if key in _COLUMNS:
        return func.to_jsonb(_COLUMNS[key])
    path = key.removeprefix("metadata.")
    if path in ("", key) or not is_storable(path) or len(path) > MAX_PATH:
        key = key if len(key) <= MAX_PATH else f"{key[:40]}…"
        fields = "id, label, image_uri, origin, hops, uncertainty, metadata.<path>"
        raise InvalidFilter(f"{key!r} is not {fields}, and, or, or not.")
    # Given as a real array: SQLAlchemy's own JSON path is one text, in which commas, braces and spaces mean something.
    keys = literal(path.split("."), ARRAY(Text))
    return Item.metadata_.op("#>", return_type=JSONB())(keys)


def _compare(field: ColumnElement[Any], key: str, name: str, operand: Any) -> ColumnElement[bool]:
    if name == "in":
        if not isinstance(operand, list):
            raise InvalidFilter(f"'in' of {key!r} takes a list of values.")
        for value in operand:
            _check_scalar(key, value)
        # One parameter for the whole list, and a hash of it in the plan.
        return func.coalesce(field.in_(select(func.jsonb_array_elements(_json(operand)))), false())

    _check_scalar(key, operand)
    value = _json(operand)
    if name == "eq":
        return func.coalesce(field == value, false())
    if name == "ne":
        return func.coalesce(field != value, true())
    comparison = {"gt": field > value, "gte": field >= value, "lt": field < value, "lte": field <= value}[name]
    # JSON values of different types have an order in PostgreSQL; a range here compares like with like only.
    same_type = func.jsonb_typeof(field) == func.jsonb_typeof(value)
    return func.coalesce(and_(same_type, comparison), false())


def _check_scalar(key: str, value: object) -> None:
    if isinstance(value, dict | list):
        raise InvalidFilter(f"{key!r} is compared with strings, numbers, true, false or null.")
    if isinstance(value, str) and not is_storable(value):
        raise InvalidFilter(f"{key!r} is compared with a string that holds a NUL or is not valid Unicode.")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidFilter(f"{key!r} is compared with a number that is not finite.")


def _json(value: Any) -> ColumnElement[Any]:
    return cast(literal(value, JSONB), JSONB)
