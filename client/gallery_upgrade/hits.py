"""What a search found."""

import base64
import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from gallery_upgrade.errors import Problem

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from gallery_upgrade.api import models
    from gallery_upgrade.client import Client

_PICTURES = 24


class Hits(Sequence["models.NeighborView"]):
    """The neighbours of one query, nearest first; a smaller distance is closer for every metric.

    All come from one generation: `model_version`, `generation` and `revision` name it. `complete` says of groups
    whether all that were wanted were found, and is None of other hits. In a notebook the hits are shown as pictures,
    where the gallery keeps thumbnails.
    """

    def __init__(
        self,
        client: "Client",
        gallery: str,
        neighbors: "list[models.NeighborView]",
        answer: "models.ImageAnswer | models.BatchAnswer",
        complete: bool | None = None,
    ) -> None:
        self._client = client
        self._gallery = gallery
        self.neighbors = neighbors
        self.model_version = answer.model_version
        self.generation = answer.generation
        self.revision = answer.revision
        self.exact = answer.exact
        self.complete = complete

    def __len__(self) -> int:
        return len(self.neighbors)

    def __iter__(self) -> "Iterator[models.NeighborView]":
        return iter(self.neighbors)

    @overload
    def __getitem__(self, index: int) -> "models.NeighborView": ...
    @overload
    def __getitem__(self, index: slice) -> "Sequence[models.NeighborView]": ...
    def __getitem__(self, index: int | slice) -> "models.NeighborView | Sequence[models.NeighborView]":
        return self.neighbors[index]

    def __repr__(self) -> str:
        lines = [f"{hit.distance:10.4f}  {hit.id}" for hit in self.neighbors]
        return "\n".join([f"{len(self)} hits under {self.model_version}", *lines])

    @property
    def ids(self) -> list[str]:
        return [hit.id for hit in self.neighbors]

    def to_numpy(self) -> "tuple[NDArray[np.str_], NDArray[np.float64]]":
        """Return ids (k,) and distances (k,) float64."""
        import numpy as np

        return np.array(self.ids, dtype=np.str_), np.array([hit.distance for hit in self.neighbors], dtype=np.float64)

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row for each hit."""
        import pandas as pd

        return pd.DataFrame([hit.model_dump() for hit in self.neighbors])

    def thumbnail(self, item_id: str) -> bytes | None:
        """Return an item's thumbnail as JPEG, or None where there is none."""
        try:
            return self._client.api.get_thumbnail(name=self._gallery, item_id=item_id)
        except Problem:
            return None

    def _repr_html_(self) -> str:
        cells = []
        for hit in self.neighbors[:_PICTURES]:
            picture = self.thumbnail(hit.id) if hit.thumbnail_url else None
            source = "" if picture is None else f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
            image = f'<img src="{source}" style="max-width:128px;max-height:128px">' if source else ""
            label = "" if hit.label is None else f" · {html.escape(hit.label)}"
            cells.append(
                f'<figure style="display:inline-block;margin:4px;text-align:center">{image}'
                f"<figcaption>{html.escape(hit.id)}{label}<br>{hit.distance:.4f}</figcaption></figure>"
            )
        return f"<div>{''.join(cells)}</div>"


def rows_of(hits: "Hits") -> list[dict[str, Any]]:
    """Return the fields of each hit, as JSON has them."""
    return [hit.model_dump(mode="json") for hit in hits]
