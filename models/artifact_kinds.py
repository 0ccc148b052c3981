"""What kind a file of a network is, by its content, and what it says of itself before it is loaded."""

import io
import struct
import zipfile
from dataclasses import dataclass
from typing import Literal

from models.loaded_networks import ArtifactError
from models.network_archives import is_packed, unpack_network
from models.onnx_graphs import input_dtypes, read_graph

ArtifactKind = Literal["onnx", "safetensors", "torchscript"]


def artifact_kind(data: bytes) -> ArtifactKind:
    """Return the kind of a file by its content. Raises `ArtifactError`."""
    if data[8:9] == b"{" and struct.unpack("<Q", data[:8])[0] <= len(data) - 8:
        return "safetensors"
    if data[:4] == b"PK\x03\x04":
        try:
            archive = zipfile.ZipFile(io.BytesIO(data))
            names = archive.namelist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            raise ArtifactError("The file is a damaged archive.") from error
        if is_packed(archive):
            return "onnx"
        if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
            return "torchscript"
        raise ArtifactError(
            "Archives of torch.export (.pt2) and torch.save are not accepted: loading one can run any code. Export to"
            " ONNX, or save one of our own networks as safetensors."
        )
    if data[:1] == b"\x80":
        raise ArtifactError("Pickles are not accepted: loading one can run any code. Export to ONNX instead.")
    if data[:1] == b"\x08":  # an ONNX file starts with its ir_version, field 1 of a protobuf message
        return "onnx"
    raise ArtifactError("The file is neither ONNX, nor safetensors, nor TorchScript.")


@dataclass(frozen=True)
class Said:
    """What a file says of itself before it is loaded: the dtype of its first input, and its outputs' names."""

    dtype: str | None = None
    outputs: tuple[str, ...] = ()


def read_said(data: bytes) -> Said:
    """Return what an ONNX file says; nothing of other kinds, and of one that will be refused when it is loaded."""
    try:
        if artifact_kind(data) != "onnx":
            return Said()
        model = read_graph(unpack_network(data)[0])
    except ArtifactError:
        return Said()
    return Said(next(iter(input_dtypes(model)), None), tuple(output.name for output in model.graph.output))
