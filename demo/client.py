"""A client of the service, as a user would write one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from torch import nn

from demo.data import LabelledImages
from demo.training import Recipe
from models.artifacts import save_network

_REFERENCES = 1_000
_REFERENCES = 1_000
_POST_FILES = 256
_QUERY_THREADS = 4
_QUERY_VECTORS = 64
_START_SECONDS = 180


@contextmanager
def serving(folder: Path, progress: Any) -> Iterator["Client"]:
    """Run `gallery-upgrade serve` with its data in `folder`, and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_path = folder / "serve.log"
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--data", str(folder / "data")]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ)
    try:
        client = Client(f"http://127.0.0.1:{port}")
        client.wait_until_ready(process, log_path)
        progress(1, 1)
        yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


class Client:
    """Each method is one thing that a user asks of the service."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=300)

    def wait_until_ready(self, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
        ends = time.monotonic() + _START_SECONDS
        while time.monotonic() < ends:
            if process.poll() is not None:
                raise RuntimeError(f"serve did not start:\n{log_path.read_text()[-2000:]}")
            if "is ready at" in log_path.read_text():
                return
            time.sleep(0.1)
        raise RuntimeError("serve was not ready in time")

    def register_version(self, name: str, recipe: Recipe, encoder: nn.Module, side_information: nn.Module) -> None:
        dim = recipe.embedding_dim
        preprocessing = recipe.preprocessing.to_json()
        spec = {"embedding_dim": dim, "side_information_dim": dim, "preprocessing": preprocessing}
        self._post(
            "/v1/model-versions",
            data={"name": name, "spec": json.dumps(spec)},
            files={
                "embedding_model": save_network(encoder),
                "side_information_model": save_network(side_information),
            },
        )

    def register_transformation(self, before: str, after: str, h: nn.Module, g: nn.Module) -> int:
        """Return its id."""
        registered = self._post(
            "/v1/transformations",
            data={"from_version": before, "to_version": after},
            files={"h": save_network(h), "g": save_network(g)},
        )
        return int(registered["id"])

    def create_gallery(self, name: str, model_version: str) -> None:
        self._post("/v1/galleries", json={"name": name, "model_version": model_version})

    def post_images(self, gallery: str, images: LabelledImages, progress: Any) -> None:
        for start in range(0, len(images), _POST_FILES):
            part = range(start, min(start + _POST_FILES, len(images)))
            files = [("files", (f"{position}.png", images.files[position])) for position in part]
            items = [{"id": str(position), "label": images.classes[images.labels[position]]} for position in part]
            answer = self._post(f"/v1/galleries/{gallery}/images", files=files, data={"items": json.dumps(items)})
            rejected = [result for result in answer["results"] if result["status"] == "rejected"]
            if rejected:
                raise RuntimeError(f"rejected: {rejected[:3]}")
            progress(part.stop, len(images))

    def search_images(self, gallery: str, files: Sequence[bytes], k: int, progress: Any) -> list[list[dict[str, Any]]]:
        """Return each image's neighbours, by as many POSTs as there are images, a few at a time."""

        def search(data: bytes) -> list[dict[str, Any]]:
            answer = self._post(f"/v1/galleries/{gallery}/search", params={"k": k}, content=data)
            neighbors: list[dict[str, Any]] = answer["neighbors"]
            return neighbors

        with ThreadPoolExecutor(_QUERY_THREADS) as pool:
            answers = []
            for answer in pool.map(search, files):
                answers.append(answer)
                progress(len(answers), len(files))
        return answers

    def search_vectors(self, gallery: str, vectors: np.ndarray, k: int, progress: Any) -> list[list[dict[str, Any]]]:
        answers: list[list[dict[str, Any]]] = []
        for start in range(0, len(vectors), _QUERY_VECTORS):
            part = vectors[start : start + _QUERY_VECTORS].tolist()
            answers += self._post(f"/v1/galleries/{gallery}/search/vectors", json={"vectors": part, "k": k})[
                "neighbors"
            ]
            progress(len(answers), len(vectors))
        return answers

    def upgrade(
        self, gallery: str, to_version: str, transformation: int, images: LabelledImages, progress: Any
    ) -> dict[str, Any]:
        """Start an upgrade, have it judged by images of some items, and let it go live by itself on a pass; where there
        is none, say that it is to go live all the same, to show what it is worth. Return the report."""
        wanted = {"to_version": to_version, "transformation": transformation, "cutover": "auto"}
        upgrade = self._post(f"/v1/galleries/{gallery}/upgrades", json=wanted)
        while upgrade["state"] != "ready":
            if upgrade["state"] == "failed":
                raise RuntimeError(upgrade["error"])
            time.sleep(0.1)
            upgrade = self._get(f"/v1/upgrades/{upgrade['id']}")
            phase = upgrade["progress"]["transforming"]
            progress(phase["done"], phase["total"] or 1)

        self._give_references(upgrade["id"], images)
        number = self._post(f"/v1/upgrades/{upgrade['id']}/evaluate")["report"]
        while (report := self._get(f"/v1/upgrades/{upgrade['id']}/report"))["report"] < number:
            time.sleep(0.1)
        if report["verdict"] != "pass":
            reason = {"override": {"reason": "the demonstration shows what it is worth"}}
            self._post(f"/v1/upgrades/{upgrade['id']}/cutover", json=reason)
        while self._get(f"/v1/upgrades/{upgrade['id']}")["state"] != "live":
            time.sleep(0.1)
        return report

    def _give_references(self, upgrade_id: int, images: LabelledImages) -> None:
        """Give those images again that the service asks for: by both versions they are the evidence."""
        asked = self._get(f"/v1/upgrades/{upgrade_id}/references", wanted=_REFERENCES)["ids"]
        for start in range(0, len(asked), _POST_FILES):
            part = asked[start : start + _POST_FILES]
            files = [("files", (name, images.files[int(name)])) for name in part]
            self._post(f"/v1/upgrades/{upgrade_id}/references", files=files)

    def _get(self, path: str, **parameters: Any) -> dict[str, Any]:
        body: dict[str, Any] = self._http.get(path, params=parameters).raise_for_status().json()
        return body

    def _post(self, path: str, **request: Any) -> dict[str, Any]:
        answer = self._http.post(path, **request)
        if answer.is_error:
            raise RuntimeError(f"POST {path}: {answer.status_code} {answer.text[:500]}")
        body: dict[str, Any] = answer.json()
        return body
