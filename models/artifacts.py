"""Networks as files, in and out: `load_encoder` and `load_transformation_network` are the only ways in.

Accepted by content: safetensors of our own networks (the configuration is in the header's metadata), ONNX, and
TorchScript where the operator trusts it. The first two cannot run code; `.pt2` and pickles are never opened. Every load
makes a trial run, so what it returns has the shapes that it was asked for.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnxruntime
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from models.backbones import ConvEncoder, SmallResNet
from models.transformation import Transformation, fold_batch_norm

ArtifactKind = Literal["onnx", "safetensors", "torchscript"]
Vectors = NDArray[np.float32]
Encoder = Callable[[Vectors], Vectors]
TransformationNetwork = Callable[[Vectors, Vectors | None], Vectors]
_Run = Callable[[Sequence[Vectors]], Vectors]

NETWORKS: dict[str, type[nn.Module]] = {
    "ConvEncoder": ConvEncoder,
    "SmallResNet": SmallResNet,
    "Transformation": Transformation,
}
_METADATA_KEY = "gallery_upgrade"
_MAX_DIMENSION = 65_536
_MAX_PARAMETERS = 2**31
_TRIAL_BATCHES = (2, 1)


class ArtifactError(ValueError):
    """The file is not a usable network; the message says why."""


def artifact_kind(data: bytes) -> ArtifactKind:
    """Return the kind of a file by its content. Raises `ArtifactError`."""
    if data[:4] == b"PK\x03\x04":
        try:
            names = zipfile.ZipFile(io.BytesIO(data)).namelist()
        except zipfile.BadZipFile as error:
            raise ArtifactError("The file is a damaged archive.") from error
        if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
            return "torchscript"
        raise ArtifactError(
            "Archives of torch.export (.pt2) and torch.save are not accepted: loading one can run any code. Export to"
            " ONNX, or save one of our own networks as safetensors."
        )
    if data[:1] == b"\x80":
        raise ArtifactError("Pickles are not accepted: loading one can run any code. Export to ONNX instead.")
    if len(data) > 9 and struct.unpack("<Q", data[:8])[0] <= len(data) - 8 and data[8:9] == b"{":
        return "safetensors"
    if data[:1] == b"\x08":  # an ONNX file starts with its ir_version, field 1 of a protobuf message
        return "onnx"
    raise ArtifactError("The file is neither ONNX, nor safetensors, nor TorchScript.")


def save_network(network: nn.Module) -> bytes:
    """Return one of our own networks as safetensors with its configuration in the metadata."""
    name = type(network).__name__
    if name not in NETWORKS:
        raise ArtifactError(f"{name} is not one of our own networks.")
    config = {"network": name, "config": network.config()}  # type: ignore[operator]  # each of NETWORKS has it
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    return safetensors.torch.save(tensors, {_METADATA_KEY: json.dumps(config)})


def read_config(data: bytes) -> dict[str, Any]:
    """Return {"network", "config"} of a safetensors file of ours, without reading its tensors."""
    try:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        config: dict[str, Any] = json.loads(header["__metadata__"][_METADATA_KEY])
        if config["network"] not in NETWORKS or not isinstance(config["config"], dict):
            raise KeyError(config["network"])
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError("The safetensors file does not name one of our own networks in its metadata.") from error
    return config


def load_encoder(
    data: bytes, *, output_dim: int, input_size: int, device: str = "cpu", trust_torchscript: bool = False
) -> Encoder:
    """Return a callable (B, 3, H, W) float32 -> (B, output_dim) float32, after a trial run. Raises `ArtifactError`.

    Outputs of the form (B, D, 1, 1) lose their trailing axes.
    """
    run = _load(data, device, trust_torchscript)

    def encode(images: Vectors) -> Vectors:
        return _as_vectors(run([images]))

    for batch in _TRIAL_BATCHES:
        trial = np.random.default_rng(0).standard_normal((batch, 3, input_size, input_size), np.float32)
        _check_output(_trial(lambda trial=trial: encode(trial), "images"), batch, output_dim)
    return encode


def load_transformation_network(
    data: bytes,
    *,
    from_dim: int,
    side_information_dim: int | None,
    to_dim: int,
    device: str = "cpu",
    trust_torchscript: bool = False,
) -> TransformationNetwork:
    """Return a callable ((B, from_dim), (B, side_information_dim) | None) -> (B, to_dim) float32, after a trial run.

    A foreign network may take (B, D) or the paper's public form (B, D, 1, 1), and without side-information one input or
    the embedding twice, as the paper's code does; the trial finds which. Raises `ArtifactError`.
    """
    run = _load(data, device, trust_torchscript)
    generator = np.random.default_rng(0)
    embedding = generator.standard_normal((_TRIAL_BATCHES[0], from_dim), np.float32)
    side = None
    if side_information_dim is not None:
        side = generator.standard_normal((_TRIAL_BATCHES[0], side_information_dim), np.float32)
    refusal: ArtifactError | None = None
    for form in (_two_inputs, _one_input) if side is None else (_two_inputs,):
        for trailing in ((), (1, 1)):
            network = _bind(run, form, trailing)
            try:
                _check_output(_trial(lambda n=network: n(embedding, side), "vectors"), _TRIAL_BATCHES[0], to_dim)
                one_side = None if side is None else side[:1]
                _check_output(_trial(lambda n=network, s=one_side: n(embedding[:1], s), "vectors"), 1, to_dim)
            except ArtifactError as error:
                refusal = refusal or error
                continue
            return network
    assert refusal is not None
    raise refusal


def _two_inputs(embedding: Vectors, side_information: Vectors | None) -> list[Vectors]:
    return [embedding, embedding if side_information is None else side_information]


def _one_input(embedding: Vectors, side_information: Vectors | None) -> list[Vectors]:
    return [embedding]


def _bind(
    run: _Run, form: Callable[[Vectors, Vectors | None], list[Vectors]], trailing: tuple[int, ...]
) -> TransformationNetwork:
    def network(embedding: Vectors, side_information: Vectors | None) -> Vectors:
        inputs = form(embedding, side_information)
        return _as_vectors(run([values.reshape(*values.shape, *trailing) for values in inputs]))

    return network


def _load(data: bytes, device: str, trust_torchscript: bool) -> _Run:
    kind = artifact_kind(data)
    if kind == "onnx":
        return _load_onnx(data, device)
    if kind == "safetensors":
        return _run_torch(_load_safetensors(data), device)
    if not trust_torchscript:
        raise ArtifactError(
            "TorchScript is accepted only where the operator trusts it (GALLERY_TRUST_TORCHSCRIPT=1); export to ONNX."
        )
    return _run_torch(_load_torchscript(data), device)


def _load_onnx(data: bytes, device: str) -> _Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(data, options, providers=providers)
    except Exception as error:
        raise ArtifactError(f"ONNX Runtime refuses the file: {_first_line(error)}") from error
    names = [argument.name for argument in session.get_inputs()]

    def run(inputs: Sequence[Vectors]) -> Vectors:
        if len(names) != len(inputs):
            raise ArtifactError(f"The network takes {len(names)} inputs; {len(inputs)} were expected.")
        output: Vectors = session.run(None, dict(zip(names, inputs, strict=True)))[0]
        return output

    return run


def _load_safetensors(data: bytes) -> nn.Module:
    described = read_config(data)
    config = described["config"]
    sizes = [value for value in config.values() if value is not None]
    if not all(isinstance(value, int) and 0 < value <= _MAX_DIMENSION for value in sizes):
        raise ArtifactError(f"The network's configuration has sizes out of range: {config}")
    try:
        with torch.device("meta"):  # no memory is taken before the sizes are known to fit the file
            network = NETWORKS[described["network"]](**config)
        if sum(tensor.numel() for tensor in network.state_dict().values()) > min(_MAX_PARAMETERS, len(data)):
            raise ArtifactError("The network's configuration asks for more weights than the file holds.")
        network.load_state_dict(safetensors.torch.load(data), assign=True)
    except (TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"The weights do not fit the network: {_first_line(error)}") from error
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values() if tensor.is_floating_point()):
        raise ArtifactError("The network has weights that are not finite.")
    return fold_batch_norm(network.float()) if isinstance(network, Transformation) else network.float().eval()


def _load_torchscript(data: bytes) -> nn.Module:
    try:
        module: nn.Module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"The TorchScript file cannot be loaded: {_first_line(error)}") from error
    return module.eval()


def _run_torch(network: nn.Module, device: str) -> _Run:
    network = network.to(device)

    def run(inputs: Sequence[Vectors]) -> Vectors:
        with torch.inference_mode():
            output = network(*(torch.from_numpy(np.ascontiguousarray(values)).to(device) for values in inputs))
        if not isinstance(output, torch.Tensor):
            raise ArtifactError(f"The network gives a {type(output).__name__}; one tensor was expected.")
        result: Vectors = output.float().cpu().numpy()
        return result

    return run


def _as_vectors(output: Vectors) -> Vectors:
    """Remove trailing axes of size 1 beyond the second: (B, D, 1, 1) -> (B, D)."""
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    return np.ascontiguousarray(output, np.float32)


def _trial(call: Callable[[], Vectors], what: str) -> Vectors:
    try:
        return call()
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"A trial run on {what} of the declared shape failed: {_first_line(error)}") from error


def _check_output(output: Vectors, batch: int, dim: int) -> None:
    if output.shape != (batch, dim):
        raise ArtifactError(
            f"A trial run on {batch} inputs gave an output of shape {tuple(output.shape)}; ({batch}, {dim}) is due."
        )
    if not np.isfinite(output).all():
        raise ArtifactError("A trial run gave values that are not finite.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
