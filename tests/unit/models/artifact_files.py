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


def typed_onnx(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, int],
    weights: dict[str, NDArray[Any]] | None = None,
    domains: tuple[str, ...] = (),
) -> bytes:
    """A network whose inputs and outputs have dtypes of `TensorProto`; `domains` are those of operators of its own."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name, dtype in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def pixels_onnx(
    shape: list[Any], dtype: int = TensorProto.FLOAT, seed: int = 0, dim: int = 5, count: int | None = None
) -> bytes:
    """An encoder that multiplies the flattened pixels by a matrix, whatever their order: (B, ...) -> (B, dim). `count`
    is how many there are where the shape does not say it."""
    count = count or int(np.prod([length for length in shape[1:] if isinstance(length, int)]))
    weights = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=dtype if dtype != TensorProto.UINT8 else TensorProto.FLOAT),
    ]
    out = TensorProto.FLOAT if dtype == TensorProto.UINT8 else dtype
    return typed_onnx(nodes, {"images": (dtype, shape)}, {"y": out}, {"w": weights})


def weights_of(data: bytes) -> NDArray[Any]:
    """The first weights of an ONNX file."""
    return numpy_helper.to_array(onnx.load_model_from_string(data).graph.initializer[0])


def training_mode_onnx(operator: str, shape: list[Any], dim: int) -> bytes:
    """A network (B, dim) or (B, dim, H, W) with BatchNorm or Dropout as an export in training mode has it."""
    if operator == "Dropout":
        constants = {"ratio": np.array(0.3, np.float32), "training": np.array(True)}
        nodes = [helper.make_node("Dropout", ["x", "ratio", "training"], ["n"])]
    else:
        constants = {
            "scale": np.ones(dim, np.float32),
            "bias": np.zeros(dim, np.float32),
            "mean": np.zeros(dim, np.float32),
            "variance": np.ones(dim, np.float32),
        }
        outputs = ["n", "running_mean", "running_variance"]
        nodes = [helper.make_node("BatchNormalization", ["x", *constants], outputs, training_mode=1)]
    last = "n"
    if len(shape) == 4:
        nodes.append(helper.make_node("GlobalMaxPool", ["n"], ["p"]))
        nodes.append(helper.make_node("Flatten", ["p"], ["y"]))
        last = "y"
    return typed_onnx(nodes, {"x": (TensorProto.FLOAT, shape)}, {last: TensorProto.FLOAT}, constants)


def external_onnx(locations: dict[str, NDArray[np.float32]], length: int | None = None) -> bytes:
    """(B, D) -> (B, D_to): the sum of matrices, each kept in a file of its own, of which `length` bytes are said."""
    nodes, names, tensors = [], [], []
    for number, (location, matrix) in enumerate(locations.items()):
        tensor = TensorProto(
            name=f"w{number}", data_type=TensorProto.FLOAT, dims=matrix.shape, data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value=location)
        tensor.external_data.add(key="length", value=str(length or matrix.nbytes))
        tensors.append(tensor)
        nodes.append(helper.make_node("MatMul", ["x", f"w{number}"], [f"y{number}"]))
        names.append(f"y{number}")
    nodes.append(helper.make_node("Sum", names, ["y"]))
    rows = len(next(iter(locations.values())))
    return onnx_bytes(nodes, {"x": ["batch", rows]}, ["y"], external=tensors)


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
