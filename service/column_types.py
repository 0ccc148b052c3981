"""Types of columns: an enumeration as text, records as JSON, and the legs of an upgrade."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Dialect, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB

from service.json_records import JsonRecord


class EnumeratedText(TypeDecorator[StrEnum]):
    """Text in the database, a member of an enumeration here."""

    impl = Text
    cache_ok = True

    def __init__(self, enumeration: type[StrEnum]) -> None:
        super().__init__()
        self.enumeration = enumeration

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's
        return None if value is None else self.enumeration(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:  # noqa: ARG002 - likewise
        return None if value is None else self.enumeration(value)


class RecordJson(TypeDecorator[JsonRecord]):
    """A JSON object in the database, a record here; None is NULL."""

    impl = JSONB
    cache_ok = True

    def __init__(self, record: type[JsonRecord]) -> None:
        super().__init__(none_as_null=True)
        self.record = record

    def process_bind_param(self, value: JsonRecord | None, dialect: Dialect) -> Any:  # noqa: ARG002 - SQLAlchemy's
        return None if value is None else value.to_json()

    def process_result_value(self, value: Any, dialect: Dialect) -> JsonRecord | None:  # noqa: ARG002 - likewise
        return None if value is None else self.record.from_json(value)


class RecordsJson(TypeDecorator[list[JsonRecord]]):
    """A JSON list of objects in the database, a list of records here."""

    impl = JSONB
    cache_ok = True
    coerce_compared_value = JSONB().coerce_compared_value  # a condition looks into the JSON

    def __init__(self, record: type[JsonRecord]) -> None:
        super().__init__()
        self.record = record

    def process_bind_param(self, value: list[JsonRecord] | None, dialect: Dialect) -> Any:  # noqa: ARG002 - likewise
        return None if value is None else [each.to_json() for each in value]

    def process_result_value(self, value: Any, dialect: Dialect) -> list[JsonRecord]:  # noqa: ARG002 - likewise
        return [self.record.from_json(each) for each in value]


@dataclass(frozen=True)
class Leg(JsonRecord):
    """A generation to read and the transformations to apply to its rows, first to last."""

    generation_id: int
    transformation_ids: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"generation": self.generation_id, "transformations": list(self.transformation_ids)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Leg":
        return cls(values["generation"], tuple(values["transformations"]))
