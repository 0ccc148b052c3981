"""Types of columns: an enumeration as text, and the legs of an upgrade as JSON."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Dialect, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB


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


@dataclass(frozen=True)
class Leg:
    """A generation to read and the transformations to apply to its rows, first to last."""

    generation_id: int
    transformation_ids: tuple[int, ...]

    def to_json(self) -> dict[str, object]:
        return {"generation": self.generation_id, "transformations": list(self.transformation_ids)}


class LegsJson(TypeDecorator[list[Leg]]):
    """[{"generation": id, "transformations": [ids]}] in the database, legs here."""

    impl = JSONB
    cache_ok = True
    coerce_compared_value = JSONB().coerce_compared_value  # a condition looks into the JSON

    def process_bind_param(self, value: list[Leg] | None, dialect: Dialect) -> Any:  # noqa: ARG002 - SQLAlchemy's
        return None if value is None else [leg.to_json() for leg in value]

    def process_result_value(self, value: Any, dialect: Dialect) -> list[Leg]:  # noqa: ARG002 - likewise
        return [Leg(leg["generation"], tuple(leg["transformations"])) for leg in value]
