"""Galleries of labelled vectors, what a dictionary says of their neighbours, and asking for pages over HTTP."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from service.index.protocol import Metric
from tests.scenario import DIMS

VECTORS, ITEMS = "/v1/galleries/g/search/vectors", "/v1/galleries/g/search/items"
_DIM, _SIDE = DIMS["v1"]
assert _SIDE is not None
_NO_SIDE = [0.5] * _SIDE


@dataclass
class Known:
    """What the dictionary knows of an item; `number` is the order in which items came."""

    number: int
    vector: NDArray[np.float64]
    label: str | None
    metadata: dict[str, Any]


@dataclass
class Mirror:
    """A gallery `g` under v1, and beside it the dictionary of its items; what is written goes to both."""

    metric: Metric
    items: dict[str, Known] = field(default_factory=dict)
    came: dict[str, int] = field(default_factory=dict)

    def write(
        self,
        client: httpx.Client,
        ids: list[str],
        vectors: NDArray[np.float32],
        labels: Sequence[str | None],
        metadata: list[dict[str, Any]] | None = None,
    ) -> None:
        """Import vectors (N, D), which float16 keeps as they are."""
        metadata = metadata or [{} for _ in ids]
        table = pa.table(
            {
                "id": ids,
                "embedding": list(vectors),
                "side_information": [_NO_SIDE] * len(ids),
                "label": pa.array(labels, pa.string()),
                "metadata": [json.dumps(each) for each in metadata],
            }
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        answer = client.post("/v1/galleries/g/embeddings", content=sink.getvalue().to_pybytes())
        assert answer.json() == {"count": len(ids)}, answer.text
        for id_, vector, label, told in zip(ids, vectors, labels, metadata, strict=True):
            number = self.came.setdefault(id_, len(self.came))
            self.items[id_] = Known(number, vector.astype(np.float64), label, told)

    def delete(self, client: httpx.Client, id_: str) -> None:
        assert client.delete(f"/v1/galleries/g/items/{id_}").status_code == 204
        del self.items[id_]

    def distance(self, id_: str, query: NDArray[np.float64]) -> float:
        vector = self.items[id_].vector
        if self.metric == "l2":
            return float(np.sqrt(((vector - query) ** 2).sum()))
        product = float(vector @ query)
        if self.metric == "ip":
            return -product
        norms = float(np.sqrt((vector @ vector) * (query @ query)))
        return 1.0 if norms == 0 else 1 - product / norms

    def ranked(self, query: NDArray[np.float64]) -> list[tuple[float, str]]:
        """Return all items, nearest first, and the first that came where they are equally near; distances that differ
        by rounding alone are equal."""
        digits = 7 if self.metric == "cosine" else 5
        ranked = [(round(self.distance(id_, query), digits), known.number, id_) for id_, known in self.items.items()]
        return [(distance, id_) for distance, _, id_ in sorted(ranked)]


def asked(client: httpx.Client, address: str, body: dict[str, Any], which: str = "active") -> dict[str, Any]:
    answer = client.post(address, json=body, params={"generation": which})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def all_pages(client: httpx.Client, address: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give every page of a query, each when it is wanted."""
    cursor: str | None = "*"
    while cursor is not None:
        page = asked(client, address, {**body, "cursor": cursor})
        yield page
        cursor = page["next_cursor"]


def ids_of(answer: dict[str, Any]) -> list[str]:
    (neighbors,) = answer["neighbors"]
    return [neighbor["id"] for neighbor in neighbors]
