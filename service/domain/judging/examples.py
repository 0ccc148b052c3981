"""The examples of a report, with what their items are now: the report holds ids and distances alone."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.index.protocol import NO_ID
from service.tables import Item, Report


class ExampleKind(StrEnum):
    """What examples are of; the content of a report has them under these names."""

    NEGATIVE_FLIPS = "negative_flips"
    POSITIVE_FLIPS = "positive_flips"
    CHURN = "churn"
    HUBS = "hubs"
    UNCERTAIN = "uncertain"


class Since(StrEnum):
    """What became of an item after the report."""

    SAME = "same"
    CHANGED = "changed"  # it was written again, so that its label and image may be others
    GONE = "gone"  # it was deleted, and has neither


@dataclass(frozen=True)
class ExampleItem:
    """An item as it is now; `key` is its internal id."""

    key: int
    id: str
    label: str | None
    has_thumbnail: bool
    since: Since


@dataclass(frozen=True)
class FoundItem:
    """An item of an answer."""

    item: ExampleItem
    distance: float


@dataclass(frozen=True)
class Example:
    """A query by its item, None where it was none, and both generations' answers, nearest first.

    The values are what it was chosen by. Flips: the rank of the first right item, None beyond ten. Churn: of the next
    generation, the overlap@10. Hubs: in how many answers the item was; their answers are the items whose queries found
    it. Uncertain: of the next generation, the squared error that h expects.
    """

    item: ExampleItem | None
    value_before: float | None
    value_after: float | None
    before: list[FoundItem]
    after: list[FoundItem]

    @property
    def items(self) -> Iterator[ExampleItem]:
        """Every item of it."""
        if self.item is not None:
            yield self.item
        yield from (found.item for found in (*self.before, *self.after))


Examples = dict[ExampleKind, list[Example]]


def read_examples(session: Session, report: Report, kinds: Iterable[ExampleKind], limit: int) -> Examples:
    """Return up to `limit` examples of each kind, the most telling first."""
    kept = json.loads(report.content)["measurements"]["examples"]
    chosen = {kind: kept[kind][:limit] for kind in kinds}
    keys = {key for examples in chosen.values() for example in examples for key in _keys(example)}
    items = _items(session, report, keys)
    return {kind: [_joined(example, items) for example in examples] for kind, examples in chosen.items()}


def read_thumbnails(session: Session, examples: Examples) -> dict[int, bytes]:
    """Return the thumbnails of all items of examples that have one, as JPEG, by `key`."""
    keys = {item.key for some in examples.values() for example in some for item in example.items}
    query = select(Item.id, Item.thumbnail).where(Item.id.in_(keys), Item.deleted_at.is_(None))
    return {key: thumbnail for key, thumbnail in session.execute(query) if thumbnail is not None}


def _keys(example: Mapping[str, Any]) -> Iterator[int]:
    if example["item_id"] != NO_ID:
        yield example["item_id"]
    yield from example["before"]["ids"]
    yield from example["after"]["ids"]


def _items(session: Session, report: Report, keys: Iterable[int]) -> dict[int, ExampleItem]:
    has_thumbnail = Item.thumbnail.is_not(None)
    query = select(Item.id, Item.external_id, Item.label, has_thumbnail, Item.revision, Item.deleted_at)
    return {
        key: ExampleItem(key, external_id, label, thumbnail, _since(report, revision, is_gone=deleted_at is not None))
        for key, external_id, label, thumbnail, revision, deleted_at in session.execute(query.where(Item.id.in_(keys)))
    }


def _since(report: Report, revision: int, *, is_gone: bool) -> Since:
    if is_gone:
        return Since.GONE
    return Since.CHANGED if revision > report.revision else Since.SAME


def _joined(example: Mapping[str, Any], items: Mapping[int, ExampleItem]) -> Example:
    return Example(
        items.get(example["item_id"]),
        example["value_before"],
        example["value_after"],
        _found(example["before"], items),
        _found(example["after"], items),
    )


def _found(answer: Mapping[str, Sequence[Any]], items: Mapping[int, ExampleItem]) -> list[FoundItem]:
    pairs = zip(answer["ids"], answer["distances"], strict=True)
    return [FoundItem(items[key], distance) for key, distance in pairs]
