"""What the demonstration asks of the service, by the Python client, and the service that it starts for itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import gallery_upgrade
from demo.data import LabelledImages
from demo.training import Recipe
from gallery_upgrade.api.models import ReportView
from gallery_upgrade.core.calls import File
from gallery_upgrade.galleries import Gallery
from gallery_upgrade.hits import Hits
from models.artifacts import save_network

_REFERENCES = 1_000
_FILES_AT_ONCE = 256
_QUERY_THREADS = 4
_VECTORS_AT_ONCE = 64
_START_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Neighbor:
    """What the demonstration keeps of a neighbour: of all queries, there are millions."""

    id: str
    label: str | None
    distance: float


@contextmanager
def serving(folder: Path, progress: Any) -> Iterator[gallery_upgrade.Client]:
    """Run `gallery-upgrade serve` with its data in `folder`, and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_path = folder / "serve.log"
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--data", str(folder / "data")]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ)
    try:
        _wait_until_ready(process, log_path)
        progress(1, 1)
        with gallery_upgrade.Client(f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def _wait_until_ready(process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise RuntimeError(f"serve did not start:\n{log_path.read_text()[-2000:]}")
        if "is ready at" in log_path.read_text():
            return
        time.sleep(0.1)
    raise RuntimeError("serve was not ready in time")


def register_version(
    client: gallery_upgrade.Client, name: str, recipe: Recipe, encoder: nn.Module, side_information: nn.Module
) -> None:
    """Register φ and ψ."""
    dim = recipe.embedding_dim
    client.api.register_model_version(
        name=name,
        spec={"embedding_dim": dim, "side_information_dim": dim, "preprocessing": recipe.preprocessing.to_json()},
        embedding_model=save_network(encoder),
        side_information_model=save_network(side_information),
    )


def register_transformation(client: gallery_upgrade.Client, before: str, after: str, h: nn.Module, g: nn.Module) -> int:
    """Register h and g, and return the transformation's id."""
    registered = client.api.register_transformation(
        from_version=before, to_version=after, h=save_network(h), g=save_network(g)
    )
    return registered.id


def post_images(client: gallery_upgrade.Client, gallery: Gallery, images: LabelledImages, progress: Any) -> None:
    """Send images, an item each, whose id is its position."""
    for start in range(0, len(images), _FILES_AT_ONCE):
        part = range(start, min(start + _FILES_AT_ONCE, len(images)))
        answer = client.api.post_images(
            name=gallery.name,
            files=[File(f"{position}.png", images.files[position]) for position in part],
            items=[{"id": str(position), "label": images.classes[images.labels[position]]} for position in part],
        )
        rejected = [result for result in answer.results if result.status == "rejected"]
        if rejected:
            raise RuntimeError(f"rejected: {rejected[:3]}")
        progress(part.stop, len(images))


def search_images(gallery: Gallery, files: Sequence[bytes], k: int, progress: Any) -> list[list[Neighbor]]:
    """Return each image's neighbours, by as many requests as there are images, a few at a time."""
    answers: list[list[Neighbor]] = []
    with ThreadPoolExecutor(_QUERY_THREADS) as pool:
        for neighbors in pool.map(lambda data: _kept(gallery.search(data, k=k)), files):
            answers.append(neighbors)
            progress(len(answers), len(files))
    return answers


def search_vectors(gallery: Gallery, vectors: np.ndarray, k: int, progress: Any) -> list[list[Neighbor]]:
    """Return each vector's neighbours."""
    answers: list[list[Neighbor]] = []
    for start in range(0, len(vectors), _VECTORS_AT_ONCE):
        answers += map(_kept, gallery.search_vectors(vectors[start : start + _VECTORS_AT_ONCE], k=k))
        progress(len(answers), len(vectors))
    return answers


def _kept(hits: Hits) -> list[Neighbor]:
    return [Neighbor(hit.id, hit.label, hit.distance) for hit in hits]


def upgrade(
    gallery: Gallery, to_version: str, transformation: int, images: LabelledImages, progress: Any
) -> ReportView:
    """Start an upgrade, have it judged by images of some items, and let it go live by itself on a pass; where there is
    none, say that it is to go live all the same, to show what it is worth. Return the report."""

    def show(phases: Mapping[str, Any]) -> None:
        if "transforming" in phases:
            progress(phases["transforming"]["done"], phases["transforming"]["total"] or 1)

    started = gallery.upgrade(to_version, transformation=transformation, cutover="auto")
    started.wait(until="ready", progress=show)
    # Those images again that the service asks for: by both versions they are the evidence.
    started.give_references(lambda item_id: images.files[int(item_id)], started.wanted_references(_REFERENCES))
    report = started.evaluate()
    if report.verdict != "pass":
        started.cut_over(override="the demonstration shows what it is worth")
    started.wait(until="live")
    return report
