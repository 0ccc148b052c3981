"""Networks of our own as safetensors: the weights, and in the header's metadata the configuration to rebuild them from.

Sizes are checked before memory is taken for them.
"""

import json
import logging
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from models.backbones import ENCODERS
from models.loaded_networks import ArtifactError, Input, LoadedNetwork, NetworkForm, Run, Vectors, sentence_of
from models.normalize import l2_normalize
from models.precision import Precision, in_precision
from models.transformation import Transformation

NETWORKS: dict[str, type[nn.Module]] = {**ENCODERS, "Transformation": Transformation}
_METADATA_KEY = "gallery_upgrade"
_MAX_DIMENSION = 65_536
_MAX_PARTS = 64
_MAX_PARAMETERS = 2**31
_PRECISION_ROWS = 1024
_LEAST_COSINE = 0.9999

_log = logging.getLogger(__name__)


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


def read_network(data: bytes) -> tuple[nn.Module, str, dict[str, Any]]:
    """Return one of our own networks, ready to run, its name and its configuration."""
    described = read_config(data)
    name, config = described["network"], described["config"]
    network = _build(name, config)
    if sum(tensor.numel() for tensor in network.state_dict().values()) > min(_MAX_PARAMETERS, len(data)):
        raise ArtifactError("The network's configuration asks for more weights than the file holds.")

    try:
        network.load_state_dict(safetensors.torch.load(data), assign=True)
    except (RuntimeError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"The weights do not fit the network: {sentence_of(error)}") from error
    network = network.float().eval()
    check_finite(network)
    return network, name, config


def load_own(data: bytes, device: str, precision: Precision, form: NetworkForm) -> LoadedNetwork:
    """Return one of our own networks. A transformation computes in `precision`, if its outputs then point where those
    in float32 do (cosine at least 0.9999 in every row of a trial). Raises `ArtifactError`."""
    if form.layout == "nhwc" or form.dtype not in (None, "float32") or form.output is not None:
        raise ArtifactError("Our own networks take float32, images as nchw, and have one output without a name.")
    network, name, config = read_network(data)
    takes = NetworkForm(layout=form.layout, dtype="float32", batch=form.batch)
    if not isinstance(network, Transformation):
        return LoadedNetwork(run_network(network, device), (Input("images"),), takes, name, config)
    run = run_network(in_precision(network, "float32"), device)
    if precision != "float32":
        shorter = run_network(in_precision(network, precision), device)
        if _least_cosine(network, run, shorter) >= _LEAST_COSINE:
            run = shorter
        else:
            _log.warning("a transformation is too inexact in %s and runs in float32", precision)
    inputs = (Input("embedding"), Input("side_information"))
    return LoadedNetwork(run, inputs, takes, name, config)


def _least_cosine(network: Transformation, exact: Run, shorter: Run) -> float:
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
        raise ArtifactError(f"The configuration does not fit {name}: {sentence_of(error)}") from error


def check_finite(network: nn.Module) -> None:
    """Raise `ArtifactError` where a weight is not finite."""
    tensors = network.state_dict().values()
    if not all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()):
        raise ArtifactError("The network has weights that are not finite.")


def run_network(network: nn.Module, device: str) -> Run:
    """Return the run of one of our own networks: inputs (B, ...) to the output, and the error that it expects."""
    network = network.to(device)

    def run(inputs: Sequence[Vectors]) -> tuple[Vectors, Vectors | None]:
        tensors = [torch.from_numpy(np.ascontiguousarray(values)).to(device).float() for values in inputs]
        uncertainty = None
        with torch.inference_mode():
            if isinstance(network, Transformation):
                output, uncertainty = network.with_uncertainty(*tensors)
            else:
                output = network(*tensors)
        return output.float().cpu().numpy(), None if uncertainty is None else uncertainty.cpu().numpy()

    return run
