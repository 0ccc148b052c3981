"""Galleries: made, filled, searched and upgraded."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from gallery_upgrade.api import requests
from gallery_upgrade.arrays import ARROW_STREAM, arrow_batches, arrow_stream, read_vectors
from gallery_upgrade.core.calls import UNSET, Unset
from gallery_upgrade.errors import Conflict
from gallery_upgrade.hits import Hits
from gallery_upgrade.images import Image, image_file, query_of
from gallery_upgrade.ledger import ledger_path, opened_ledger
from gallery_upgrade.progress import Show, shown
from gallery_upgrade.searching import FIRST_PAGE, OneQuery, found_by, search_call
from gallery_upgrade.upgrades import Upgrade
from gallery_upgrade.uploading import Describe, FolderUpload, Uploaded, write_rejected

if TYPE_CHECKING:
    import pyarrow as pa

    from gallery_upgrade.api import models
    from gallery_upgrade.client import Client

Filter = Mapping[str, Any]
Generation = Literal["active", "next"] | int
_IMPORTED_AT_ONCE = 100_000


class Galleries:
    """The galleries of a service."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(
        self,
        name: str,
        *,
        model_version: str,
        metric: Literal["l2", "cosine", "ip"] | Unset = UNSET,
        dtype: Literal["float16", "float32"] | Unset = UNSET,
        task: Literal["instance", "class"] | Unset = UNSET,
        index: Literal["auto", "flat", "hnsw", "ivf", "ivf_sq8"] | Unset = UNSET,
        thumbnails: bool | Unset = UNSET,
        probe_images: int | Unset = UNSET,
        exist_ok: bool = False,
    ) -> "Gallery":
        """Create an empty gallery under a model version. With `exist_ok`, one of that name is taken as it is.

        Raises `GalleryExists` (without `exist_ok`) and `UnknownVersion`.
        """
        try:
            view = self._client.api.create_gallery(
                name=name,
                model_version=model_version,
                metric=metric,
                dtype=dtype,
                task=task,
                index=index,
                thumbnails=thumbnails,
                probe_images=probe_images,
            )
        except Conflict:
            if not exist_ok:
                raise
            return self.get(name)
        return Gallery(self._client, view)

    def get(self, name: str) -> "Gallery":
        """Return a gallery. Raises `UnknownGallery`."""
        return Gallery(self._client, self._client.api.get_gallery(name=name))

    def __getitem__(self, name: str) -> "Gallery":
        return self.get(name)

    def __iter__(self) -> "Iterator[Gallery]":
        return (Gallery(self._client, view) for view in self._client.pages(self._client.api.list_galleries))

    def delete(self, name: str) -> None:
        """Delete a gallery with everything in it. Raises `UnknownGallery`, and `Conflict` while it is upgraded."""
        self._client.api.delete_gallery(name=name)


