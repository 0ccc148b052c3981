"""Records that are kept as JSON, in columns of rows: each is written and read here."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import TypeAdapter


class JsonRecord:
    """A frozen dataclass that is kept as a JSON object of its fields, by their names; keys that it does not know are
    passed over."""

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = _adapter(type(self)).dump_python(self, mode="json")
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        record: Self = _adapter(cls).validate_python(values)
        return record


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(record: type) -> TypeAdapter[Any]:
    if record not in _ADAPTERS:
        _ADAPTERS[record] = TypeAdapter(record)
    return _ADAPTERS[record]
