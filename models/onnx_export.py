"""Our own transformations as ONNX, for runtimes without torch: the graph is written directly, node by node, from the
network with its BatchNorm folded, so that what it computes is what `models.transformation` says.

The inputs are `embedding` (batch, D_from) and, where the network has it, `side_information` (batch, S); the output is
`transformed` (batch, D_to), and of a network with an error head also `uncertainty` (batch,): all float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.loaded_networks import ArtifactError
from models.own_networks import read_network
from models.transformation import (
    LEAST_SQUARE,
    WIDEST_LOGARITHM,
    ClassMeans,
    ErrorHead,
    LinearMap,
    Member,
    Transformation,
    fold_batch_norm,
)

_OPSET, _IR_VERSION = 17, 8  # what any ONNX Runtime since 1.12 reads
_MAX_BYTES = 2**31 - 2**20  # a protobuf message has less than 2 GiB


def transformation_as_onnx(data: bytes, about: Mapping[str, str]) -> bytes:
    """Return an h or g, given as the safetensors that `save_network` makes, as ONNX; the same bytes for the same input.

    `about` becomes the file's `metadata_props`, with the dimensions and the number format added. Raises `ArtifactError`
    for any other network, and for one that is too large for an ONNX file.
    """
    network, name, _ = read_network(data)
    if not isinstance(network, Transformation):
        raise ArtifactError(f"The file is an encoder ({name}); transformations alone are written as ONNX.")
    if sum(tensor.numel() for tensor in network.state_dict().values()) * 4 > _MAX_BYTES:
        raise ArtifactError("The network is larger than 2 GiB, which one ONNX file cannot hold.")
    model = helper.make_model(
        _graph_of(fold_batch_norm(network)),
        producer_name="gallery-upgrade",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    side_dim = network.side_information_dim
    dims = {"from_dim": network.from_dim, "side_information_dim": side_dim, "to_dim": network.to_dim}
    described = {key: str(value) for key, value in dims.items() if value is not None}
    helper.set_model_props(model, {**about, **described, "precision": "float32"})
    return bytes(model.SerializeToString(deterministic=True))


class _Nodes:
    """Nodes and constants of a graph under way; each `add` names its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Tensor | NDArray[np.generic] | float) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        stored = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(stored).reshape(array.shape), name))
        return name

    def layers(self, network: nn.Module, value: str) -> str:
        """Add Linear and ReLU layers, nested in any depth, one after the other."""
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                bias = [] if layer.bias is None else [self.constant(layer.bias)]
                value = self.add("Gemm", value, self.constant(layer.weight), *bias, transB=1)
            elif isinstance(layer, nn.ReLU):
                value = self.add("Relu", value)
            elif not isinstance(layer, nn.Sequential):
                raise ArtifactError(f"A {type(layer).__name__} cannot be written as ONNX.")
        return value

    def row_sums(self, values: str) -> str:
        """(B, D) -> (B, 1)."""
        return self.add("ReduceSum", values, self.constant(np.array([1])), keepdims=1)

    def log_length(self, squares: str) -> str:
        """(B, D) -> (B, 1): the logarithm of the sum."""
        return self.add("Log", self.add("Max", self.row_sums(squares), self.constant(LEAST_SQUARE)))


def _graph_of(network: Transformation) -> onnx.GraphProto:
    nodes = _Nodes()
    inputs = {"embedding": network.from_dim}
    if network.side_information_dim is not None:
        inputs["side_information"] = network.side_information_dim
    spread: list[str] = []
    value = _combined(nodes, network, list(inputs), spread)
    if network.non_negative:
        value = nodes.add("Relu", value)
    if network.class_means is not None:
        value = _drawn(nodes, network.class_means, value)
    nodes.add("Identity", value, output="transformed")

    outputs = [helper.make_tensor_value_info("transformed", TensorProto.FLOAT, ["batch", network.to_dim])]
    if network.error_head is not None:
        _expected_error(nodes, network.error_head, [value, *spread])
        outputs.append(helper.make_tensor_value_info("uncertainty", TensorProto.FLOAT, ["batch"]))
    return helper.make_graph(
        nodes.nodes,
        "transformation",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", dim]) for name, dim in inputs.items()],
        outputs,
        nodes.constants,
    )


def _combined(nodes: _Nodes, network: Transformation, inputs: Sequence[str], spread: list[str]) -> str:
    """Add the members' mean and its share of the linear map; what an error head reads besides goes to `spread`."""
    if not network.members:
        assert network.linear_map is not None
        return _linear(nodes, network.linear_map, inputs)
    estimates = [_member(nodes, member, inputs) for member in network.members]
    mean = nodes.add("Mean", *estimates)
    if len(estimates) > 1 and network.error_head is not None:
        squares = [_squared(nodes, nodes.add("Sub", estimate, mean)) for estimate in estimates]
        spread.append(nodes.log_length(nodes.add("Mean", *squares)))
    if network.linear_map is None:
        return mean
    difference = nodes.add("Sub", _linear(nodes, network.linear_map, inputs), mean)
    if network.error_head is not None:
        spread.append(nodes.log_length(_squared(nodes, difference)))
    return nodes.add("Add", mean, nodes.add("Mul", difference, nodes.constant(network.linear_map.share)))


def _member(nodes: _Nodes, member: Member, inputs: Sequence[str]) -> str:
    branches = [nodes.layers(member.old_branch, inputs[0]), nodes.layers(member.side_branch, inputs[-1])]
    return nodes.layers(member.mixer, nodes.add("Concat", *branches, axis=1))


def _linear(nodes: _Nodes, linear_map: LinearMap, inputs: Sequence[str]) -> str:
    return nodes.layers(linear_map.weights, nodes.add("Concat", *inputs, axis=1))


def _drawn(nodes: _Nodes, class_means: ClassMeans, value: str) -> str:
    means = nodes.constant(class_means.means)  # (C, D)
    lengths = nodes.constant(class_means.means.square().sum(dim=1))
    products = nodes.add("Gemm", value, means, lengths, alpha=-2.0, transB=1)
    distances = nodes.add("Add", nodes.row_sums(_squared(nodes, value)), products)  # (B, C)
    column = nodes.add("Concat", nodes.add("Shape", value, end=1), nodes.constant(np.array([1])), axis=0)
    none = nodes.add("Expand", nodes.constant(class_means.none_distance), column)  # (B, 1)
    scaled = nodes.add(
        "Div", nodes.add("Neg", nodes.add("Concat", distances, none, axis=1)), nodes.constant(class_means.temperature)
    )
    count = len(class_means.means)
    bounds = [nodes.constant(np.array([bound])) for bound in (0, count, 1)]
    likely = nodes.add("Slice", nodes.add("Softmax", scaled, axis=1), *bounds)
    towards = nodes.add("Sub", nodes.add("MatMul", likely, means), nodes.add("Mul", nodes.row_sums(likely), value))
    return nodes.add("Add", value, nodes.add("Mul", towards, nodes.constant(class_means.share)))


def _expected_error(nodes: _Nodes, head: ErrorHead, parts: Sequence[str]) -> None:
    logarithm = nodes.layers(head.weights, nodes.add("Concat", *parts, axis=1))  # (B, 1)
    bounds = [nodes.constant(bound) for bound in (-WIDEST_LOGARITHM, WIDEST_LOGARITHM)]
    exponential = nodes.add("Exp", nodes.add("Clip", logarithm, *bounds))
    nodes.add("Reshape", exponential, nodes.constant(np.array([-1])), output="uncertainty")


def _squared(nodes: _Nodes, value: str) -> str:
    return nodes.add("Mul", value, value)
