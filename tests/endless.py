"""ONNX networks that are like others, but for batches of one size, with which they compute for longer than anybody
waits: products of matrices whose size depends on that of the batch."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.networks import SIZE

_EDGE = 6_000
_PRODUCTS = 200


def endless_encoder(dim: int, rows: int | None) -> bytes:
    """Return an encoder (B, 3, 8, 8) -> (B, dim) that is endless for batches of `rows`; for all if None."""
    weights = np.random.default_rng(0).standard_normal((3 * SIZE * SIZE, dim)).astype(np.float32)
    return _network(helper.make_node("Flatten", ["x"], ["features"]), [3, SIZE, SIZE], weights, rows)


def endless_transformation(from_dim: int, to_dim: int, rows: int | None) -> bytes:
    """Return an h (B, from_dim) -> (B, to_dim) that is endless for batches of `rows`; for all if None."""
    weights = np.random.default_rng(0).standard_normal((from_dim, to_dim)).astype(np.float32)
    return _network(helper.make_node("Identity", ["x"], ["features"]), [from_dim], weights, rows)


def _network(first: NodeProto, shape: Sequence[int], weights: NDArray[np.float32], rows: int | None) -> bytes:
    names = [f"matrix_{number}" for number in range(_PRODUCTS)]
    nodes = [
        first,
        helper.make_node("MatMul", ["features", "weights"], ["embedding"]),
        helper.make_node("Shape", ["x"], ["count"], end=1),
        helper.make_node("Equal" if rows is not None else "GreaterOrEqual", ["count", "rows"], ["is_it"]),
        helper.make_node("Cast", ["is_it"], ["one"], to=TensorProto.INT64),
        helper.make_node("Mul", ["one", "most"], ["edge"]),
        helper.make_node("Concat", ["edge", "edge"], ["square"], axis=0),
        helper.make_node("ConstantOfShape", ["square"], [names[0]]),  # 0 x 0 for other batches
        *(helper.make_node("MatMul", [name, name], [product]) for name, product in pairwise(names)),
        helper.make_node("ReduceSum", [names[-1]], ["nothing"], keepdims=0),
        helper.make_node("Add", ["embedding", "nothing"], ["output"]),
    ]
    info: Any = helper.make_tensor_value_info
    constants = {"rows": np.array([rows or 0]), "most": np.array([_EDGE]), "weights": weights}
    graph = helper.make_graph(
        nodes,
        "endless",
        [info("x", TensorProto.FLOAT, ["batch", *shape])],
        [info("output", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return bytes(model.SerializeToString())
