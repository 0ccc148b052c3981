"""What the row of an erasure's job keeps: what was asked for, and what was found and removed: its proof."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from service.canonical_json import digest_of
from service.domain.phases import phase_of
from service.identity import Actor
from service.json_records import JsonRecord
from service.tables import Json


@dataclass(frozen=True)
class ErasureRequest(JsonRecord):
    """Whose all is to be erased, or of which gallery; of items, how many ids there are, and a digest of them."""

    gallery: str | None
    tenant: str | None
    galleries: int
    asked_by: Actor
    ids: int | None = None
    ids_sha256: str | None = None

    def asked_for(self) -> Json:
        """Return what was asked for, without who did."""
        return {name: value for name, value in self.to_json().items() if name != "asked_by"}


@dataclass(frozen=True)
class FoundPlace(JsonRecord):
    """How much of a gallery there was in a place, was removed and remains, and why it does."""

    gallery: str
    place: str
    found: int
    removed: int
    remains: int = 0
    why: str | None = None


@dataclass(frozen=True)
class Found(JsonRecord):
    """What an erasure found, place by place; once it was counted again, also what is left elsewhere, and when that
    was."""

    places: tuple[FoundPlace, ...] = ()
    left: tuple[Json, ...] | None = None
    counted_at: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_json().items() if value is not None}

    def adding(self, places: Sequence[FoundPlace]) -> Self:
        """Return it with what a further step found, in the sums of places that are known."""
        known = {(place.gallery, place.place): place for place in self.places}
        for place in places:
            before = known.get((place.gallery, place.place), replace(place, found=0, removed=0))
            found, removed = before.found + place.found, before.removed + place.removed
            known[place.gallery, place.place] = replace(place, found=found, removed=removed)
        return replace(self, places=tuple(known.values()))

    def proof(self, request: ErasureRequest) -> Json:
        """Return what the job ends with, with its own digest."""
        content = {"asked_for": request.asked_for(), **self.to_json()}
        return {**content, "sha256": digest_of(content)}


def erasing(done: int, total: int) -> Json:
    """Return how far an erasure is."""
    return {"erasing": phase_of(done, total, "galleries").to_json()}
