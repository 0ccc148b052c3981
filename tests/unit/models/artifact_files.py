"""Files of networks for the tests of artifacts, sound and crafted."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

Vectors = NDArray[np.float32]


def normal(*shape: int) -> Vectors:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def onnx_bytes(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: list[str],
    weights: dict[str, Vectors] | None = None,
    external: list[onnx.TensorProto] | None = None,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [*(numpy_helper.from_array(value, name) for name, value in (weights or {}).items()), *(external or [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def onnx_encoder(weights: Vectors, trailing: bool = False) -> bytes:
    """(B, 3, H, W) -> (B, D), or (B, D, 1, 1) with `trailing`: one convolution as large as the image."""
    nodes = [helper.make_node("Conv", ["images", "w"], ["features"]), helper.make_node("Flatten", ["features"], ["y"])]
    if trailing:
        nodes = nodes[:1]
    shapes = {"images": ["batch", *weights.shape[1:]]}
    return onnx_bytes(nodes, shapes, ["features" if trailing else "y"], {"w": weights})


def onnx_matrix(weight: Vectors, batch: Any = "batch") -> bytes:
    """(B, D) -> (B, D_to) by one matrix."""
    return onnx_bytes(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [batch, len(weight)]}, ["y"], {"w": weight}
    )


def onnx_sum(weights: tuple[Vectors, Vectors]) -> bytes:
    """(B, D), (B, S) -> (B, D_to): the sum of a matrix of each."""
    nodes = [
        helper.make_node("MatMul", ["embedding", "a"], ["first"]),
        helper.make_node("MatMul", ["side_information", "b"], ["second"]),
        helper.make_node("Add", ["first", "second"], ["y"]),
    ]
    shapes = {"embedding": ["batch", len(weights[0])], "side_information": ["batch", len(weights[1])]}
    return onnx_bytes(nodes, shapes, ["y"], {"a": weights[0], "b": weights[1]})


class Images(nn.Module):
    """An encoder for TorchScript: (B, 3, H, W) -> (B, dim, 1, 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, dim, 3)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(images)
        return features.mean(dim=[2, 3], keepdim=True)


def rewritten_header(data: bytes, config: Any) -> bytes:
    """The same safetensors file with another configuration."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {"gallery_upgrade": config if isinstance(config, str) else json.dumps(config)}
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data[8 + length :]


def pt2_bytes(tmp_path: Path) -> bytes:
    program = torch.export.export(nn.Linear(3, 2), (torch.randn(1, 3),))
    torch.export.save(program, tmp_path / "network.pt2")
    return (tmp_path / "network.pt2").read_bytes()


def state_dict_bytes() -> bytes:
    stream = io.BytesIO()
    torch.save(nn.Linear(3, 2).state_dict(), stream)
    return stream.getvalue()
