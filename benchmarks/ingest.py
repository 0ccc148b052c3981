"""Photographs in one request: the memory of the API process over its idle size, and the time against decoding, φ and ψ
in process.

    python -m benchmarks.ingest --images 400
    python -m benchmarks.ingest --images 10000 --noise 10 --small-networks

φ and ψ are ResNet-18s at 224 px with random weights, or where memory alone is asked for four small layers, so that
decoding is most of the time; the photographs are a few JPEGs of noise over slopes, sent again
and again under other ids, with thumbnails. In process the same functions read the same files, one batch at a time, and
nothing is stored.
"""

import io
import json
import os
import time
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.processes import Api, MemoryTrace, api_process
from benchmarks.setting import machine, worker_with_servers
from models.artifacts import Encoder, load_encoder, save_network
from models.backbones import ConvEncoder, ResNet
from models.images import decode_image, thumbnail_jpeg
from models.preprocessing import Preprocessing, preprocess

_PORT = 18_541
_DIM = 128
_BATCH = 14
_DISTINCT = 4
_PREPROCESSING = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256, crop="center")
_BUDGET_MIB, _BUDGET_RATIO = 300, 0.95


def run(
    images: Annotated[int, typer.Option(help="In one request.")] = 400,
    in_process: Annotated[int, typer.Option(help="How many of them are read in process to compare.")] = 60,
    width: int = 4_000,
    height: int = 3_000,
    noise: Annotated[int, typer.Option(help="Of the pixels: with 10, a file has a third of a megabyte.")] = 24,
    small_networks: bool = False,
) -> None:
    """Print the table."""
    torch.manual_seed(0)
    files = [photograph(width, height, seed, noise) for seed in range(_DISTINCT)]
    network = save_network(ConvEncoder(8, _DIM) if small_networks else ResNet(18, _DIM))
    with worker_with_servers() as parts, api_process(parts, _PORT) as api:
        _register(api, network)
        _post(api, "warm", files[:1])  # networks are loaded by the first
        with MemoryTrace({"api": [api.pid]}, every_seconds=0.02) as trace:
            time.sleep(1.0)
            began = time.time()
            _post(api, "photograph", [files[number % _DISTINCT] for number in range(images)])
            ended = time.time()
    idle, peak = trace.peak("api", 0, began), trace.peak("api", began, ended)

    per_second = images / (ended - began)
    alone_per_second = in_process / _seconds_in_process(network, [files[n % _DISTINCT] for n in range(in_process)])
    table = Table("images", "MB of a file", "idle MiB", f"over idle, MiB (budget: {_BUDGET_MIB})", "images/s")
    for column in ("in process", f"ratio (budget: {_BUDGET_RATIO:g})"):
        table.add_column(column)
    table.add_row(
        f"{images} of {width} x {height}",
        f"{np.mean([len(file) for file in files]) / 1e6:.1f}",
        f"{idle / 2**20:.0f}",
        f"{(peak - idle) / 2**20:.0f}",
        f"{per_second:.2f}",
        f"{alone_per_second:.2f}",
        f"{per_second / alone_per_second:.2f}",
    )
    console = Console(width=130)
    console.print(table)
    console.print(machine())


def photograph(width: int, height: int, seed: int, noise: int) -> bytes:
    """Return a JPEG of noise over slopes."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    values = np.stack([x, y, 200 - x], axis=-1).astype(np.uint8)
    values += random.integers(0, noise, values.shape, dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG", quality=75)
    return stream.getvalue()


def _register(api: Api, network: bytes) -> None:
    spec = {"embedding_dim": _DIM, "side_information_dim": _DIM, "preprocessing": _PREPROCESSING.to_json()}
    files = {"embedding_model": network, "side_information_model": network}
    form = {"name": "v1", "spec": json.dumps(spec)}
    api.client.post("/v1/model-versions", data=form, files=files).raise_for_status()
    api.client.post("/v1/galleries", json={"name": "g", "model_version": "v1"}).raise_for_status()


def _post(api: Api, name: str, files: Sequence[bytes]) -> None:
    form = [("files", (f"{name}-{number}", file)) for number, file in enumerate(files)]
    answer = api.client.post("/v1/galleries/g/images", files=form, timeout=3_600).raise_for_status().json()
    if any(result["status"] != "created" for result in answer["results"]):
        raise RuntimeError("An image was rejected")


def _seconds_in_process(network: bytes, files: Sequence[bytes]) -> float:
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as an API process has them
    phi, psi = (load_encoder(network, output_dim=_DIM, input_size=_PREPROCESSING.shape) for _ in range(2))
    encode([phi, psi], _PREPROCESSING, files[:_BATCH])
    began = time.perf_counter()
    for start in range(0, len(files), _BATCH):
        encode([phi, psi], _PREPROCESSING, files[start : start + _BATCH])
    return time.perf_counter() - began


def encode(
    networks: Sequence[Encoder], preprocessing: Preprocessing, files: Sequence[bytes], thumbnails: bool = True
) -> None:
    """Decode files, make thumbnails of them, and run every network on them."""
    inputs = np.empty((len(files), *preprocessing.shape), np.float32)
    for row, file in zip(inputs, files, strict=True):
        image = decode_image(file)
        row[...] = preprocess(image, preprocessing)
        if thumbnails:
            thumbnail_jpeg(image)
    for network in networks:
        network(inputs)


if __name__ == "__main__":
    typer.run(run)
