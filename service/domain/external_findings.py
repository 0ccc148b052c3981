"""What going over another store's ranges found, as an upgrade's row keeps it; pure, no database."""

from dataclasses import dataclass

from service.json_records import JsonRecord


@dataclass(frozen=True)
class Findings(JsonRecord):
    """What the verification found, of `passes` that compared both sides: see `docs/external.md`."""

    passes: int
    ranges: int
    rows: int
    rows_in_store: int
    ids_sha256: str
    new_side_sha256: str
    changed_ranges: int
    repaired_ranges: int
    rows_transformed_anew: int
    largest_difference: float
    number_format: str


@dataclass(frozen=True)
class Late(JsonRecord):
    """What was written on the old side around the switch: how many ranges, and in these the keys whose sides differ,
    the first ones by name; or `error` says why it is not known. Empty of a store that notices writes by itself."""

    changed_ranges: int | None = None
    conflicts: int | None = None
    conflicting_keys: tuple[str, ...] = ()
    error: str | None = None

    def __bool__(self) -> bool:
        return self != Late()


@dataclass(frozen=True)
class Conflicts(JsonRecord):
    """The keys of a range whose sides differ after the switch: how many, and the first ones."""

    count: int
    keys: tuple[str, ...]
