"""Networks as files, in and out: `load_encoder` and `load_transformation_network` are the only ways in.

Accepted by content: safetensors of our own networks (the configuration is in the header's metadata), ONNX, and
TorchScript where the operator trusts it. The first two cannot run code; `.pt2` and pickles are never opened. Every load
makes a trial run, so what it returns has the shapes that it was asked for.
"""

import io
import json
import logging
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnxruntime
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from models.backbones import ENCODERS
from models.normalize import l2_normalize
from models.precision import Precision, in_precision
from models.transformation import Transformation

ArtifactKind = Literal["onnx", "safetensors", "torchscript"]
Vectors = NDArray[Any]  # float32; what goes in may be float16
Encoder = Callable[[Vectors], Vectors]
# Inputs -> the output, and (B,) float32 the squared error that is expected of it, of a network that says it.
_Run = Callable[[Sequence[Vectors]], tuple[Vectors, Vectors | None]]

NETWORKS: dict[str, type[nn.Module]] = {**ENCODERS, "Transformation": Transformation}
_METADATA_KEY = "gallery_upgrade"
_MAX_DIMENSION = 65_536
_MAX_PARTS = 64
_MAX_PARAMETERS = 2**31
_TRIAL_BATCHES = (2, 1)
_PRECISION_ROWS = 1024
_LEAST_COSINE = 0.9999
_FORMS: tuple[tuple[str, tuple[int, ...]], ...] = (("(B, D)", ()), ("(B, D, 1, 1)", (1, 1)))


_log = logging.getLogger(__name__)


class ArtifactError(ValueError):
    """The file is not a usable network; the message says why."""


@dataclass(frozen=True)
class TransformationNetwork:
    """A loaded h or g: (φ (B, D), ψ (B, S) | None), float16 or float32 -> (B, D_to) float32."""

    _run: Callable[[Vectors, Vectors | None], tuple[Vectors, Vectors | None]]

    def __call__(self, embedding: Vectors, side_information: Vectors | None) -> Vectors:
        return self._run(embedding, side_information)[0]

    def with_uncertainty(
        self, embedding: Vectors, side_information: Vectors | None
    ) -> tuple[Vectors, NDArray[np.float32] | None]:
        """Return the output, and (B,) the squared error that is expected of it; None from a network that does not
        say."""
        return self._run(embedding, side_information)


@dataclass(frozen=True)
class _Loaded:
    """A network of any kind: `run` takes `input_count` arrays. `config` is set when it is one of our own."""

    run: _Run
    input_count: int
    name: str | None = None
    config: dict[str, Any] | None = None


def artifact_kind(data: bytes) -> ArtifactKind:
    """Return the kind of a file by its content. Raises `ArtifactError`."""
    if data[8:9] == b"{" and struct.unpack("<Q", data[:8])[0] <= len(data) - 8:
        return "safetensors"
    if data[:4] == b"PK\x03\x04":
        try:
            names = zipfile.ZipFile(io.BytesIO(data)).namelist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            raise ArtifactError("The file is a damaged archive.") from error
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


def save_network(network: nn.Module) -> bytes:
    """Return one of our own networks as safetensors with its configuration in the metadata."""
    name = type(network).__name__
    if name not in NETWORKS:
        raise ArtifactError(f"{name} is not one of our own networks.")
    config = {"network": name, "config": network.config()}  # type: ignore[operator]  # each of NETWORKS has it
    if _build(name, config["config"]).state_dict().keys() != network.state_dict().keys():
        raise ArtifactError(f"This {name} is not as its configuration builds it; was its BatchNorm folded?")
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
    loaded = _load(data, device, trust_torchscript)
    if loaded.name == "Transformation":
        raise ArtifactError("The file is a transformation (h or g); an encoder was expected.")
    if loaded.input_count != 1:
        raise ArtifactError(f"The network takes {loaded.input_count} inputs; an encoder takes one, the images.")

    def encode(images: Vectors) -> Vectors:
        return _as_vectors(loaded.run([images])[0])

    for batch in _TRIAL_BATCHES:
        trial = np.random.default_rng(0).standard_normal((batch, 3, input_size, input_size), np.float32)
        _check_output(_trial(encode, [trial], "images"), batch, output_dim)
    return encode


