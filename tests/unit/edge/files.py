"""Files of vectors in every format, and h and g as ONNX that lead from `v1` to `v2`."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from models.artifacts import save_network
from models.normalize import l2_normalize
from models.onnx_export import transformation_as_onnx
from models.transformation import Transformation

FROM, SIDE, TO, TO_SIDE = 8, 5, 6, 4
ROWS = 10_000  # two whole batches, and a ragged one
Vectors = NDArray[np.float32]


def network(to_dim: int, *, error_head: bool = False) -> Transformation:
    torch.manual_seed(to_dim)
    return Transformation(FROM, SIDE, to_dim, 16, members=2, linear=True, error_head=error_head).eval()


def write_networks(folder: Path, normalize: bool = True) -> tuple[Path, Path]:
    """Write h (which says what error it expects) and g, and return where they are."""
    versions = {"from_version": "v1", "to_version": "v2"}
    h, g = folder / "h.onnx", folder / "g.onnx"
    about = {"part": "h", "normalize": str(normalize).lower(), **versions}
    h.write_bytes(transformation_as_onnx(save_network(network(TO, error_head=True)), about))
    g.write_bytes(
        transformation_as_onnx(save_network(network(TO_SIDE)), {"part": "g", "normalize": "false", **versions})
    )
    return h, g


def expected(embedding: Vectors, side: Vectors) -> tuple[Vectors, Vectors, Vectors]:
    """Return what h, scaled to unit norm, and g give, and the error that h expects."""
    inputs = torch.from_numpy(embedding.astype(np.float32)), torch.from_numpy(side.astype(np.float32))
    with torch.inference_mode():
        output, uncertainty = network(TO, error_head=True).with_uncertainty(*inputs)
        assert uncertainty is not None
        return l2_normalize(output.numpy()), network(TO_SIDE)(*inputs).numpy(), uncertainty.numpy()


def drawn(dim: int, rows: int = ROWS) -> Vectors:
    return np.random.default_rng(dim).standard_normal((rows, dim), np.float32)


def table(rows: int = ROWS, dtype: type = np.float32) -> pa.Table:
    """Return a table of vectors with other columns before, between and after."""
    return pa.table(
        {
            "id": [f"item {number}" for number in range(rows)],
            "embedding": pa.FixedSizeListArray.from_arrays(drawn(FROM, rows).astype(dtype).reshape(-1), FROM),
            "taken": pa.array(range(rows), pa.timestamp("ms")),
            "side_information": drawn(SIDE, rows).tolist(),
            "hops": pa.array([None if number % 3 else number % 5 for number in range(rows)], pa.int8()),
            "label": [None, "a"] * (rows // 2),
        }
    )


def write_table(path: Path, content: pa.Table) -> Path:
    """Write a table in the format of the path's suffix, in batches of odd sizes."""
    if path.suffix == ".parquet":
        pq.write_table(content, path, row_group_size=3_001)
        return path
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    new = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    with new(str(path), content.schema, options=options) as writer:
        writer.write_table(content, 777)
    return path


def read_table(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    content = path.read_bytes()  # not mapped: tests write to it afterwards
    return (pa.ipc.open_stream if path.suffix == ".arrows" else pa.ipc.open_file)(content).read_all()


def vectors(content: pa.Table, name: str) -> NDArray[Any]:
    column = content[name].combine_chunks()
    found: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return found


def write_index(path: Path, ids: NDArray[np.int64] | None) -> Path:
    index: faiss.Index = faiss.IndexFlatIP(FROM)
    if ids is None:
        index.add(drawn(FROM))
    else:
        index = faiss.IndexIDMap2(index)
        index.add_with_ids(drawn(FROM), ids)
    faiss.write_index(index, str(path))
    return path
