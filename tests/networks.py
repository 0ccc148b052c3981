"""Tiny real networks and images for tests: deterministic, and fast to build.

They spread different inputs far apart, so that a row made from another image, or from an older one, cannot pass for the
right one within float16 rounding.
"""

import io
import warnings
from functools import cache

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from models.artifacts import save_network
from models.backbones import ConvEncoder
from models.images import decode_image
from models.preprocessing import Preprocessing, preprocess_batch
from models.transformation import Transformation

SIZE = 8
PREPROCESSING = {"size": SIZE, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@cache
def encoder_bytes(dim: int, seed: int) -> bytes:
    """Return a safetensors encoder with `dim` outputs."""
    torch.manual_seed(seed)
    network = ConvEncoder(4, dim, last_relu=False)
    images = [decode_image(image_bytes(seed)) for seed in range(64)]
    _spread(network, torch.from_numpy(preprocess_batch(images, Preprocessing.from_json(PREPROCESSING))))
    last = network.layers[-1]
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.constant_(last.weight, 4.0)  # what the average over the pixels takes away
    return save_network(network)


def transformation(from_dim: int, side_dim: int | None, to_dim: int, seed: int, inner_dim: int = 16) -> Transformation:
    """Return an h or g whose outputs have mean 0 and deviation 1 for normal inputs."""
    torch.manual_seed(seed)
    network = Transformation(from_dim, side_dim, to_dim, inner_dim)
    embedding = torch.randn(256, from_dim)
    side = None if side_dim is None else torch.randn(256, side_dim)
    _spread(network, embedding, side)
    last = network.members[0].mixer[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        output = network(embedding, side)
        last.weight.div_(output.std(dim=0)[:, None])
        last.bias.sub_(output.mean(dim=0)).div_(output.std(dim=0))
    return network


def _spread(network: nn.Module, *inputs: Tensor | None) -> None:
    """Give every BatchNorm the statistics of these inputs."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(*inputs)
    network.eval()


@cache
def transformation_bytes(from_dim: int, side_dim: int | None, to_dim: int, seed: int) -> bytes:
    return save_network(transformation(from_dim, side_dim, to_dim, seed))


def onnx_encoder_bytes(dim: int, seed: int, trailing: bool = False, turn: NDArray[np.float32] | None = None) -> bytes:
    """Return an ONNX network (B, 3, 8, 8) -> (B, dim), or (B, dim, 1, 1) with `trailing`: one strided convolution, and
    its output times a matrix (dim, dim) if there is one."""
    weights = np.random.default_rng(seed).standard_normal((dim, 3, SIZE, SIZE)).astype(np.float32)
    if turn is not None:
        weights = np.tensordot(turn.T, weights, axes=1)
    nodes = [helper.make_node("Conv", ["images", "weights"], ["features"])]
    output, trailing_axes = "features", [1, 1]
    if not trailing:
        nodes.append(helper.make_node("Flatten", ["features"], ["output"]))
        output, trailing_axes = "output", []
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", dim, *trailing_axes])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class PublicForm(nn.Module):
    """The paper's public export form: (B, D, 1, 1) in and out, by 1x1 convolutions."""

    def __init__(self, from_dim: int, side_dim: int, to_dim: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(from_dim + side_dim, to_dim, 1)

    def forward(self, embedding: Tensor, side_information: Tensor) -> Tensor:
        mixed: Tensor = self.mix(torch.cat([embedding, side_information], dim=1))
        return mixed


def torchscript_bytes(network: nn.Module) -> bytes:
    """Return a scripted network; torch warns that TorchScript is deprecated."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), stream)
    return stream.getvalue()


def image_bytes(seed: int, image_format: str = "PNG", size: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    """Return a random image file."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, image_format)
    return stream.getvalue()


def solid_image_bytes(value: int) -> bytes:
    """Return an image file whose channels are all `value`."""
    stream = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (value, value, value)).save(stream, "PNG")
    return stream.getvalue()
