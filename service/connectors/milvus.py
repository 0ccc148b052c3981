"""A gallery in a Milvus collection that its users search by an alias.

    milvus+http://user:password@host:19530/?collection=ALIAS&key=id&embedding=vector[&side_information=psi][&token=…]
    milvus:///file.db?collection=ALIAS&key=id&embedding=vector   Milvus Lite, for one process at a time; also +https

The new side is another collection, `ALIAS_NAME`, made with the old one's fields and indexes but for the vector's width;
its other fields are copied with each range. A switch is one alter_alias: Milvus tells its nodes by and by, so a search
may see the old side for a moment after it, and each search sees one of them. Milvus does not tell of writes: what is
changed after its range was copied is brought when the range is copied again.

Not upgraded: collections whose keys Milvus makes itself, with functions or with partitions by name, and vectors that
are not float32.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

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

_TIMEOUT_SECONDS = 60.0
_METRICS = {"L2": "l2", "COSINE": "cosine", "IP": "ip"}
_BYTES_PER_MESSAGE = 2**22
_KEYS_PER_EXPRESSION = 5_000
_KEYS_PER_PAGE = 16_000  # Milvus gives no more than 16,384
_ITEMS_PER_PAGE = 4_000
_REFUSED = (100, 1100, 1101)  # codes: no such collection, invalid parameters
_INDEX_PARAMETERS = ("M", "efConstruction", "nlist", "m", "nbits")
_VECTOR_TYPES = (
    DataType.BINARY_VECTOR,
    DataType.FLOAT_VECTOR,
    DataType.FLOAT16_VECTOR,
    DataType.BFLOAT16_VECTOR,
    DataType.SPARSE_FLOAT_VECTOR,
    DataType.INT8_VECTOR,
)
_COPIED = ("max_length", "max_capacity", "dim")


def connect(address: Address, new: NewSide | None) -> "MilvusStore":
    """Return the store that a URL names. Raises `StoreRefused` and `StoreAway`."""
    return MilvusStore(address.checked(["collection", "key", "embedding"], ["side_information", "token"]), new)


class MilvusStore(AliasedStore):
    """A `service.connectors.store.ExternalStore`."""

    def __init__(self, address: Address, new: NewSide | None) -> None:
        named = address.parameters
        super().__init__(named["collection"], new)
        self._key, self._embedding = named["key"], named["embedding"]
        self._side = named.get("side_information")
        is_file = address.scheme == "milvus"
        if is_file and address.file.suffix != ".db":
            raise StoreRefused("A Milvus Lite file is written milvus:///absolute/path.db.")
        with _answering():
            self._client = MilvusClient(
                str(address.file) if is_file else address.server,
                user=address.user or "",
                password=address.password or "",
                token=named.get("token", ""),
                timeout=_TIMEOUT_SECONDS,
            )
        self._schema = self._load(self._old)
        self._is_text = self._field(self._schema, self._key)["type"] == DataType.VARCHAR
        for name in filter(None, (self._embedding, self._side)):
            self._dim(self._schema, name)
        if new is not None and self._has(self._target):
            self._load(self._target)

    def describe(self) -> Description:
        metric = next(
            (found["metric_type"] for found in self._indexes(self._old) if found["field_name"] == self._embedding), None
        )
        return Description(
            rows=self._count(self._old),
            embedding_dim=self._dim(self._schema, self._embedding),
            side_information_dim=None if self._side is None else self._dim(self._schema, self._side),
            metric=_METRICS.get(str(metric)),
            dtype="float32",
            warning=self._warning(),
        )

    def bounds(self, rows: int) -> list[str]:
        keys = [str(row[self._key]) for row in self._items(self._old, KeyRange(None, None), [self._key])]
        return keys[rows - 1 :: rows]

    def read(self, keys: KeyRange) -> Rows:
        side_dim = None if self._side is None else self._dim(self._schema, self._side)
        return self._read(self._old, keys, self._dim(self._schema, self._embedding), side_dim)

    def payloads(self, keys: KeyRange) -> dict[str, dict[str, Any]]:
        """Return the fields that are no vectors, those of a dynamic schema among them."""
        vectors = {field["name"] for field in self._schema["fields"] if field["type"] in _VECTOR_TYPES}
        return {
            str(item[self._key]): {name: item[name] for name in item if name != self._key and name not in vectors}
            for item in self._items(self._old, keys, ["*"])
        }

    def prepare(self) -> None:
        """Make the new collection. A crash between the steps is completed by the next call: 1. an alias keeps the old
        collection; 2. the new one is made, with its indexes, and loaded."""
        new = needed(self._new)
        if self._has(self._target):
            found = self._dim(self._load(self._target), self._embedding)
            if found != new.embedding_dim:
                raise StoreRefused(f"The new side {new.name!r} is there, and holds vectors of {found} numbers.")
            return
        schema = self._made_alike(new)
        index = self._client.prepare_index_params()
        for old in self._indexes(self._old):
            if old["field_name"] == self._side and new.side_information_dim is None:
                continue
            own = {name: old[name] for name in old if name in _INDEX_PARAMETERS}
            index.add_index(
                old["field_name"],
                index_type=old["index_type"],
                index_name=old["index_name"],
                **({"metric_type": old["metric_type"]} if old.get("metric_type") else {}),
                params=old.get("params") or own,
            )
        self._keep_old()  # 1.
        alike = {name: self._schema[name] for name in ("consistency_level", "num_shards") if name in self._schema}
        self._ask(self._client.create_collection, self._target, schema=schema, index_params=index, **alike)  # 2.

    def write(self, keys: KeyRange, rows: Rows) -> None:
        new = needed(self._new)
        refuse_other_dims(rows, new)
        self._refuse_switched()
        places = {key: row for row, key in enumerate(rows.keys)}
        written = set()
        batch: list[dict[str, Any]] = []
        size = max(1, _BYTES_PER_MESSAGE // (4 * new.embedding_dim))
        for item in self._items(self._old, keys, ["*"]):
            place = places.get(str(item[self._key]))
            if place is None:
                continue
            made = dict(item) | {self._embedding: rows.embedding[place]}
            if self._side is not None:
                made.pop(self._side, None)
                if rows.side_information is not None:
                    made[self._side] = rows.side_information[place]
            batch.append(made)
            written.add(item[self._key])
            if len(batch) == size:
                self._ask(self._client.upsert, self._target, batch)
                batch = []
        if batch:
            self._ask(self._client.upsert, self._target, batch)
        there = [item[self._key] for item in self._items(self._target, keys, [self._key])]
        gone = [key for key in there if key not in written]
        for start in range(0, len(gone), _KEYS_PER_EXPRESSION):
            self._ask(self._client.delete, self._target, ids=gone[start : start + _KEYS_PER_EXPRESSION])

    def read_new(self, keys: KeyRange) -> Rows:
        new = needed(self._new)
        return self._read(self._target, keys, new.embedding_dim, new.side_information_dim)

    def searched(self, query: Vectors, k: int) -> list[str]:
        seen = self._load(self._pointed_at(self._alias) or self._alias)
        dim = self._dim(seen, self._embedding)
        if len(query) != dim:
            raise StoreRefused(f"The query has {len(query)} numbers; the collection's vectors have {dim}.")
        found = self._ask(
            self._client.search,
            self._alias,
            data=[query],
            anns_field=self._embedding,
            limit=k,
            output_fields=[self._key],
            consistency_level="Strong",
        )
        return [str(hit["id"] if "id" in hit else hit[self._key]) for hit in found[0]]

    def close(self) -> None:
        self._client.close()

    def _pointed_at(self, alias: str) -> str | None:
        found = self._ask(self._client.list_aliases)
        if alias not in found["aliases"]:
            return None
        return str(self._ask(self._client.describe_alias, alias)["collection_name"])

    def _point(self, alias: str, collection: str) -> None:
        is_there = self._pointed_at(alias) is not None
        self._ask(self._client.alter_alias if is_there else self._client.create_alias, collection, alias)

    def _unalias(self, alias: str) -> None:
        if self._pointed_at(alias) is not None:
            self._ask(self._client.drop_alias, alias)

    def _remove(self, collection: str) -> None:
        if self._has(collection):
            self._ask(self._client.drop_collection, collection)

    def _has(self, collection: str) -> bool:
        return bool(self._ask(self._client.has_collection, collection))

    def _load(self, collection: str) -> dict[str, Any]:
        """Have a collection loaded, which a restart of Milvus Lite undoes, and return what it is."""
        if not self._has(collection):
            raise StoreRefused(f"Milvus has no collection {collection!r}.")
        self._ask(self._client.load_collection, collection)
        return dict(self._ask(self._client.describe_collection, collection))

    def _field(self, schema: dict[str, Any], name: str) -> dict[str, Any]:
        found = next((field for field in schema["fields"] if field["name"] == name), None)
        if found is None:
            known = ", ".join(field["name"] for field in schema["fields"])
            raise StoreRefused(f"{self._alias!r} has no field {name!r}; it has {known}.")
        if name == self._key and not found.get("is_primary"):
            raise StoreRefused(f"{name!r} is not the key of {self._alias!r}.")
        return dict(found)

    def _dim(self, schema: dict[str, Any], name: str) -> int:
        field = self._field(schema, name)
        if field["type"] != DataType.FLOAT_VECTOR:
            raise StoreRefused(f"The field {name!r} is not of float32 vectors.")
        return int(field["params"]["dim"])

    def _made_alike(self, new: NewSide) -> Any:
        """Return the new collection's schema."""
        old = self._schema
        if old.get("auto_id") or any(field.get("auto_id") for field in old["fields"]):
            raise StoreRefused("Milvus makes the keys of this collection itself, so that a copy would have others.")
        if old.get("functions"):
            raise StoreRefused("The collection has functions, whose fields are not copied.")
        dims = {self._embedding: new.embedding_dim}
        if self._side is not None and new.side_information_dim is not None:
            dims[self._side] = new.side_information_dim
        elif new.side_information_dim is not None:
            raise StoreRefused("The new side has side information: name its field in the URL, side_information=….")
        schema = self._client.create_schema(
            auto_id=False, enable_dynamic_field=bool(old.get("enable_dynamic_field", False))
        )
        for field in old["fields"]:
            name, params = field["name"], field.get("params") or {}
            if name == self._side and name not in dims:
                continue
            options = {option: params[option] for option in _COPIED if option in params}
            if name in dims:
                options["dim"] = dims[name]
            for flag in ("is_primary", "is_partition_key", "nullable"):
                if field.get(flag):
                    options[flag] = True
            if field.get("element_type"):
                options["element_type"] = field["element_type"]
            schema.add_field(name, field["type"], **options)
        return schema

    def _indexes(self, collection: str) -> list[dict[str, Any]]:
        names = self._ask(self._client.list_indexes, collection)
        return [dict(self._ask(self._client.describe_index, collection, name)) for name in names]

    def _items(self, collection: str, keys: KeyRange, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Give the items of a range by ascending key.

        As pymilvus's own iterator asks, which does not escape text keys: with these options, a limited query gives the
        items of the smallest keys, and a server those of each segment, of which the smallest are kept. Such queries do
        not wait for what was just written; the count before them does.
        """
        self._count(collection)
        after, page_size = keys.after, _KEYS_PER_PAGE
        if list(fields) != [self._key]:
            dim = self._dim(self._schema, self._embedding)
            page_size = max(1, min(_ITEMS_PER_PAGE, _BYTES_PER_MESSAGE // (4 * dim)))
        while True:
            conditions = [
                f"{self._key} {operator} {self._literal(end)}"
                for operator, end in ((">", after), ("<=", keys.upto))
                if end is not None
            ]
            page = self._ask(
                self._client.query,
                collection,
                filter=" and ".join(conditions),
                output_fields=list(fields),
                limit=page_size,
                consistency_level="Strong",
                iterator="True",
                reduce_stop_for_best="True",
            )
            items = sorted(page, key=lambda item: item[self._key])[:page_size]
            yield from items
            if len(items) < page_size:
                return
            after = str(items[-1][self._key])

    def _count(self, collection: str) -> int:
        found = self._ask(
            self._client.query, collection, filter="", output_fields=["count(*)"], consistency_level="Strong"
        )
        return int(found[0]["count(*)"])

    def _literal(self, key: str) -> str:
        return json.dumps(key, ensure_ascii=False) if self._is_text else str(int(key))

    def _read(self, collection: str, keys: KeyRange, dim: int, side_dim: int | None) -> Rows:
        fields = [self._key, self._embedding, *([self._side] if self._side is not None and side_dim else [])]
        items = list(self._items(collection, keys, fields))
        embedding = np.array([item[self._embedding] for item in items], np.float32).reshape(len(items), dim)
        side = None
        if side_dim is not None and self._side is not None:
            side = np.array([item[self._side] for item in items], np.float32).reshape(len(items), side_dim)
        return refuse_not_finite(Rows([str(item[self._key]) for item in items], embedding, side))

    def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with _answering():
            return call(*arguments, timeout=_TIMEOUT_SECONDS, **options)


@contextmanager
def _answering() -> Iterator[None]:
    """Raise what Milvus's client raises as errors of stores."""
    try:
        yield
    except MilvusException as error:
        raise (StoreRefused if error.code in _REFUSED else StoreAway)(f"Milvus: {error.message}") from error