class Gallery:
    """A gallery; `view` is what was last read of it."""

    def __init__(self, client: "Client", view: "models.GalleryView") -> None:
        self._client = client
        self.view = view

    def __repr__(self) -> str:
        return f"Gallery({self.name!r}, {self.view.items} items under {self.view.model_version})"

    def __len__(self) -> int:
        return self.refresh().view.items

    def __bool__(self) -> bool:
        return True

    @property
    def name(self) -> str:
        return self.view.name

    @property
    def model_version(self) -> str:
        return self.view.model_version

    def refresh(self) -> "Gallery":
        """Read it again."""
        self.view = self._client.api.get_gallery(name=self.name)
        return self

    def delete(self) -> None:
        """Delete it with everything in it."""
        self._client.api.delete_gallery(name=self.name)

    # What it holds.

    def items(self) -> "Iterator[models.ItemView]":
        """Give every item, page by page."""
        return self._client.pages(self._client.api.list_items, name=self.name, limit=1000)

    def item(self, item_id: str) -> "models.ItemView":
        """Return an item. Raises `UnknownItem`."""
        return self._client.api.get_item(name=self.name, item_id=item_id)

    def delete_items(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> int:
        """Delete items by their ids, or those that a filter selects; return how many."""
        return self._client.api.delete_items(
            name=self.name, ids=UNSET if ids is None else ids, filter=UNSET if filter is None else filter
        ).deleted

    def quality(self) -> "models.QualityView":
        """Say where its embeddings come from, and what h expects them to be worth."""
        return self._client.api.get_quality(name=self.name)

    def upload_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        progress: bool | Show = False,
        threads: int = 4,
        describe: Describe | None = None,
        delete_missing: bool = False,
        delete_most: bool = False,
        ledger: str | os.PathLike[str] | None = None,
        rejected: str | os.PathLike[str] = "rejected.csv",
    ) -> Uploaded:
        """Send the images below a folder; an item's id is its file's path there. What was sent is kept in a ledger: a
        second run sends what is new or changed, and a run that was killed goes on.

        `describe` returns label, metadata or image_uri of a file's path. With `delete_missing`, items are deleted whose
        files were sent once and are gone; if that are more than half of them, with `delete_most` alone, and
        `WouldDeleteMost` is raised else. Files that were not taken are listed in `rejected`, with the reasons: those
        that the service rejected, that vanished meanwhile or cannot be read, and whose names are not Unicode.
        Raises NotADirectoryError for a folder that is not there, or no more; OSError, `Problem`, `ServiceAway`, and
        `uploading.Interrupted`, a KeyboardInterrupt that says what was sent.
        """
        where = Path(folder).expanduser().resolve()
        path = Path(ledger) if ledger is not None else ledger_path(self._client.url, self.name, where)
        with opened_ledger(path, self.view.created_at.isoformat()) as rows, shown(progress) as show:
            upload = FolderUpload(
                self._client, self.name, where, rows, threads, describe, delete_missing, delete_most, show
            )
            uploaded = upload.run()
        write_rejected(Path(rejected), uploaded.reasons)
        return uploaded

    def upload(self, images: Mapping[str, Image]) -> "list[models.ImageResultView]":
        """Send images by their ids: paths, bytes, PIL images or arrays. Return what became of each."""
        files = [image_file(image) for image in images.values()]
        items = [{"id": item_id} for item_id in images]
        return self._client.api.post_images(name=self.name, files=files, items=items).results

    def import_vectors(
        self,
        vectors: "pa.Table | str | os.PathLike[str]",
        *,
        model_version: str | Unset = UNSET,
        progress: bool | Show = False,
    ) -> int:
        """Store vectors of the gallery's model version, and return how many. They come from a table with the columns
        id, embedding, side_information?, label?, metadata?, or from a file or folder (`arrays.read_vectors`).

        Each table of 100,000 rows is stored whole or not at all; a second run replaces what is there by the same.
        Raises `BadRows`, which names the rows that cannot be stored.
        """
        if isinstance(vectors, str | os.PathLike):
            tables = read_vectors(Path(vectors).expanduser(), _IMPORTED_AT_ONCE)
        else:
            starts = range(0, vectors.num_rows, _IMPORTED_AT_ONCE)
            tables = (vectors.slice(start, _IMPORTED_AT_ONCE) for start in starts)
        count = 0
        with shown(progress) as show:
            for table in tables:
                count += self._client.api.post_embeddings(
                    name=self.name,
                    content=arrow_stream(table),
                    content_type=ARROW_STREAM,
                    model_version=model_version,
                ).count
                if show is not None:
                    show({"importing": {"done": count, "total": count}})
        return count

    def vectors(self, *, generation: str | Unset = UNSET) -> "Iterator[pa.RecordBatch]":
        """Give the rows of a generation as Arrow batches while they come, all of one revision: id, embedding,
        side_information?, origin, hops, uncertainty, label, metadata."""
        call = requests.get_embeddings(name=self.name, generation=generation, format="arrow")
        with self._client.stream(call) as body:
            yield from arrow_batches(body)

    # Searching.

    def search(
        self,
        query: Image,
        *,
        k: int = 10,
        filter: Filter | None = None,
        generation: Generation | Unset = UNSET,
        max_distance: float | Unset = UNSET,
        exclude_id: str | Unset = UNSET,
        group_by: str | Unset = UNSET,
    ) -> Hits:
        """Return the nearest items of an image: a path, bytes, a PIL image or an array of uint8; of a vector (D,); or
        of an item, by its id. A string is the path of a file that is there, and else an id.

        `filter` is a condition such as {"metadata.year": {"gte": 2020}}. With `group_by`, "label" or
        "metadata.<path>", the nearest item of each value is returned, which is its `group`; `complete` says whether k
        groups were found, or all. Raises `UnknownItem`, TypeError for another kind of query, and OSError for a file
        that cannot be read.
        """
        asked = query_of(query)
        call = search_call(
            self.name,
            asked,
            k=k,
            filter=filter,
            generation=generation,
            max_distance=max_distance,
            exclude_id=exclude_id,
            group_by=group_by,
        )
        return self._hits(asked, self._client.perform(call))

    def search_pages(
        self,
        query: Image,
        *,
        k: int = 100,
        filter: Filter | None = None,
        generation: Generation | Unset = UNSET,
        max_distance: float | Unset = UNSET,
        exclude_id: str | Unset = UNSET,
    ) -> Iterator[Hits]:
        """Give the neighbours of a query page by page, k on each: all of one revision, none twice. A page is asked for
        when it is wanted. Raises what `search` does, and while they are read `TooDeep` after 10,000 neighbours, and
        `NoSuchGeneration` or `CursorOutdated` where they cannot go on.
        """
        asked = query_of(query)
        cursor: str | None = FIRST_PAGE
        while cursor is not None:
            call = search_call(
                self.name,
                asked,
                k=k,
                filter=filter,
                generation=generation,
                max_distance=max_distance,
                exclude_id=exclude_id,
                cursor=cursor,
            )
            answer = self._client.perform(call)
            yield self._hits(asked, answer)
            cursor = answer.next_cursor

    def _hits(self, query: OneQuery, answer: "models.ImageAnswer | models.BatchAnswer") -> Hits:
        neighbors, complete = found_by(query, answer)
        return Hits(self._client, self.name, neighbors, answer, complete)

    def search_vectors(
        self,
        vectors: Any,
        *,
        k: int = 10,
        filter: Filter | None = None,
        generation: Generation | Unset = UNSET,
        max_distance: float | Unset = UNSET,
        model_version: str | Unset = UNSET,
        group_by: str | Unset = UNSET,
    ) -> list[Hits]:
        """Return the nearest items of each vector: (Q, D), an array or lists, of the answering model version."""
        rows = vectors.astype(float).tolist() if hasattr(vectors, "astype") else vectors
        batch = self._client.api.search_by_vectors(
            name=self.name,
            vectors=rows,
            k=k,
            filter=filter,
            generation=generation,
            max_distance=max_distance,
            model_version=model_version,
            group_by=group_by,
        )
        return [
            Hits(self._client, self.name, neighbors, batch, None if batch.complete is None else batch.complete[place])
            for place, neighbors in enumerate(batch.neighbors)
        ]

    # Upgrading.

    def upgrade(
        self,
        to_version: str,
        *,
        transformation: int | Unset = UNSET,
        cutover: Literal["auto", "manual"] | Unset = UNSET,
        speed: float | Unset = UNSET,
        gates: Sequence[Mapping[str, Any]] | Unset = UNSET,
        observe: bool | Unset = UNSET,
        bake: Mapping[str, Any] | Unset = UNSET,
        smoothing: Mapping[str, Any] | Unset = UNSET,
    ) -> Upgrade:
        """Start an upgrade to a model version, and return it; `wait` for it. Raises `UpgradeOpen`, `NoPath` and other
        kinds of `Conflict`."""
        view = self._client.api.plan_upgrade(
            name=self.name,
            to_version=to_version,
            transformation=transformation,
            cutover=cutover,
            speed=speed,
            gates=gates,
            observe=observe,
            bake=bake,
            smoothing=smoothing,
        )
        return Upgrade(self._client, cast("models.UpgradeView", view))

    def plan_upgrade(self, to_version: str, *, transformation: int | Unset = UNSET) -> "models.DryRunView":
        """Say what an upgrade would take; nothing is written."""
        call = requests.plan_upgrade(name=self.name, to_version=to_version, transformation=transformation, dry_run=True)
        return cast("models.DryRunView", self._client.perform(call))

    def upgrades(self) -> Iterator[Upgrade]:
        """Give its upgrades, the newest first."""
        views = self._client.pages(self._client.api.list_upgrades, name=self.name)
        return (Upgrade(self._client, view) for view in views)
