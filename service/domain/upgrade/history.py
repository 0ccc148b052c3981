"""What the rows of a gallery's generations went through since the images were encoded, or the vectors imported."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.tables import Transformation, Upgrade


@dataclass(frozen=True)
class History:
    """How most of a generation's rows came about: `hops` transformations of the rows of `root_generation_id`, which
    were encoded or imported. `drawn_to_classes` says whether any of its rows was, on the last hop or on one before."""

    root_generation_id: int
    hops: int = 0
    drawn_to_classes: bool = False


class Histories:
    """The histories of a gallery's generations, dropped ones too."""

    def __init__(self, session: Session, gallery_id: int, registered: Iterable[Transformation]) -> None:
        drawing = {transformation.id for transformation in registered if transformation.draws_to_classes}
        self._derived: dict[int, History] = {}
        for upgrade in session.scalars(select(Upgrade).where(Upgrade.gallery_id == gallery_id).order_by(Upgrade.id)):
            befores = [self.of(leg.generation_id) for leg in upgrade.legs]
            drawn = any(
                before.drawn_to_classes or not drawing.isdisjoint(leg.transformation_ids)
                for before, leg in zip(befores, upgrade.legs, strict=True)
            )
            hops = befores[0].hops + len(upgrade.legs[0].transformation_ids)
            self._derived[upgrade.to_generation_id] = History(befores[0].root_generation_id, hops, drawn)

    def of(self, generation_id: int) -> History:
        """Return a generation's history; one that no upgrade made is its own root."""
        return self._derived.get(generation_id, History(generation_id))
