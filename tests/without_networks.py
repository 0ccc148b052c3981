"""Galleries of vectors alone: their versions, and vectors as networks outside of the service would give them."""

import io
import json
from collections.abc import Iterable
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.judged import DIM, encoded_outside
from tests.networks import PREPROCESSING, onnx_encoder_bytes

SPEC: dict[str, Any] = {"embedding_dim": DIM}
NETWORKS_SPEC: dict[str, Any] = {**SPEC, "preprocessing": PREPROCESSING}


def register_without_networks(client: httpx.Client, name: str, **spec: Any) -> httpx.Response:
    parts = {"name": name, "spec": json.dumps(SPEC | spec)}
    return client.post("/v1/model-versions", files={part: (None, text) for part, text in parts.items()})


def add_networks(client: httpx.Client, name: str, turn: NDArray[np.float32], **spec: Any) -> httpx.Response:
    """Add the φ that gives what `vectors_of` gives by the same matrix."""
    return client.put(
        f"/v1/model-versions/{name}/networks",
        data={"spec": json.dumps(NETWORKS_SPEC | spec)},
        files={"embedding_model": onnx_encoder_bytes(DIM, seed=1, turn=turn)},
    )


def ids_of(numbers: Iterable[int]) -> list[str]:
    """Return the ids under which class images of these numbers are posted."""
    return [f"{number}.png" for number in numbers]


def vectors_of(turn: NDArray[np.float32], numbers: Iterable[int], **columns: Any) -> pa.Table:
    """Return a table of what the φ of a matrix gives for class images: id, embedding, and other columns."""
    numbers = list(numbers)
    return pa.table({"id": ids_of(numbers), "embedding": list(encoded_outside(turn, numbers)), **columns})


def parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def import_table(client: httpx.Client, table: pa.Table, gallery: str = "g") -> None:
    answer = client.post(f"/v1/galleries/{gallery}/embeddings", content=parquet(table))
    assert answer.json() == {"count": table.num_rows}, answer.text
