"""Pairs of features of two versions, from which h and g are trained in tests."""

from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 300


def paired_columns(rows: int = ROWS, classes: int = 3) -> dict[str, Any]:
    """Return columns of rows in some classes, in which the new features follow from the old ones."""
    generator = np.random.default_rng(0)
    label = np.arange(rows) % classes
    embedding = generator.standard_normal((classes, 6))[label] + 0.5 * generator.standard_normal((rows, 6))
    side = generator.standard_normal((rows, 5))
    both = np.concatenate([embedding, side], axis=1)
    columns: dict[str, Any] = {
        "embedding_from": embedding,
        "side_information_from": side,
        "embedding_to": np.maximum(both @ generator.standard_normal((11, 8)), 0),
        "side_information_to": both @ generator.standard_normal((11, 4)),
    }
    return {name: values.astype(np.float32) for name, values in columns.items()} | {"label": [f"c{n}" for n in label]}


def parquet(columns: dict[str, Any]) -> bytes:
    stream = BytesIO()
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), stream, row_group_size=70)
    return stream.getvalue()
