"""What claimed work keeps of rows that it cannot do: how many, and the first ones by name; pure, no database."""

from dataclasses import dataclass

from service.json_records import JsonRecord


@dataclass(frozen=True)
class RefusedItem:
    """An item that cannot be upgraded; the reason are words that follow "its"."""

    item_id: int
    reason: str


@dataclass(frozen=True)
class RefusedItems(JsonRecord):
    """The items of a batch that cannot be upgraded."""

    count: int
    first: tuple[RefusedItem, ...]


@dataclass(frozen=True)
class RefusedKey:
    """A row of another store that cannot be transformed; the reason are words that follow "its"."""

    key: str
    reason: str


@dataclass(frozen=True)
class RefusedKeys(JsonRecord):
    """The rows of a range that cannot be transformed."""

    count: int
    first: tuple[RefusedKey, ...]