def load_transformation_network(
    data: bytes,
    *,
    from_dim: int,
    side_information_dim: int | None,
    to_dim: int,
    device: str = "cpu",
    trust_torchscript: bool = False,
    precision: Precision = "float32",
) -> TransformationNetwork:
    """Return ((B, from_dim), (B, side_information_dim) | None) -> (B, to_dim) float32, after a trial run.

    Inputs are float16 or float32. One of our own networks computes in `precision`, if its outputs then point where
    those in float32 do (cosine at least 0.9999 in every row of a trial); foreign networks compute as their file says.

    A foreign network may take (B, D) or the paper's public form (B, D, 1, 1): the trial finds which. Of one input it
    gets the embedding; of two, embedding and side-information in this order, or without side-information the embedding
    twice, as in the paper's code. Raises `ArtifactError`.
    """
    loaded = _load(data, device, trust_torchscript, precision)
    _check_transformation(loaded, from_dim, side_information_dim, to_dim)

    generator = np.random.default_rng(0)
    embedding = generator.standard_normal((max(_TRIAL_BATCHES), from_dim), np.float32)
    side = None
    if side_information_dim is not None:
        side = generator.standard_normal((max(_TRIAL_BATCHES), side_information_dim), np.float32)

    refusals = []
    for form, trailing in _FORMS[:1] if loaded.config else _FORMS:
        network = _bind(loaded, trailing)
        try:
            for batch in _TRIAL_BATCHES:
                inputs = [embedding[:batch], None if side is None else side[:batch]]
                _check_output(_trial(network, inputs, "vectors"), batch, to_dim)
            return network
        except ArtifactError as error:
            refusals.append(f"Given {form}: {error}")
    raise ArtifactError(" ".join(refusals))


def load_linear_map(data: bytes, device: str = "cpu") -> TransformationNetwork | None:
    """Return the linear map that stands beside h in one of our own networks, in float32; None where there is none.

    Raises `ArtifactError`.
    """
    if artifact_kind(data) != "safetensors":
        return None
    network, _, _ = _read_network(data)
    alone = network.linear_alone() if isinstance(network, Transformation) else None
    return None if alone is None else _bind(_Loaded(_run_torch(alone, device), 2), ())


def _check_transformation(loaded: _Loaded, from_dim: int, side_information_dim: int | None, to_dim: int) -> None:
    if loaded.input_count not in (1, 2):
        raise ArtifactError(
            f"The network takes {loaded.input_count} inputs; a transformation takes the embedding and, if at all, the"
            " side-information."
        )
    if loaded.config is None:
        return
    if loaded.name != "Transformation":
        raise ArtifactError(f"The file is an encoder ({loaded.name}); a transformation was expected.")
    declared = {"from_dim": from_dim, "side_information_dim": side_information_dim, "to_dim": to_dim}
    for name, expected in declared.items():
        found = loaded.config.get(name)
        ignores_it = name == "side_information_dim" and found is None  # trained without: whatever is stored is unused
        if found != expected and not ignores_it:
            raise ArtifactError(f"The transformation's {name} is {found}; {expected} was declared.")


def _bind(loaded: _Loaded, trailing: tuple[int, ...]) -> TransformationNetwork:
    def run(embedding: Vectors, side_information: Vectors | None) -> tuple[Vectors, Vectors | None]:
        inputs = [embedding, embedding if side_information is None else side_information][: loaded.input_count]
        output, uncertainty = loaded.run([values.reshape(*values.shape, *trailing) for values in inputs])
        return _as_vectors(output), uncertainty

    return TransformationNetwork(run)


def _load(data: bytes, device: str, trust_torchscript: bool, precision: Precision = "float32") -> _Loaded:
    kind = artifact_kind(data)
    if kind == "onnx":
        return _load_onnx(data, device)
    if kind == "safetensors":
        return _load_safetensors(data, device, precision)
    if not trust_torchscript:
        raise ArtifactError(
            "TorchScript is accepted only where the operator trusts it (GALLERY_TRUST_TORCHSCRIPT=1); export to ONNX."
        )
    return _load_torchscript(data, device)


