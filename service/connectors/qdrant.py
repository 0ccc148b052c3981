"""A gallery in a Qdrant collection that its users search by an alias.

    qdrant+http://host:6333/?collection=ALIAS[&vector=name][&side_information=name][&api_key=…]   also qdrant+https
    qdrant:///folder?collection=ALIAS…   Qdrant's local mode, for one process at a time

The new side is another collection, `ALIAS_NAME`, made as the old one is but for the vectors' width; payloads and
other vectors of the points are copied with each range. A switch points the alias at it by one request, which Qdrant
does whole or not at all; another alias, `ALIAS_before_NAME`, keeps what it pointed at. A collection that is searched by
its own name is described and read, but not upgraded: no request gives its name to another.

The API key may stand in QDRANT_API_KEY instead. Qdrant does not tell of writes: what is changed after its range was
copied is brought when the range is copied again. With cosine, Qdrant stores vectors at unit norm.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from service.connectors.address import Address
from service.connectors.aliased import AliasedStore
from service.connectors.store import (
    Description,
    KeyRange,
    NewSide,
    Rows,
    StoreAway,
    StoreRefused,
    Vectors,
    needed,
    refuse_not_finite,
    refuse_other_dims,
)

_TIMEOUT_SECONDS = 60
_SCROLLED = 1_000
_NUMBERS_PER_REQUEST = 2**19
_METRICS = {models.Distance.COSINE: "cosine", models.Distance.EUCLID: "l2", models.Distance.DOT: "ip"}
_PASSING = (408, 425, 429)  # statuses below 500 under which the same request may succeed later

PointId = int | str


def connect(address: Address, new: NewSide | None) -> "QdrantStore":
    """Return the store that a URL names. Raises `StoreRefused` and `StoreAway`."""
    return QdrantStore(address.checked(["collection"], ["vector", "side_information", "api_key"]), new)


class QdrantStore(AliasedStore):
    """A `service.connectors.store.ExternalStore`."""

    def __init__(self, address: Address, new: NewSide | None) -> None:
        named = address.parameters
        super().__init__(named["collection"], new)
        self._vector = named.get("vector", "")
        self._side = named.get("side_information")
        self._client, self._release = _client(address)
        try:
            self._params(self._old)
        except BaseException:
            self._release()
            raise

    def describe(self) -> Description:
        vector = self._params(self._old)
        side = None if self._side is None else self._params(self._old, self._side).size
        with _answering():
            rows = self._client.count(self._old, exact=True).count
        return Description(
            rows=rows,
            embedding_dim=vector.size,
            side_information_dim=side,
            metric=_METRICS.get(vector.distance),
            dtype="float16" if vector.datatype == models.Datatype.FLOAT16 else "float32",
            scales=vector.distance == models.Distance.COSINE,
            warning=self._warning(),
        )

    def bounds(self, rows: int) -> list[str]:
        points = self._points(self._old, KeyRange(None, None), with_vectors=False)
        return [str(point.id) for point in islice(points, rows - 1, None, rows)]

    def read(self, keys: KeyRange) -> Rows:
        dims = self._params(self._old).size, None if self._side is None else self._params(self._old, self._side).size
        return self._read(self._old, keys, *dims)

    def payloads(self, keys: KeyRange) -> dict[str, dict[str, Any]]:
        points = self._points(self._old, keys, with_vectors=False, with_payload=True)
        return {str(point.id): dict(point.payload) for point in points if point.payload}

    def prepare(self) -> None:
        """Make the new collection. A crash between the steps is completed by the next call: 1. an alias keeps the old
        collection; 2. the new collection; 3. its payload indexes."""
        new = needed(self._new)
        if self.is_switched():
            return
        self._keep_old()  # 1.
        with _answering():
            info = self._client.get_collection(self._old)
        if self._has(self._target):
            found = self._params(self._target).size
            if found != new.embedding_dim:
                raise StoreRefused(f"The new side {new.name!r} is there, and holds vectors of {found} numbers.")
        else:
            with _answering():
                self._client.create_collection(self._target, **self._made_alike(info.config, new))  # 2.
        for field, index in info.payload_schema.items():  # 3.
            with _answering():
                self._client.create_payload_index(self._target, field, index.params or index.data_type)

    def write(self, keys: KeyRange, rows: Rows) -> None:
        new = needed(self._new)
        refuse_other_dims(rows, new)
        self._refuse_switched()
        places = {key: row for row, key in enumerate(rows.keys)}
        written = set()
        batch: list[models.PointStruct] = []
        size = max(1, _NUMBERS_PER_REQUEST // new.embedding_dim)
        for point in self._points(self._old, keys, with_vectors=True, with_payload=True):
            vectors = _vectors_of(point)
            place = places.get(str(point.id))
            if place is None and self._vector in vectors:
                continue
            if place is not None:
                vectors[self._vector] = rows.embedding[place].tolist()
                if self._side is not None:
                    vectors.pop(self._side, None)
                    if rows.side_information is not None:
                        vectors[self._side] = rows.side_information[place].tolist()
            batch.append(models.PointStruct(id=point.id, vector=_as_given(vectors), payload=point.payload))
            written.add(point.id)
            if len(batch) == size:
                self._upsert(batch)
                batch = []
        self._upsert(batch)
        there = self._points(self._target, keys, with_vectors=False)
        gone = [point.id for point in there if point.id not in written]
        if gone:
            with _answering():
                self._client.delete(self._target, models.PointIdsList(points=gone), wait=True)

    def read_new(self, keys: KeyRange) -> Rows:
        new = needed(self._new)
        return self._read(self._target, keys, new.embedding_dim, new.side_information_dim)

    def searched(self, query: Vectors, k: int) -> list[str]:
        with _answering():
            found = self._client.query_points(
                self._alias, query=query.tolist(), using=self._vector or None, limit=k, with_payload=False
            )
        return [str(point.id) for point in found.points]

    def close(self) -> None:
        self._release()

    def _pointed_at(self, alias: str) -> str | None:
        with _answering():
            aliases = self._client.get_aliases().aliases
        return next((found.collection_name for found in aliases if found.alias_name == alias), None)

    def _point(self, alias: str, collection: str) -> None:
        create = models.CreateAlias(alias_name=alias, collection_name=collection)
        with _answering():
            self._client.update_collection_aliases(
                [_delete_alias(alias), models.CreateAliasOperation(create_alias=create)]
            )

    def _unalias(self, alias: str) -> None:
        with _answering():
            self._client.update_collection_aliases([_delete_alias(alias)])

    def _remove(self, collection: str) -> None:
        if self._has(collection):
            with _answering():
                self._client.delete_collection(collection)

    def _has(self, collection: str) -> bool:
        with _answering():
            return bool(self._client.collection_exists(collection))

    def _params(self, collection: str, name: str | None = None) -> models.VectorParams:
        """Return what the collection says of a vector; raises `StoreRefused` where it has none of that name."""
        name = self._vector if name is None else name
        with _answering():
            params = self._client.get_collection(collection).config.params
        vectors = params.vectors if isinstance(params.vectors, dict) else {"": params.vectors}
        found = vectors.get(name)
        if found is None:
            known = ", ".join(repr(other) for other in vectors if other) or "one without a name"
            raise StoreRefused(f"{self._alias!r} has no vector {name!r}; it has {known}.")
        if found.multivector_config is not None or found.datatype == models.Datatype.UINT8:
            raise StoreRefused(f"The vector {name!r} has several vectors a point, or bytes: these are not upgraded.")
        return found

    def _made_alike(self, config: models.CollectionConfig, new: NewSide) -> dict[str, Any]:
        """Return how to create the new collection."""
        params = config.params
        if params.sharding_method == models.ShardingMethod.CUSTOM:
            raise StoreRefused("The collection has shard keys of its own, which are not copied.")
        vectors: dict[str, Any] = dict(params.vectors) if isinstance(params.vectors, dict) else {"": params.vectors}
        vectors[self._vector] = vectors[self._vector].model_copy(update={"size": new.embedding_dim})
        if self._side is not None:
            side = vectors.pop(self._side)
            if new.side_information_dim is not None:
                vectors[self._side] = side.model_copy(update={"size": new.side_information_dim})
        elif new.side_information_dim is not None:
            raise StoreRefused("The new side has side information: name its vector in the URL, side_information=….")
        alike: dict[str, Any] = {
            "vectors_config": vectors[""] if list(vectors) == [""] else vectors,
            "sparse_vectors_config": params.sparse_vectors,
            "shard_number": params.shard_number,
            "replication_factor": params.replication_factor,
            "write_consistency_factor": params.write_consistency_factor,
            "on_disk_payload": params.on_disk_payload,
            "hnsw_config": models.HnswConfigDiff(**config.hnsw_config.model_dump()),
            "quantization_config": config.quantization_config,
        }
        return {name: value for name, value in alike.items() if value is not None}

    def _points(
        self, collection: str, keys: KeyRange, *, with_vectors: bool | list[str], with_payload: bool = False
    ) -> Iterator[models.Record]:
        """Give the points of a range by ascending id: numbers, then UUIDs."""
        after, upto = _point_id(keys.after), _point_id(keys.upto)
        offset: Any = after
        while True:
            with _answering():
                points, offset = self._client.scroll(
                    collection,
                    offset=offset,
                    limit=_SCROLLED,
                    with_payload=with_payload,
                    with_vectors=with_vectors,
                )
            for point in points:
                if upto is not None and _order(point.id) > _order(upto):
                    return
                if point.id != after:  # a scroll begins at its offset
                    yield point
            if offset is None:
                return

    def _read(self, collection: str, keys: KeyRange, dim: int, side_dim: int | None) -> Rows:
        ids, embedding, side = [], [], []
        names = [self._vector, *([self._side] if self._side and side_dim is not None else [])]
        for point in self._points(collection, keys, with_vectors=names if self._vector else True):
            vectors = _vectors_of(point)
            if self._vector not in vectors:
                continue
            ids.append(str(point.id))
            embedding.append(np.array(vectors[self._vector], np.float32))
            if side_dim is not None and self._side is not None:
                if self._side not in vectors:
                    raise StoreRefused(f"The point {point.id} has an embedding and no {self._side!r}.")
                side.append(np.array(vectors[self._side], np.float32))
        rows = np.array(embedding, np.float32).reshape(len(ids), dim)
        return refuse_not_finite(
            Rows(ids, rows, None if side_dim is None else np.array(side, np.float32).reshape(len(ids), side_dim))
        )

    def _upsert(self, points: Sequence[models.PointStruct]) -> None:
        if points:
            with _answering():
                self._client.upsert(self._target, points, wait=True)


def _delete_alias(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def _vectors_of(point: models.Record) -> dict[str, Any]:
    """Return a point's vectors by name; the one without a name is ''."""
    if point.vector is None:
        return {}
    return dict(point.vector) if isinstance(point.vector, dict) else {"": point.vector}


