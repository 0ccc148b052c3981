"""`/v1/stores`: the stores that an operator named, where galleries may be upgraded."""

from dataclasses import asdict

from fastapi import APIRouter
from pydantic import BaseModel

from service.api.dependencies import Parts, PartsDependency
from service.api.json_bodies import JsonRoute
from service.errors import GalleryError

router = APIRouter(tags=["external upgrades"], route_class=JsonRoute)


class DescriptionView(BaseModel):
    """What a store holds: `metric` is null where it does not know; with `scales` it brings vectors to unit norm itself,
    and with `notices_writes` it says which rows were written while it is upgraded."""

    rows: int
    embedding_dim: int
    side_information_dim: int | None
    metric: str | None
    dtype: str
    scales: bool
    notices_writes: bool
    warning: str | None


class StoreView(BaseModel):
    """A store by its name, and what it says of itself; else why it says nothing."""

    name: str
    description: DescriptionView | None
    error: str | None


class StoresAnswer(BaseModel):
    items: list[StoreView]


@router.get("/stores")
def list_stores(parts: PartsDependency) -> StoresAnswer:
    """Return the stores that an operator named, with what each says of itself now."""
    return StoresAnswer(items=[_store_view(parts, name) for name in parts.stores.names()])


def _store_view(parts: Parts, name: str) -> StoreView:
    try:
        with parts.stores.opened(name) as store:
            described = store.describe()
    except GalleryError as error:
        return StoreView(name=name, description=None, error=error.message)
    return StoreView(name=name, description=DescriptionView(**asdict(described)), error=None)