def _load_onnx(data: bytes, device: str) -> _Loaded:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # A model may name files that hold its weights; without this, those below the working directory would be read.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    # Threads that wait for the next run spin for 10 ms and more, on cores that the database and other requests need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    providers = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    elif device != "cpu":
        _log.warning("this ONNX Runtime has no CUDA: ONNX networks run on the CPU")

    try:
        session = onnxruntime.InferenceSession(data, options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors have no common base
        if "xternal data" in str(error):
            raise ArtifactError("The ONNX file keeps weights in other files; export it as a single file.") from error
        raise ArtifactError(f"ONNX Runtime refuses the file: {_first_line(error)}") from error
    if len(session.get_outputs()) != 1:
        raise ArtifactError(f"The network gives {len(session.get_outputs())} outputs; one was expected.")

    names = [argument.name for argument in session.get_inputs()]

    def run(inputs: Sequence[Vectors]) -> tuple[Vectors, None]:
        single = [values.astype(np.float32, copy=False) for values in inputs]
        return session.run(None, dict(zip(names, single, strict=True)))[0], None

    return _Loaded(run, len(names))


def _read_network(data: bytes) -> tuple[nn.Module, str, dict[str, Any]]:
    """Return one of our own networks, ready to run, its name and its configuration."""
    described = read_config(data)
    name, config = described["network"], described["config"]
    network = _build(name, config)
    if sum(tensor.numel() for tensor in network.state_dict().values()) > min(_MAX_PARAMETERS, len(data)):
        raise ArtifactError("The network's configuration asks for more weights than the file holds.")

    try:
        network.load_state_dict(safetensors.torch.load(data), assign=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"The weights do not fit the network: {_first_line(error)}") from error
    network = network.float().eval()
    _check_finite(network)
    return network, name, config


def _load_safetensors(data: bytes, device: str, precision: Precision) -> _Loaded:
    network, name, config = _read_network(data)
    if not isinstance(network, Transformation):
        return _Loaded(_run_torch(network, device), 1, name, config)
    run = _run_torch(in_precision(network, "float32"), device)
    if precision != "float32":
        shorter = _run_torch(in_precision(network, precision), device)
        if _least_cosine(network, run, shorter) >= _LEAST_COSINE:
            run = shorter
        else:
            _log.warning("a transformation is too inexact in %s and runs in float32", precision)
    return _Loaded(run, 2, name, config)


def _least_cosine(network: Transformation, exact: _Run, shorter: _Run) -> float:
    """Return the least cosine between both outputs over rows of random inputs."""
    generator = np.random.default_rng(0)
    dims = (network.from_dim, network.side_information_dim or network.from_dim)
    inputs = [generator.standard_normal((_PRECISION_ROWS, dim), np.float32) for dim in dims]
    expected, found = l2_normalize(exact(inputs)[0]), l2_normalize(shorter(inputs)[0])
    return float((expected * found).sum(axis=1).min())


def _build(name: str, config: dict[str, Any]) -> nn.Module:
    """Build one of our own networks without memory for its weights: the sizes come from a file."""
    for key, value in config.items():
        limit = _MAX_PARTS if key in ("blocks", "members") else _MAX_DIMENSION
        is_size = isinstance(value, int) and 1 <= value <= limit
        if not (is_size or isinstance(value, bool) or value is None):
            raise ArtifactError(f"The network's configuration has {key} = {value!r}; from 1 to {limit} is accepted.")
    try:
        with torch.device("meta"):
            return NETWORKS[name](**config)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ArtifactError(f"The configuration does not fit {name}: {_first_line(error)}") from error


def _load_torchscript(data: bytes, device: str) -> _Loaded:
    try:
        module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"The TorchScript file cannot be loaded: {_first_line(error)}") from error
    _check_finite(module)
    input_count = len(module.forward.schema.arguments) - 1  # without self
    return _Loaded(_run_torch(module.eval(), device), input_count)


def _check_finite(network: nn.Module) -> None:
    tensors = network.state_dict().values()
    if not all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()):
        raise ArtifactError("The network has weights that are not finite.")


def _run_torch(network: nn.Module, device: str) -> _Run:
    network = network.to(device)

    def run(inputs: Sequence[Vectors]) -> tuple[Vectors, Vectors | None]:
        tensors = [torch.from_numpy(np.ascontiguousarray(values)).to(device).float() for values in inputs]
        uncertainty = None
        with torch.inference_mode():
            if isinstance(network, Transformation):
                output, uncertainty = network.with_uncertainty(*tensors)
            else:
                output = network(*tensors)
        if not isinstance(output, torch.Tensor):
            raise ArtifactError(f"The network gives a {type(output).__name__}; one tensor was expected.")
        return output.float().cpu().numpy(), None if uncertainty is None else uncertainty.cpu().numpy()

    return run


def _as_vectors(output: Vectors) -> Vectors:
    """Remove trailing axes of size 1 beyond the second: (B, D, 1, 1) -> (B, D)."""
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    return np.ascontiguousarray(output, np.float32)


def _trial(network: Callable[..., Vectors], inputs: Sequence[Vectors | None], what: str) -> Vectors:
    try:
        return network(*inputs)
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