def _as_given(vectors: dict[str, Any]) -> Any:
    return vectors[""] if list(vectors) == [""] else vectors


def _point_id(key: str | None) -> PointId | None:
    if key is None:
        return None
    return int(key) if key.isdigit() else key


def _order(point: Any) -> tuple[bool, Any]:
    return isinstance(point, str), point


# In local mode, a folder is one client's, which the stores of this process share.
_local: dict[str, tuple[QdrantClient, int]] = {}
_local_lock = threading.Lock()


def _client(address: Address) -> tuple[QdrantClient, Any]:
    """Return a client, and what gives it back."""
    if address.scheme == "qdrant":
        return local_client(str(address.file))
    key = address.parameters.get("api_key") or os.environ.get("QDRANT_API_KEY")
    client = QdrantClient(url=address.server, api_key=key, timeout=_TIMEOUT_SECONDS, check_compatibility=False)
    return client, client.close


def local_client(folder: str) -> tuple[QdrantClient, Any]:
    """Return this process's client of a folder in local mode, and what gives it back; the last one closes it.

    Raises `StoreAway` while another process has the folder.
    """
    with _local_lock, _answering():
        client, users = _local.get(folder, (None, 0))
        if client is None:
            client = QdrantClient(path=folder, force_disable_check_same_thread=True)
        _local[folder] = (client, users + 1)

    def release() -> None:
        with _local_lock:
            client, users = _local.pop(folder, (None, 0))
            if client is not None and users > 1:
                _local[folder] = (client, users - 1)
            elif client is not None:
                client.close()

    return client, release


@contextmanager
def _answering() -> Iterator[None]:
    """Raise what Qdrant's client raises as errors of stores."""
    try:
        yield
    except ResponseHandlingException as error:
        raise StoreAway("Qdrant does not answer.") from error
    except UnexpectedResponse as error:
        sentence = f"Qdrant: {error.status_code} {error.reason_phrase}: {error.content[:300].decode(errors='replace')}"
        is_passing = error.status_code is None or error.status_code >= 500 or error.status_code in _PASSING
        raise (StoreAway if is_passing else StoreRefused)(sentence) from error
    except RuntimeError as error:  # of the local mode: another process has the folder
        raise StoreAway(f"Qdrant: {error}") from error
    except ValueError as error:  # of the local mode
        raise StoreRefused(f"Qdrant: {error}") from error
