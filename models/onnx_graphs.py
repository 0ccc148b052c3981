"""What an ONNX file says before it is run: its operators, and the files that hold its weights.

ONNX Runtime would read weights from wherever the file says. So each place is looked up among the files that came with
the network, and nothing else is ever opened.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no stubs
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from models.loaded_networks import ArtifactError

_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_KNOWN_DOMAINS = ("ai.onnx", "com.microsoft", "com.ms.")


def read_graph(data: bytes) -> ModelProto:
    """Return the file's graph, if all of its operators can be run on any row apart. Raises `ArtifactError`."""
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ArtifactError("The ONNX file is damaged.") from error
    functions = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if node.op_type in _CONTROL_FLOW or any(_has_graph(attribute) for attribute in node.attribute):
            raise ArtifactError(
                f"The network has control flow ({node.op_type}), which may take another way for other rows, or never"
                " end. Export it without branches and loops on tensors."
            )
        foreign = node.domain and not node.domain.startswith(_KNOWN_DOMAINS)
        if foreign and (node.domain, node.op_type) not in functions:
            raise ArtifactError(
                f"The network has an operator of its own, {node.domain}.{node.op_type}, for which there is no code"
                " here. Export it with ONNX's operators."
            )
    return model


def input_dtypes(model: ModelProto) -> list[str]:
    """Return the dtype of each input that is no weight, as numpy names it, or as ONNX does."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = [value.type.tensor_type.elem_type for value in model.graph.input if value.name not in weights]
    return [TensorProto.DataType.Name(number).lower().replace("float", "float32", number == 1) for number in found]


def weights_beside(model: ModelProto, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files that hold weights, by the name that the graph has for them. Raises `ArtifactError` where one was
    not given, or is too short."""
    places = {tensor.name: _place(tensor) for tensor in model.graph.initializer if _is_outside(tensor)}
    found = {location: _file(location, files) for location, _, _ in places.values()}
    missing = sorted(location for location, file in found.items() if file is None)
    if missing or any(_is_outside(tensor) for tensor in _constants(model)):
        named = ", ".join(map(repr, missing[:10])) or "those of a constant"
        raise ArtifactError(
            f"The ONNX file keeps weights in other files ({named}); export it as a single file, or upload them beside"
            " it: in parts of the same name, each with its file's name."
        )
    used = [id(file) for file in found.values()]
    if unused := sorted(name for name, file in files.items() if id(file) not in used):
        raise ArtifactError(
            f"The network keeps no weights in {', '.join(map(repr, unused))}: leave out what is not its."
        )
    given = {location: file for location, file in found.items() if file is not None}
    for name, (location, offset, length) in places.items():
        if offset < 0 or length < 0 or offset + length > len(given[location]):
            raise ArtifactError(f"The file {location!r} is too short for the weights {name!r}.")
    return given


def _place(tensor: TensorProto) -> tuple[str, int, int]:
    """Return (location, offset, length) of weights in another file; a length of 0 is up to its end."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    try:
        return said["location"], int(said.get("offset", "0")), int(said.get("length", "0"))
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"The ONNX file does not say where the weights {tensor.name!r} are.") from error


def _file(location: str, files: Mapping[str, bytes]) -> bytes | None:
    """Return the file of this name; a form has no folders, so its last part will do."""
    return files.get(location, files.get(PurePosixPath(location.replace("\\", "/")).name))


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


def _is_outside(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def _constants(model: ModelProto) -> Iterator[TensorProto]:
    """Give the tensors that are no plain weights."""
    for sparse in model.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)


def _has_graph(attribute: AttributeProto) -> bool:
    return attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS)
