"""Images that workers read where they are: an ingest by reference with broken files among them, and a backfill of the
upgraded gallery, against reading, decoding and encoding in process.

    python -m benchmarks.by_reference --images 2000
    python -m benchmarks.by_reference --images 100000 --pixels 32 --small-networks

φ and ψ of both versions are ResNet-18s at 224 px with random weights, or four small layers at 32 px. One file in a
hundred is no image. The service is an API process and one worker; what it takes is from its own times, of a job and of
a backfill. In process the same functions read the same files, one batch at a time, and nothing is stored: φ, ψ and a
thumbnail for the ingest; for the backfill φ and ψ of the new version, and once more with the old φ too, by which a
backfill finds another image under an id.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.ingest import encode, photograph
from benchmarks.processes import MemoryTrace, api_process, register_upgradable, upgrade_until_ready, worker_processes
from benchmarks.setting import machine, paper_sized_transformation, worker_with_servers
from models.artifacts import load_encoder, save_network
from models.backbones import ConvEncoder, ResNet
from models.preprocessing import Preprocessing

_PORT = 18_542
_DIM = 128
_BATCH = 64
_BROKEN_OF = 100
_DISTINCT = 64
_LOOK_EVERY_SECONDS = 0.5


def run(
    images: int = 2_000,
    pixels: Annotated[int, typer.Option(help="Of the longer edge of a file.")] = 640,
    in_process: Annotated[int, typer.Option(help="How many of them are read in process to compare.")] = 640,
    small_networks: bool = False,
) -> None:
    """Print the table."""
    torch.manual_seed(0)
    size = 32 if small_networks else 224
    preprocessing = Preprocessing(size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    network = save_network(ConvEncoder(8, _DIM) if small_networks else ResNet(18, _DIM))
    with tempfile.TemporaryDirectory(prefix="images-") as name:
        files = _write(Path(name), images, pixels)
        sound = [path for number, path in enumerate(files) if number % _BROKEN_OF]
        chosen = sound[:in_process]
        with (
            worker_with_servers(images=f"file://{name}/") as parts,
            worker_processes(parts, 1) as workers,
            api_process(parts, _PORT) as api,
        ):
            networks = {name: save_network(paper_sized_transformation(_DIM, seed)) for seed, name in enumerate("hg")}
            register_upgradable(api.client, network, networks, preprocessing, _DIM)
            api.client.post("/v1/galleries", json={"name": "g", "model_version": "v1"}).raise_for_status()
            with MemoryTrace({"worker": workers}, every_seconds=0.05) as trace:
                time.sleep(1.0)
                began = time.time()
                job = _ingest(api.client, files)
                upgrade_until_ready(api.client, "g", "v2")
                backfill = _backfill(api.client)
        idle, peak = trace.peak("worker", 0, began), trace.peak("worker", began, time.time())
        with_thumbnails, new_alone, with_old = (
            len(chosen) / _seconds_in_process(network, preprocessing, chosen, networks, thumbnails)
            for networks, thumbnails in ((2, True), (2, False), (3, False))
        )

    table = Table("what", "images", "broken, and found so", "images/s", "in process: φ and ψ", "ratio")
    for column in ("φ, ψ and the old φ", "ratio"):
        table.add_column(column)
    rejected = job["result"]["rejected"]
    ingest_rate = images / _seconds(job["created_at"], job["finished_at"])
    table.add_row("ingest by reference", f"{images:,}", f"{rejected:,}", *_rates(ingest_rate, with_thumbnails), "", "")
    rate = backfill["items"] / backfill["spent_seconds"]
    table.add_row("backfill", f"{backfill['items']:,}", "", *_rates(rate, new_alone), *_rates(rate, with_old)[1:])
    console = Console(width=130)
    console.print(table)
    console.print(f"worker: {idle / 2**20:.0f} MiB idle, {(peak - idle) / 2**20:.0f} MiB more at most; {machine()}")


def _write(folder: Path, images: int, pixels: int) -> list[Path]:
    contents = [photograph(pixels, pixels * 3 // 4, seed, noise=24) for seed in range(_DISTINCT)]
    paths = [folder / f"{number}.jpg" for number in range(images)]
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % _DISTINCT] if number % _BROKEN_OF else b"no image")
    return paths


def _ingest(client: httpx.Client, files: Sequence[Path]) -> dict[str, Any]:
    listed = [{"id": path.name, "image_uri": f"file://{path}"} for path in files]
    job = client.post("/v1/galleries/g/images/references", json=listed).raise_for_status().json()
    return _ended(client, f"/v1/jobs/{job['id']}", "succeeded")


def _backfill(client: httpx.Client) -> dict[str, Any]:
    wanted = {"generation": "next", "source": "uri", "order": "random"}
    backfill = client.post("/v1/galleries/g/backfills", json=wanted).raise_for_status().json()
    return _ended(client, f"/v1/backfills/{backfill['id']}", "finished")


def _ended(client: httpx.Client, path: str, state: str) -> dict[str, Any]:
    while True:
        found: dict[str, Any] = client.get(path).raise_for_status().json()
        if found["state"] == state:
            return found
        if found["error"]:
            raise RuntimeError(found["error"])
        time.sleep(_LOOK_EVERY_SECONDS)


def _seconds_in_process(
    network: bytes, preprocessing: Preprocessing, files: Sequence[Path], networks: int, thumbnails: bool
) -> float:
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as a worker has them
    encoders = [load_encoder(network, output_dim=_DIM, input_size=preprocessing.shape) for _ in range(networks)]
    parts = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
    encode(encoders, preprocessing, [path.read_bytes() for path in parts[0]], thumbnails)
    began = time.perf_counter()
    for part in parts:
        encode(encoders, preprocessing, [path.read_bytes() for path in part], thumbnails)
    return time.perf_counter() - began


def _rates(rate: float, in_process: float) -> tuple[str, str, str]:
    return f"{rate:.1f}", f"{in_process:.1f}", f"{rate / in_process:.2f}"


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


if __name__ == "__main__":
    typer.run(run)
