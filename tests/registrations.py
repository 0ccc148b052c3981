"""Registering networks of any kind over HTTP, and what is stored of them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import nn

from service.settings import Settings
from tests.networks import PREPROCESSING, encoder_bytes, onnx_encoder_bytes, torchscript_bytes
from tests.unit.models.artifact_files import Images

SPEC: dict[str, Any] = {"embedding_dim": 6, "preprocessing": PREPROCESSING}


# Each makes an encoder of so many dimensions from a seed; two of them give (B, D, 1, 1).
ENCODERS: dict[str, tuple[str, Callable[[int, int], bytes]]] = {
    "safetensors": ("safetensors", encoder_bytes),
    "onnx": ("onnx", onnx_encoder_bytes),
    "onnx, trailing axes": ("onnx", lambda dim, seed: onnx_encoder_bytes(dim, seed, trailing=True)),
    "torchscript, trailing axes": ("torchscript", lambda dim, seed: torchscript_bytes(seeded(Images, dim, seed=seed))),
}


def seeded(make: Callable[..., nn.Module], *dims: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make(*dims)


def post_version(client: httpx.Client, name: str, phi: bytes, psi: bytes | None = None, **spec: Any) -> httpx.Response:
    files = {"embedding_model": phi} | ({} if psi is None else {"side_information_model": psi})
    return client.post("/v1/model-versions", data={"name": name, "spec": json.dumps(SPEC | spec)}, files=files)


def post_transformation(
    client: httpx.Client, before: str, after: str, h: bytes, g: bytes | None = None
) -> httpx.Response:
    files = {"h": h} | ({} if g is None else {"g": g})
    return client.post("/v1/transformations", data={"from_version": before, "to_version": after}, files=files)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def artifacts(settings: Settings) -> dict[str, Path]:
    """Return the files of all stored artifacts by digest."""
    return {path.name: path for path in (settings.data / "blobs" / "artifacts").glob("*/*")}
