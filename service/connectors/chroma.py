"""A gallery in a Chroma collection.

    chroma+http://host:8000/?collection=items[&token=…]   also chroma+https
    chroma:///folder?collection=items

The new side is another collection, `items_NAME`, with the old one's metadata, and its items' metadata, documents and
URIs. A switch renames the old one to `items_before_NAME` and the new one to `items`: two requests, between which (crash
point `connectors.chroma.renamed`) there is no collection of the name. Whoever opens the store with its new side after a
crash there does the second. An application that holds the old collection goes on using it, whatever its name, until it
gets the collection again.

Chroma does not tell of writes: what is changed after its range was copied is brought when the range is copied again.
It gives no items by a range of ids: each range asks for all ids, and holds them in memory.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import chromadb
import httpx
import numpy as np
from chromadb.config import Settings
from chromadb.errors import ChromaError, InternalError, RateLimitError

from service.connectors.address import Address
from service.connectors.store import (
    Description,
    KeyRange,
    NewSide,
    Rows,
    StoreAway,
    StoreRefused,
    Transform,
    Vectors,
    needed,
    refuse_not_finite,
    refuse_other_dims,
)
from service.crash_points import crash_point

_ITEMS_PER_REQUEST = 1_000
_IDS_PER_REQUEST = 20_000
_DIM = "gallery_upgrade_dim"  # in the new collection's metadata: Chroma knows none before the first item
_PARAMETERS = ("space", "ef_construction", "ef_search", "max_neighbors")


def connect(address: Address, new: NewSide | None) -> "ChromaStore":
    """Return the store that a URL names. Raises `StoreRefused` and `StoreAway`."""
    return ChromaStore(address.checked(["collection"], ["token"]), new)


def client_of(address: Address) -> Any:
    """Return a client of a server or a folder. Within a process, all clients of a folder have the same settings."""
    settings = Settings(anonymized_telemetry=False)
    with _answering():
        if address.scheme == "chroma":
            if not address.file.is_dir():
                raise StoreRefused(f"There is no folder {address.file.name!r}.")
            return chromadb.PersistentClient(str(address.file), settings=settings)
        token = address.parameters.get("token")
        headers = {"Authorization": f"Bearer {token}"} if token else None
        is_tls = address.scheme.endswith("https")
        port = address.port or (443 if is_tls else 8000)
        try:
            return chromadb.HttpClient(address.host or "", port, is_tls, headers, settings)
        except ValueError as error:
            raise StoreAway("Chroma does not answer.") from error


class ChromaStore:
    """A `service.connectors.store.ExternalStore`."""

    def __init__(self, address: Address, new: NewSide | None) -> None:
        self._name = address.parameters["collection"]
        self._new = new
        self._client = client_of(address)
        if new is not None and not self._has(self._name) and self._has(self._before) and self._has(self._target):
            self._rename(self._target, self._name)  # a switch that a crash cut in two
        self._collection(self._old)

    def describe(self) -> Description:
        old = self._collection(self._old)
        with _answering():
            rows = old.count()
        metric = ((old.configuration_json or {}).get("hnsw") or {}).get("space")
        return Description(
            rows=rows,
            embedding_dim=self._dim(old),
            side_information_dim=None,
            metric=str(metric) if metric in ("l2", "cosine", "ip") else None,
            dtype="float32",
            warning="A switch is two renames, and applications that hold the collection have to get it again.",
        )

    def bounds(self, rows: int) -> list[str]:
        return self._ids(self._collection(self._old), KeyRange(None, None))[rows - 1 :: rows]

    def read(self, keys: KeyRange) -> Rows:
        old = self._collection(self._old)
        return self._read(old, keys, self._dim(old))

    def payloads(self, keys: KeyRange) -> dict[str, dict[str, Any]]:
        """Return metadata, and a document and URI as `document` and `image_uri`."""
        collection = self._collection(self._old)
        ids = self._ids(collection, keys)
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(ids), _ITEMS_PER_REQUEST):
            with _answering():
                items = collection.get(
                    ids[start : start + _ITEMS_PER_REQUEST], include=["metadatas", "documents", "uris"]
                )
            for row, key in enumerate(items["ids"]):
                named = {"document": items["documents"], "image_uri": items["uris"]}
                said = {name: values[row] for name, values in named.items() if values and values[row] is not None}
                found[key] = said | dict(items["metadatas"][row] or {})
        return found

    def prepare(self) -> None:
        new = needed(self._new)
        if new.side_information_dim is not None:
            raise StoreRefused("A Chroma collection has no place for side information.")
        if self.is_switched():
            return
        if self._has(self._target):
            found = self._dim(self._collection(self._target))
            if found != new.embedding_dim:
                raise StoreRefused(f"The new side {new.name!r} is there, and holds vectors of {found} numbers.")
            return
        old = self._collection(self._old)
        metadata = {name: value for name, value in (old.metadata or {}).items() if not name.startswith("hnsw:")}
        hnsw = (old.configuration_json or {}).get("hnsw") or {}
        configuration = {"hnsw": {name: hnsw[name] for name in _PARAMETERS if name in hnsw}}
        with _answering():
            self._client.create_collection(
                self._target,
                metadata=metadata | {_DIM: new.embedding_dim},
                configuration=configuration if hnsw else None,
                embedding_function=None,
            )

    def write(self, keys: KeyRange, rows: Rows) -> None:
        refuse_other_dims(rows, needed(self._new))
        if self.is_switched():
            raise StoreRefused("Searches see the new side: it is written by the store's users, and no more from here.")
        old, target = self._collection(self._old), self._prepared()
        places = {key: row for row, key in enumerate(rows.keys)}
        written = set()
        for start in range(0, len(rows.keys), _ITEMS_PER_REQUEST):
            with _answering():
                items = old.get(
                    rows.keys[start : start + _ITEMS_PER_REQUEST], include=["metadatas", "documents", "uris"]
                )
                if items["ids"]:
                    embedding = rows.embedding[[places[key] for key in items["ids"]]]
                    # One that is replaced keeps the metadata that it had and this has not.
                    target.delete(items["ids"])
                    for having in _alike(items):
                        target.add(embeddings=embedding[having.pop("rows")], **having)
            written |= set(items["ids"])
        gone = [key for key in self._ids(target, keys) if key not in written]
        for start in range(0, len(gone), _ITEMS_PER_REQUEST):
            with _answering():
                target.delete(gone[start : start + _ITEMS_PER_REQUEST])

    def read_new(self, keys: KeyRange) -> Rows:
        return self._read(self._prepared(), keys, needed(self._new).embedding_dim)

    def changed_keys(self, limit: int) -> list[str]:  # noqa: ARG002 - the protocol's
        return []

    def settle(self, transform: Transform, limit: int) -> int:  # noqa: ARG002 - the protocol's
        return 0

    def index(self) -> None:
        """Do nothing: Chroma indexes what is written by itself."""
        needed(self._new)

    def switch(self, transform: Transform) -> None:  # noqa: ARG002 - the protocol's
        """1. Rename the old collection; 2. rename the new one. After a crash between the two, whoever opens the store
        does 2."""
        if self.is_switched():
            return
        self._prepared()
        self._rename(self._name, self._before)  # 1.
        crash_point("connectors.chroma.renamed")
        self._rename(self._target, self._name)  # 2.

    def switch_back(self, *, forget_written: bool = False) -> None:  # noqa: ARG002 - the protocol's
        if self.is_switched():
            self._rename(self._name, self._target)
            self._rename(self._before, self._name)

    def is_switched(self) -> bool:
        return self._has(self._before)

    def drop_new(self) -> None:
        if self.is_switched():
            raise StoreRefused("Searches see the new side: switch back before it is dropped.")
        if self._has(self._target):
            with _answering():
                self._client.delete_collection(self._target)

    def drop_old(self) -> None:
        if self.is_switched():
            with _answering():
                self._client.delete_collection(self._before)
        elif self._has(self._target):
            raise StoreRefused("Searches see the old side: switch before it is dropped.")

    def searched(self, query: Vectors, k: int) -> list[str]:
        with _answering():
            found = self._collection(self._name).query(query_embeddings=[query], n_results=k, include=[])
        return list(found["ids"][0])

    def close(self) -> None:
        """Do nothing: Chroma's clients share what they hold open."""

    @property
    def _target(self) -> str:
        return f"{self._name}_{needed(self._new).name}"

    @property
    def _before(self) -> str:
        return f"{self._name}_before_{needed(self._new).name}"

    @property
    def _old(self) -> str:
        return self._before if self._new is not None and self.is_switched() else self._name

    def _prepared(self) -> Any:
        """Return the new collection, whatever it is called now."""
        name = self._name if self.is_switched() else self._target
        if not self._has(name):
            raise StoreRefused("There is no new side: prepare it first.")
        return self._collection(name)

    def _has(self, name: str) -> bool:
        with _answering():
            return any(found.name == name for found in self._client.list_collections())

    def _collection(self, name: str) -> Any:
        if not self._has(name):
            raise StoreRefused(f"Chroma has no collection {name!r}.")
        with _answering():
            return self._client.get_collection(name, embedding_function=None)

    def _rename(self, name: str, to: str) -> None:
        collection = self._collection(name)
        with _answering():
            collection.modify(name=to)

    def _dim(self, collection: Any) -> int:
        dim = collection.get_model().dimension or (collection.metadata or {}).get(_DIM)
        if dim is None:
            raise StoreRefused(f"The collection {collection.name!r} has had no items, and knows no dimension.")
        return int(dim)

    def _ids(self, collection: Any, keys: KeyRange) -> list[str]:
        """Return the ids of a range, ascending."""
        found: list[str] = []
        while True:
            with _answering():
                page = collection.get(limit=_IDS_PER_REQUEST, offset=len(found), include=[])["ids"]
            found += page
            if len(page) < _IDS_PER_REQUEST:
                break
        found.sort()
        start = 0 if keys.after is None else bisect_right(found, keys.after)
        return found[start:] if keys.upto is None else found[start : bisect_right(found, keys.upto)]

    def _read(self, collection: Any, keys: KeyRange, dim: int) -> Rows:
        vectors: dict[str, Any] = {}
        ids = self._ids(collection, keys)
        for start in range(0, len(ids), _ITEMS_PER_REQUEST):
            with _answering():
                items = collection.get(ids[start : start + _ITEMS_PER_REQUEST], include=["embeddings"])
            vectors |= dict(zip(items["ids"], items["embeddings"], strict=True))
        there = [key for key in ids if key in vectors]
        embedding = np.array([vectors[key] for key in there], np.float32).reshape(len(there), dim)
        return refuse_not_finite(Rows(there, embedding))


def _alike(items: Any) -> Iterator[dict[str, Any]]:
    """Give items in groups that have the same of metadata, documents and URIs: Chroma adds lists without gaps."""
    names = ("metadatas", "documents", "uris")
    groups: dict[tuple[bool, ...], list[int]] = {}
    for row in range(len(items["ids"])):
        has = tuple(bool(items[name]) and items[name][row] is not None for name in names)
        groups.setdefault(has, []).append(row)
    for has, rows in groups.items():
        given = [name for name, is_there in zip(names, has, strict=True) if is_there]
        yield {"rows": rows} | {name: [items[name][row] for row in rows] for name in ("ids", *given)}


@contextmanager
def _answering() -> Iterator[None]:
    """Raise what Chroma's client raises as errors of stores."""
    try:
        yield
    except (httpx.TransportError, InternalError, RateLimitError) as error:
        raise StoreAway("Chroma does not answer, or fails.") from error
    except (ChromaError, ValueError) as error:
        raise StoreRefused(f"Chroma: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
